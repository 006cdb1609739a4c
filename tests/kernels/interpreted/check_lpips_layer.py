"""The LPIPS-layer kernels against the op's plain-torch body and float64 autograd, in Triton's interpreter."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from shade_fast.kernels import lpips_layer as kernels
from shade_fast.ops import gpu
from shade_fast.ops import lpips_layer as op
from shade_fast.ops.epilogue import Epilogue
from shade_fast.terms.errors import ShadeFastError

# [B, C, h, w]: the networks' channels, powers of two and not; one pixel to more than one tile a program.
SHAPES = [
    (1, 64, 1, 1),
    (1, 64, 65, 63),
    (2, 128, 3, 5),
    (1, 192, 7, 9),
    (1, 384, 2, 3),
    (2, 512, 13, 11),
    (3, 5, 4, 3),
    (1, 2, 2, 2),
]
# Relative: a float32 sum of squares of differences, and a gradient that is a difference of two terms; for the gradient
# in float16 one rounding of each value.
DISTANCE_TOLERANCE = 2e-6
GRADIENT_TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3}

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])


class Inputs(NamedTuple):
    activations: Tensor
    clean: Tensor
    head: Tensor
    upstream: Tensor


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Inputs:
    """Activations with a dead pixel and the clean image's, near to them; gradients of about 1, for float16."""
    generator = torch.Generator().manual_seed(0)

    def images() -> Tensor:
        return torch.randn(shape, generator=generator).to(memory_format=torch.channels_last)

    activations = images().abs()
    clean = op.reference_unit(activations + 0.3 * images().abs())
    activations[..., :1, :1] = 0
    head = torch.randn(shape[1], generator=generator).abs()
    upstream = torch.randn(shape[0], generator=generator) * max(shape[2] * shape[3], 1)
    return Inputs(activations.to(dtype), clean.to(dtype), head, upstream)


def scratch(activations: Tensor) -> Tensor:
    images, channels, height, width = activations.shape
    return torch.full((kernels.scratch_size(images, height * width, channels),), torch.nan)


def run(given: Inputs) -> tuple[Tensor, Tensor]:
    """Distance and gradient, each by a kernel of its own."""
    distance, out = torch.full((len(given.activations),), torch.nan), torch.empty_like(given.activations)
    kernels.forward(*given[:3], distance, scratch(given.activations))
    kernels.backward(*given, out)
    return distance, out


def truth(given: Inputs) -> tuple[Tensor, Tensor]:
    activations = given.activations.double().requires_grad_()
    distance = op.reference(activations, given.clean.double(), given.head.double())
    (gradient,) = torch.autograd.grad(distance, activations, given.upstream.double())
    return distance.detach(), gradient


def check(relative_rms, given: Inputs) -> None:
    distance, gradient = run(given)
    true_distance, true_gradient = truth(given)
    assert relative_rms(distance, true_distance) < DISTANCE_TOLERANCE
    assert relative_rms(gradient, true_gradient) < GRADIENT_TOLERANCE[gradient.dtype]
    assert torch.count_nonzero(gradient[..., 0, 0]) == 0


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_agrees_with_float64(relative_rms, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(relative_rms, inputs(shape, dtype))


def test_several_tiles_for_each_program(relative_rms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "TILE", 64)
    monkeypatch.setattr(kernels, "MOST_SPLITS", 4)
    check(relative_rms, inputs((2, 20, 13, 11)))


def test_a_half_precision_head(relative_rms) -> None:
    given = inputs((1, 33, 5, 6), torch.float16)
    check(relative_rms, given._replace(head=given.head.half()))


def test_the_gradient_may_overwrite_the_activations() -> None:
    given = inputs((2, 24, 5, 7))
    _, gradient = run(given)
    kernels.backward(*given, given.activations)
    assert torch.equal(given.activations, gradient)


def test_an_image_alone_has_its_bits_in_a_batch() -> None:
    given = inputs((3, 24, 11, 13))
    together = run(given)
    for i in range(3):
        one = slice(i, i + 1)
        alone = run(Inputs(given.activations[one], given.clean[one], given.head, given.upstream[one]))
        assert all(torch.equal(own, batch[one]) for own, batch in zip(alone, together, strict=True))


def test_nan_stays_in_its_pixel() -> None:
    given = inputs((1, 20, 2, 3))
    given.activations[0, 3, 1, 1] = torch.nan
    distance, gradient = run(given)
    assert distance.isnan().all()
    assert gradient[..., 1, 1].isnan().all()
    gradient[..., 1, 1] = 0
    assert gradient.isfinite().all()


def test_no_images() -> None:
    distance, gradient = run(inputs((0, 8, 4, 4)))
    assert distance.shape == (0,)
    assert gradient.shape == (0, 8, 4, 4)


@every_dtype
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_the_op_runs_them(
    relative_rms, dtype: torch.dtype, order: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The op as its callers see it, autograd included, on tensors that it takes for a GPU's."""
    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)
    given = inputs((2, 48, 7, 5), dtype)
    true_distance, true_gradient = truth(given)
    activations = given.activations.contiguous(memory_format=order).requires_grad_()
    distance = op.lpips_layer(activations, given.clean, given.head)
    (gradient,) = torch.autograd.grad(distance, activations, given.upstream)
    assert distance.dtype == torch.float32
    assert gradient.dtype == dtype
    assert relative_rms(distance.detach(), true_distance) < DISTANCE_TOLERANCE
    assert relative_rms(gradient, true_gradient) < GRADIENT_TOLERANCE[dtype]
    with pytest.raises(ShadeFastError, match="takes no epilogue"):
        op.bind_gradient(*given, torch.empty_like(given.activations), Epilogue(relu=True), 1)
