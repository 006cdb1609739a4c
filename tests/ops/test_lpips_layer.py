"""The LPIPS layer: every instruction set against plain torch in float64, and the differentiable op."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shade_fast.ops import native
from shade_fast.ops.epilogue import Epilogue
from shade_fast.ops.lpips_layer import (
    bind,
    bind_gradient,
    bind_unit,
    lpips_layer,
    reference,
    reference_gradient,
    reference_unit,
    scratch_size,
    unit_length,
)
from shade_fast.terms.errors import ShadeFastError

pytestmark = pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")


def inputs(layers, shape) -> tuple[Tensor, Tensor, Tensor]:
    """Activations with a dead pixel and the clean image's, near to them, and a head."""
    activations = layers.images(shape).relu()
    clean = reference_unit((activations + 0.1 * layers.images(shape)).relu())
    activations[..., 0, 0] = 0
    return activations, layers.channels_last(clean), layers.normal(shape[1]).abs()


def test_distance(shape, layers) -> None:
    activations, clean, head = inputs(layers, shape)

    def run(threads: int) -> tuple[Tensor]:
        distance = torch.full((shape[0],), torch.nan)
        scratch = torch.full((scratch_size(shape),), torch.nan)
        layers.run(bind(activations, clean, head, distance, scratch, threads))
        return (distance,)

    (distance,) = layers.same_on_any_threads(run)
    expected = reference(activations.double(), clean.double(), head.double())
    torch.testing.assert_close(distance.double(), expected, rtol=2e-6, atol=1e-9)
    for i in range(shape[0]):
        alone = torch.full((1,), torch.nan)
        pair = activations[i : i + 1], clean[i : i + 1]
        layers.run(bind(*pair, head, alone, torch.full((scratch_size(pair[0].shape),), torch.nan), 2))
        assert torch.equal(alone, distance[i : i + 1])


def test_gradient(shape, parts, layers) -> None:
    activations, clean, head = inputs(layers, shape)
    upstream = layers.normal(shape[0]) * (shape[2] * shape[3])
    expected = reference_gradient(*(tensor.double() for tensor in (upstream, activations, clean, head)))
    layers.check_with_epilogue(
        lambda *rest: bind_gradient(activations, clean, head, upstream, *rest),
        expected,
        parts,
        tolerance=2e-6,  # of the largest value: a pixel's is a difference of two terms
    )


def test_unit(shape, layers) -> None:
    activations, _, _ = inputs(layers, shape)

    def run(threads: int) -> tuple[Tensor]:
        out = layers.poisoned(shape)
        layers.run(bind_unit(activations, out, threads))
        return (out,)

    (out,) = layers.same_on_any_threads(run)
    torch.testing.assert_close(out.double(), reference_unit(activations.double()), rtol=1e-6, atol=1e-7)
    assert torch.count_nonzero(out[..., 0, 0]) == 0
    assert torch.equal(unit_length(activations), out)


def test_large_results(layers) -> None:
    shape = (1, 64, 257, 257)  # 16 MiB go past the caches
    activations, clean, head = inputs(layers, shape)
    upstream = torch.full((1,), 257.0 * 257)
    expected = reference_gradient(*(tensor.double() for tensor in (upstream, activations, clean, head)))
    layers.check_with_epilogue(
        lambda *rest: bind_gradient(activations, clean, head, upstream, *rest), expected, "gate", tolerance=2e-6
    )
    out = layers.poisoned(shape)
    layers.run(bind_unit(activations, out, 2))
    torch.testing.assert_close(out.double(), reference_unit(activations.double()), rtol=1e-6, atol=1e-7)


def test_nan_stays_in_its_pixel(layers) -> None:
    activations, clean, head = inputs(layers, (1, 20, 2, 3))
    activations[0, 3, 1, 1] = torch.nan
    out = layers.poisoned(activations.shape)
    layers.run(bind_gradient(activations, clean, head, torch.ones(1), out, Epilogue(), 1))
    assert out[..., 1, 1].isnan().all()
    out[..., 1, 1] = 0
    assert out.isfinite().all()
    assert lpips_layer(activations, clean, head).isnan().all()


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_op_is_the_reference(shape, dtype, order, layers) -> None:
    activations, clean, head = (tensor.to(dtype) for tensor in inputs(layers, shape))
    activations = activations.contiguous(memory_format=order).requires_grad_()
    upstream = layers.normal(shape[0]).to(dtype)
    distance = lpips_layer(activations, clean, head)
    (gradient,) = torch.autograd.grad(distance, activations, upstream)
    expected = lpips_layer(activations, clean, head, backend="reference")
    (expected_gradient,) = torch.autograd.grad(expected, activations, upstream)
    assert distance.dtype == dtype
    torch.testing.assert_close(distance, expected, rtol=4e-6, atol=1e-8)  # both are in float32
    bound = 4e-6 * float(expected_gradient.abs().max()) if expected_gradient.numel() else 0.0
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=bound)


def test_gradcheck(layers) -> None:
    activations, clean, head = (tensor.double() for tensor in inputs(layers, (2, 3, 2, 3)))
    activations = (activations + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda value: lpips_layer(value, clean, head), activations)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_pixel_of_length_0_has_the_gradient_0(backend: str, layers) -> None:
    activations, clean, head = inputs(layers, (1, 5, 3, 3))
    activations.requires_grad_()
    (gradient,) = torch.autograd.grad(lpips_layer(activations, clean, head, backend=backend).sum(), activations)
    assert torch.count_nonzero(gradient[..., 0, 0]) == 0 and torch.count_nonzero(gradient) > 0


def test_opcheck(layers) -> None:
    activations, clean, head = inputs(layers, (2, 5, 3, 4))
    torch.library.opcheck(torch.ops.shade_fast.lpips_layer.default, (activations.requires_grad_(), clean, head))
    arguments = (torch.ones(2), activations.detach(), clean, head)
    torch.library.opcheck(torch.ops.shade_fast.lpips_layer_gradient.default, arguments)
    torch.library.opcheck(torch.ops.shade_fast.unit_length.default, (activations.detach(),))


def test_a_second_derivative_is_refused(layers) -> None:
    activations, clean, head = inputs(layers, (1, 3, 2, 2))
    activations.requires_grad_()
    (gradient,) = torch.autograd.grad(lpips_layer(activations, clean, head).sum(), activations, create_graph=True)
    with pytest.raises(ShadeFastError, match="differentiable once"):
        gradient.sum().backward()


def test_what_does_not_fit_is_refused() -> None:
    activations, head = torch.zeros(1, 3, 4, 5), torch.zeros(3)
    with pytest.raises(ShadeFastError, match=r"clean ones \[1, 3, 4, 4\]"):
        lpips_layer(activations, activations[..., :4], head)
    with pytest.raises(ShadeFastError, match=r"head is \[2\]"):
        lpips_layer(activations, activations, head[:2])
    with pytest.raises(ShadeFastError, match=r"clean is torch\.float64"):
        lpips_layer(activations, activations.double(), head)
    with pytest.raises(ShadeFastError, match="backend='fast'"):
        lpips_layer(activations, activations, head, backend="fast")
    with pytest.raises(ShadeFastError, match="channels_last"):
        bind_unit(activations, activations, 1)
    last = activations.contiguous(memory_format=torch.channels_last)
    with pytest.raises(ShadeFastError, match="scratch is"):
        bind(last, last, head, torch.zeros(1), torch.zeros(0), 1)
