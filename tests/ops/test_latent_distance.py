"""The latent distance on the CPU: values, gradients and the operator's schema. Its Triton kernels: tests/kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shade_fast.ops import latent_distance
from shade_fast.terms.errors import ShadeFastError


def random_latents(shape: tuple[int, ...] = (2, 4, 5, 7), dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return latents, torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_is_the_euclidean_distance(backend: str) -> None:
    latents, anchor = random_latents()
    expected = [float((one - other).square().sum().sqrt()) for one, other in zip(latents, anchor, strict=True)]
    assert latent_distance(latents, anchor, backend=backend).tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradient(backend: str) -> None:
    latents, anchor = random_latents((2, 3, 3, 2))
    latents.requires_grad_()
    assert torch.autograd.gradcheck(lambda value: latent_distance(value, anchor, backend=backend), latents)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradient_is_zero_at_distance_zero(backend: str) -> None:
    latents, _ = random_latents()
    latents.requires_grad_()
    (gradient,) = torch.autograd.grad(latent_distance(latents, latents.detach(), backend=backend).sum(), latents)
    assert torch.count_nonzero(gradient) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_in_float32(dtype: torch.dtype) -> None:
    latents, anchor = random_latents((2, 16, 9, 11), dtype)
    latents.requires_grad_()
    distance = latent_distance(latents, anchor)
    (gradient,) = torch.autograd.grad(distance.sum(), latents)
    truth = latent_distance(latents.detach().double(), anchor.double())
    assert distance.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(distance.detach().double(), truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_gradient_keeps_the_memory_order(order: torch.memory_format) -> None:
    latents, anchor = random_latents()
    latents = latents.contiguous(memory_format=order).requires_grad_()
    (gradient,) = torch.autograd.grad(latent_distance(latents, anchor).sum(), latents)
    assert gradient.stride() == latents.stride()


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (2, 4, 0, 8), (1, 1, 1, 1)])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    latents, anchor = random_latents(shape)
    assert torch.equal(latent_distance(latents, anchor), latent_distance(latents, anchor, backend="reference"))


def test_opcheck() -> None:
    latents, anchor = random_latents(dtype=torch.float32)
    torch.library.opcheck(torch.ops.shade_fast.latent_distance.default, (latents.requires_grad_(), anchor))
    arguments = (torch.ones(2), latents.detach(), anchor, torch.ones(2))
    torch.library.opcheck(torch.ops.shade_fast.latent_distance_gradient.default, arguments)


@pytest.mark.parametrize(
    ("anchor", "message"),
    [
        (torch.zeros(1, 4, 5, 7), r"the anchor is \[1, 4, 5, 7\]"),
        (torch.zeros(2, 4, 5, 7, dtype=torch.float16), "the anchor is torch.float16"),
    ],
)
def test_arguments_that_do_not_fit(anchor: Tensor, message: str) -> None:
    latents, _ = random_latents(dtype=torch.float32)
    with pytest.raises(ShadeFastError, match=message):
        latent_distance(latents, anchor)
