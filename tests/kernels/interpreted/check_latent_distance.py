"""The latent-distance kernels against plain torch and float64 autograd, in Triton's interpreter."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from shade_fast.kernels import latent_distance as kernels
from shade_fast.ops.latent_distance import reference

# [B, C, h, w]: odd, prime, one value, more than one block, more blocks than programs (with fewer programs, below).
SHAPES = [(1, 1, 1, 1), (2, 4, 1, 1), (3, 4, 5, 7), (1, 16, 13, 11), (2, 3, 31, 29), (1, 32, 9, 17)]
# Relative: a float32 sum of a few thousand squares, and for the gradient one rounding to the latents' dtype.
DISTANCE_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3}


def random_latents(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(shape, generator=generator).to(dtype)
    anchor = torch.randn(shape, generator=generator).to(dtype)
    return latents, anchor, torch.randn(shape[0], generator=generator)


@pytest.fixture
def check(relative_rms: Callable[[Tensor, Tensor], float]) -> Callable[[Tensor, Tensor, Tensor], None]:
    return functools.partial(_check, relative_rms)


def _check(relative_rms: Callable[[Tensor, Tensor], float], latents: Tensor, anchor: Tensor, upstream: Tensor) -> None:
    exact = latents.double().requires_grad_()
    true_distance = reference(exact, anchor.double())
    (true_gradient,) = torch.autograd.grad(true_distance, exact, upstream.double())

    distance = kernels.forward(latents, anchor)
    gradient = kernels.backward(upstream, latents, anchor, distance)

    assert distance.dtype == torch.float32
    assert relative_rms(distance, true_distance.detach()) < DISTANCE_TOLERANCE
    assert gradient.dtype == latents.dtype
    assert gradient.stride() == latents.stride()
    assert relative_rms(gradient, true_gradient) < GRADIENT_TOLERANCE[latents.dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_agrees_with_float64(check, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(*random_latents(shape, dtype))


def test_channels_last(check) -> None:
    latents, anchor, upstream = random_latents((2, 4, 9, 7), torch.float32)
    order = torch.channels_last
    check(latents.contiguous(memory_format=order), anchor.contiguous(memory_format=order), upstream)


def test_several_blocks_for_each_program(check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BLOCK", 16)
    monkeypatch.setattr(kernels, "MOST_SPLITS", 8)
    check(*random_latents((2, 4, 13, 11), torch.float32))


def test_gradient_is_zero_at_distance_zero() -> None:
    latents, anchor, upstream = random_latents((2, 4, 3, 5), torch.float32)
    anchor[0] = latents[0]
    distance = kernels.forward(latents, anchor)
    gradient = kernels.backward(upstream, latents, anchor, distance)
    assert distance[0] == 0
    assert torch.count_nonzero(gradient[0]) == 0
    assert torch.isfinite(gradient).all()


def test_no_images() -> None:
    empty = torch.empty(0, 4, 8, 8)
    assert kernels.forward(empty, empty).shape == (0,)
    assert kernels.backward(torch.empty(0), empty, empty, torch.empty(0)).shape == empty.shape


def test_images_without_values_are_at_distance_zero() -> None:
    empty = torch.empty(2, 4, 0, 8)
    assert kernels.forward(empty, empty).tolist() == [0.0, 0.0]
