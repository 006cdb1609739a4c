"""Between NCHW and NHWC: every instruction set against plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shade_fast.ops import memory_format, native
from shade_fast.terms.errors import ShadeFastError

pytestmark = pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")


@pytest.mark.parametrize("factors", ["", "scale", "shift", "scale shift"])
@pytest.mark.parametrize("to", ["last", "first"])
@pytest.mark.parametrize("channels", [None, 3, 4, 8, 32])
def test_every_isa_equals_the_reference(shape, to: str, factors: str, channels: int | None, layers) -> None:
    shape = shape if channels is None else (shape[0], channels, *shape[2:])
    x = layers.normal(*shape)
    scale = layers.normal(shape[1]) if "scale" in factors else None
    shift = layers.normal(shape[1]) if "shift" in factors else None
    source = layers.channels_last(x) if to == "first" else x

    def run(threads: int) -> tuple[Tensor]:
        if to == "first":
            out = torch.full(shape, torch.nan)
            layers.run(memory_format.bind_channels_first(source, scale, shift, out, threads))
        else:
            out = layers.poisoned(shape)
            layers.run(memory_format.bind_channels_last(source, scale, shift, out, threads))
        return (out,)

    (out,) = layers.same_on_any_threads(run)
    # A fused product rounds once where the reference rounds twice.
    torch.testing.assert_close(out, memory_format.reference(x, scale, shift), rtol=1e-6, atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros(1, 3, 4, 5)
    out = x.contiguous(memory_format=torch.channels_last)
    with pytest.raises(ShadeFastError, match="x is"):
        memory_format.bind_channels_last(out, None, None, out, 1)
    with pytest.raises(ShadeFastError, match="scale is"):
        memory_format.bind_channels_last(x, torch.zeros(4), None, out, 1)
    with pytest.raises(ShadeFastError, match="out is"):
        memory_format.bind_channels_first(out, None, None, out, 1)
