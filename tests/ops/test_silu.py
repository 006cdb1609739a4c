"""SiLU: every instruction set against plain torch in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shade_fast.ops import native, silu
from shade_fast.ops.epilogue import Epilogue
from shade_fast.terms.errors import ShadeFastError

pytestmark = pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")

LARGE = (1, 16, 513, 512)  # results of 16 MiB go past the caches


def test_silu(shape, layers) -> None:
    x = 4 * layers.images(shape)

    def run(threads: int) -> tuple[Tensor]:
        out = layers.poisoned(shape)
        layers.run(silu.bind(x, out, threads))
        return (out,)

    (out,) = layers.same_on_any_threads(run)
    torch.testing.assert_close(out.double(), silu.reference(x.double()), rtol=5e-7, atol=1e-12)


def test_silu_gradient(shape, parts, layers) -> None:
    x, gradient = 4 * layers.images(shape), layers.images(shape)
    expected = silu.reference_gradient(gradient.double(), x.double(), Epilogue())
    layers.check_with_epilogue(lambda *rest: silu.bind_gradient(gradient, x, *rest), expected, parts, tolerance=5e-7)


def test_the_reference_gradient_is_autograds(layers) -> None:
    x = layers.images((2, 5, 3, 3)).double().requires_grad_()
    gradient = layers.images((2, 5, 3, 3)).double()
    (expected,) = torch.autograd.grad(silu.reference(x), x, gradient)
    torch.testing.assert_close(silu.reference_gradient(gradient, x.detach(), Epilogue()), expected)


def test_large_results(layers) -> None:
    x = layers.images(LARGE)
    gradient = x.flip(0)
    for parts in ("", "in place", "positive relu gate"):
        expected = silu.reference_gradient(gradient.double(), x.double(), Epilogue())
        layers.check_with_epilogue(
            lambda *rest: silu.bind_gradient(gradient, x, *rest), expected, parts, tolerance=5e-7
        )
    out = layers.poisoned(LARGE)
    layers.run(silu.bind(x, out, 2))
    torch.testing.assert_close(out.double(), silu.reference(x.double()), rtol=5e-7, atol=1e-12)


def test_silu_is_exact_to_a_few_units_in_the_last_place(layers) -> None:
    x = torch.cat([torch.linspace(-86, 86, 400_001), 1e-3 * layers.normal(10_000)]).reshape(1, 1, 1, -1)
    out = layers.poisoned(x.shape)
    layers.run(silu.bind(x, out, 1))
    expected = silu.reference(x.double())
    unit = torch.exp2(expected.abs().clamp_min(1e-300).log2().floor() - 23)
    # exp, 1 + exp, the division and the products each round by half a unit; without fused products exp by one more.
    assert ((out.double() - expected).abs() / unit).max() < 3


def test_silu_has_limits_and_keeps_nan(layers) -> None:
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([-torch.inf, -largest, -1000.0, -100.0, -87.0, 0.0, 87.0, largest, torch.inf, torch.nan])
    x = x.reshape(1, 1, 1, -1)
    out, slope = layers.poisoned(x.shape), layers.poisoned(x.shape)
    layers.run(silu.bind(x, out, 1))
    layers.run(silu.bind_gradient(torch.ones_like(x), x, slope, Epilogue(), 1))
    out, slope = out.flatten(), slope.flatten()
    assert out[:5].abs().max() < 1e-35
    assert torch.equal(out[5:9], torch.tensor([0.0, 87.0, largest, torch.inf]))
    assert slope[:5].abs().max() < 1e-35
    assert torch.equal(slope[5:9], torch.tensor([0.5, 1.0, 1.0, 1.0]))
    assert out[9].isnan() and slope[9].isnan()


def test_result_may_be_an_input(layers) -> None:
    x = layers.images((1, 20, 9, 7))
    expected = silu.reference(x.double())
    layers.run(silu.bind(x, x, 2))
    torch.testing.assert_close(x.double(), expected, rtol=5e-7, atol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros(1, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    with pytest.raises(ShadeFastError, match="channels_last"):
        silu.bind(torch.zeros(1, 3, 4, 5), x, 1)
    with pytest.raises(ShadeFastError, match=r"x is \[0, 3, 4, 5\], out \[1, 3, 4, 5\]"):
        silu.bind(x[:0], x, 1)
    with pytest.raises(RuntimeError, match="out of range"):
        native.check(native.cpu(), silu.bind(x, x, 0)())
