"""Epilogues by themselves: every instruction set against plain torch in float64."""

from __future__ import annotations

import pytest
import torch

from shade_fast.ops import epilogue, native
from shade_fast.ops.epilogue import Epilogue
from shade_fast.terms.errors import ShadeFastError

pytestmark = pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")

LARGE = (1, 16, 513, 512)  # results of 16 MiB go past the caches


def test_epilogue(shape, parts, layers) -> None:
    x = layers.images(shape)
    # Two additions.
    layers.check_with_epilogue(lambda *rest: epilogue.bind(x, *rest), x.double(), parts, tolerance=5e-7)


def test_large_results(layers) -> None:
    x = layers.images(LARGE)
    for parts in ("", "in place", "positive relu gate"):
        layers.check_with_epilogue(lambda *rest: epilogue.bind(x, *rest), x.double(), parts, tolerance=5e-7)


def test_relu_keeps_nan(layers) -> None:
    x = layers.channels_last(torch.full((1, 20, 1, 2), torch.nan))
    out = torch.zeros_like(x)
    layers.run(epilogue.bind(x, out, Epilogue(relu=True), 1))
    assert out.isnan().all()


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros(1, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    with pytest.raises(ShadeFastError, match=r"torch\.float64"):
        epilogue.bind(x.double(), x, Epilogue(), 1)
    with pytest.raises(ShadeFastError, match="bias"):
        epilogue.bind(x, x, Epilogue(bias=torch.zeros(4)), 1)
    with pytest.raises(RuntimeError, match="out of range"):
        native.check(native.cpu(), epilogue.bind(x, x, Epilogue(), 0)())
