"""The max-pool kernels against the op's plain-torch body and float64 autograd, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from shade_fast.ops import gpu
from shade_fast.ops import max_pool as op
from shade_fast.ops.epilogue import Epilogue
from shade_fast.ops.max_pool import max_pool
from shade_fast.terms.errors import ShadeFastError

# [B, C, h, w], kernel, stride, padding, rounded up: the networks' own, and windows that overlap, leave pixels out,
# begin before the image and run over its far edges.
CASES = [
    ((1, 1, 1, 1), 1, 1, 0, False),
    ((2, 64, 8, 6), 2, 2, 0, False),
    ((1, 130, 7, 9), 2, 2, 0, False),
    ((1, 20, 13, 11), 2, 1, 0, False),
    ((2, 33, 15, 17), 3, 2, 0, False),
    ((1, 17, 16, 12), 3, 2, 0, True),
    ((1, 5, 9, 8), 3, 1, 1, False),
    ((1, 3, 11, 10), 2, 3, 1, True),
    ((1, 4, 9, 9), 4, 2, 2, False),
]


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Of few different values, so that windows have several largest ones."""
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(4).round().div(4)
    return made.to(dtype).to(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_reference_and_with_torch(
    case: tuple[tuple[int, ...], int, int, int, bool], dtype: torch.dtype, relative_rms
) -> None:
    shape, kernel, stride, padding, ceil = case
    x = values(shape, dtype, 0).requires_grad_()
    exact = x.detach().double().requires_grad_()
    right = functional.max_pool2d(exact, kernel, stride, padding, 1, ceil)
    size = tuple(right.shape[2:])
    made = max_pool(x, kernel, stride, padding, size)
    assert torch.equal(made, right.to(dtype))
    assert made.is_contiguous(memory_format=torch.channels_last)
    _, index = op._operator(x.detach(), kernel, stride, padding, *size, True)
    assert torch.equal(index, op.reference(x.detach(), kernel, stride, padding, size)[1])

    upstream = values(tuple(made.shape), dtype, 1)
    (gradient,) = torch.autograd.grad(made, x, upstream)
    window = (tuple(shape), kernel, stride, padding)
    assert torch.equal(gradient, op.reference_gradient(upstream.float(), index, *window, Epilogue()).to(dtype))
    (true,) = torch.autograd.grad(right, exact, upstream.double())
    assert relative_rms(gradient, true) < (1e-6 if dtype == torch.float32 else 1e-3)


def test_nan_is_the_largest_and_infinities_are_met() -> None:
    x = values((1, 8, 6, 6), torch.float32, 0)
    x[0, 1, 2, 3] = torch.nan
    x[0, 2, :2, :2] = -torch.inf
    x[0, 3, 4, 4] = torch.inf
    made, index = op._operator(x, 2, 2, 0, 3, 3, True)
    right, place = op.reference(x, 2, 2, 0, (3, 3))
    assert torch.equal(made.nan_to_num(99.0), right.nan_to_num(99.0))
    assert torch.equal(index, place)
    assert made.isnan().sum() == 1


def test_a_byte_a_window_is_kept_where_a_gradient_is_wanted() -> None:
    kept: list[Tensor] = []
    x = values((2, 6, 4, 4), torch.float16, 0)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        max_pool(x, 2, 2, 0, (2, 2))
        max_pool(x.requires_grad_(), 2, 2, 0, (2, 2))
    assert [(one.dtype, one.numel()) for one in kept] == [(torch.uint8, 2 * 6 * 4)]


def test_no_images() -> None:
    x = torch.zeros(0, 3, 4, 4, requires_grad=True)
    made = max_pool(x, 2, 2, 0, (2, 2))
    assert made.shape == (0, 3, 2, 2)
    assert torch.autograd.grad(made.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("window", [(5, 1, 0, (4, 4)), (2, 0, 0, (4, 4)), (2, 2, 2, (4, 4)), (2, 2, 0, (6, 4))])
def test_windows_that_do_not_fit_are_named(window: tuple[int, int, int, tuple[int, int]]) -> None:
    kernel, stride, padding, size = window
    said = f"{size[0]} by {size[1]} windows with kernel={kernel} .*stride={stride}, padding={padding} do not fit 8 by 8"
    with pytest.raises(ShadeFastError, match=said):
        max_pool(torch.zeros(1, 1, 8, 8), kernel, stride, padding, size)
