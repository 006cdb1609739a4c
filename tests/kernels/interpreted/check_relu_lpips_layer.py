"""The kernels of a ReLU that LPIPS compares against plain torch and float64 autograd, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shade_fast.kernels import lpips_layer as lpips_kernels
from shade_fast.kernels import relu_lpips_layer as kernels
from shade_fast.ops import gpu, lpips_layer
from shade_fast.ops import relu_lpips_layer as op
from shade_fast.ops.relu_lpips_layer import relu_lpips_layer
from shade_fast.terms.errors import ShadeFastError

SHAPES = [
    (1, 64, 1, 1),
    (1, 64, 65, 63),
    (2, 128, 3, 5),
    (1, 192, 7, 9),
    (2, 512, 13, 11),
    (3, 5, 4, 3),
    (1, 2, 2, 2),
    (2, 33, 5, 7),
]
# Relative: as of the LPIPS layer; in float16 the features are rounded once more, before they are compared.
DISTANCE_TOLERANCE = 2e-6
GRADIENT_TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3}

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)


def images(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype).to(memory_format=torch.channels_last)


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x with a pixel that the ReLU leaves nothing of, bias, clean features near to x's, head."""
    x = images(shape, dtype, 0)
    x[..., :1, :1] = -100
    bias = torch.randn(shape[1], generator=torch.Generator().manual_seed(1))
    clean = lpips_layer.reference_unit(torch.relu(x.float() + 0.3 * images(shape, dtype, 2).float())).to(dtype)
    head = torch.rand(shape[1], generator=torch.Generator().manual_seed(3))
    return x, bias, clean, head


@every_dtype
@pytest.mark.parametrize("parts", ["", "bias", "residual", "bias residual"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64(relative_rms, shape: tuple[int, ...], parts: str, dtype: torch.dtype) -> None:
    """Results against plain torch in float64, from the features as they are rounded."""
    x, bias, clean, head = inputs(shape, dtype)
    shift = bias if "bias" in parts else None
    x.requires_grad_()
    y, distance = relu_lpips_layer(x, shift, clean, head)
    assert torch.equal(y, op.reference(x.detach(), shift, clean, head)[0])

    rounded = y.detach().double().requires_grad_()
    right = lpips_layer.reference(rounded, clean.double(), head.double())
    assert distance.dtype == torch.float32
    assert relative_rms(distance.detach(), right.detach()) < DISTANCE_TOLERANCE

    upstream = torch.linspace(0.5, 1.5, shape[0]) * shape[2] * shape[3]
    through = images(shape, dtype, 4) if "residual" in parts else None
    outputs, slopes = ([distance], [upstream]) if through is None else ([distance, y], [upstream, through])
    (gradient,) = torch.autograd.grad(outputs, x, slopes)
    (true,) = torch.autograd.grad(right, rounded, upstream.double())
    true = torch.where(rounded > 0, true + (0 if through is None else through.double()), 0).detach()
    assert gradient.dtype == dtype
    assert relative_rms(gradient, true) < GRADIENT_TOLERANCE[dtype]
    assert torch.count_nonzero(gradient[..., 0, 0]) == 0


def test_gradients_of_one_result_alone() -> None:
    x, bias, clean, head = inputs((2, 24, 5, 7), torch.float32)
    through = images((2, 24, 5, 7), torch.float32, 5)
    y, _ = relu_lpips_layer(x.requires_grad_(), bias, clean, head)
    assert torch.equal(torch.autograd.grad(y, x, through)[0], torch.where(y > 0, through, 0))


def test_several_tiles_for_each_program(relative_rms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips_kernels, "TILE", 64)
    monkeypatch.setattr(lpips_kernels, "MOST_SPLITS", 4)
    monkeypatch.setattr(kernels, "MOST_SPLITS", 4)
    test_agrees_with_float64(relative_rms, (2, 20, 13, 11), "bias residual", torch.float32)


def test_an_image_alone_has_its_bits_in_a_batch() -> None:
    x, bias, clean, head = inputs((3, 24, 11, 13), torch.float32)

    def run(some: slice) -> tuple[Tensor, ...]:
        leaf = x[some].clone().requires_grad_()
        y, distance = relu_lpips_layer(leaf, bias, clean[some], head)
        return y, distance, torch.autograd.grad(distance.sum(), leaf)[0]

    together = run(slice(None))
    for i in range(3):
        assert all(torch.equal(own[0], one[i]) for own, one in zip(run(slice(i, i + 1)), together, strict=True))


def test_nan_stays_in_its_pixel() -> None:
    x, bias, clean, head = inputs((1, 20, 2, 3), torch.float32)
    x[0, 3, 1, 1] = torch.nan
    y, distance = relu_lpips_layer(x.requires_grad_(), bias, clean, head)
    (gradient,) = torch.autograd.grad(distance.sum(), x)
    assert y.isnan().sum() == 1
    assert distance.isnan().all()
    assert gradient[..., 1, 1].isnan().any()
    gradient[..., 1, 1] = 0
    assert gradient.isfinite().all()


def test_no_images_and_what_does_not_fit() -> None:
    x, bias, clean, head = inputs((0, 8, 4, 4), torch.float32)
    y, distance = relu_lpips_layer(x.requires_grad_(), bias, clean, head)
    assert (y.shape, distance.shape) == ((0, 8, 4, 4), (0,))
    assert torch.autograd.grad(distance.sum(), x)[0].shape == x.shape
    with pytest.raises(ShadeFastError, match=r"bias is \[3\]: x has 8 channels"):
        relu_lpips_layer(x, bias[:3], clean, head)
    with pytest.raises(ShadeFastError, match=r"head is \[7\]: activations have 8 channels"):
        relu_lpips_layer(x, bias, clean, head[:7])
