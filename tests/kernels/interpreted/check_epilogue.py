"""The epilogue's kernels against the op's plain-torch body, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shade_fast.ops import epilogue as op
from shade_fast.ops import gpu
from shade_fast.ops.epilogue import epilogue, reference
from shade_fast.terms.errors import ShadeFastError

SHAPES = [(1, 1, 1, 1), (2, 16, 5, 7), (1, 130, 9, 4), (3, 64, 17, 16), (1, 31, 23, 29)]


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype).to(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("parts", ["", "bias", "residual", "bias residual"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_reference_to_the_bit(
    shape: tuple[int, ...], parts: str, relu: bool, dtype: torch.dtype
) -> None:
    x = values(shape, dtype, 0).requires_grad_()
    bias = torch.randn(shape[1], generator=torch.Generator().manual_seed(1)) if "bias" in parts else None
    residual = values(shape, dtype, 2).requires_grad_() if "residual" in parts else None
    made = epilogue(x, bias, residual, relu=relu)
    right = reference(x, bias, residual, relu)
    assert torch.equal(made, right)
    upstream = values(shape, dtype, 3)
    leaves = [x] if residual is None else [x, residual]
    for gradient in torch.autograd.grad(made, leaves, upstream):
        assert torch.equal(gradient, torch.where(right > 0, upstream, 0) if relu else upstream)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("shape", [*SHAPES, (0, 3, 4, 4), (2, 5, 3, 0)], ids=str)
def test_the_mask_is_that_of_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Zeros, values that float16 rounds to 0, and NaNs among them; the bits past the last channel are 0."""
    x = values(shape, dtype, 0)
    flat = x.permute(0, 2, 3, 1).reshape(-1)
    flat[::3], flat[1::5] = 0, torch.nan
    x = flat.reshape(*(shape[0], *shape[2:], shape[1])).permute(0, 3, 1, 2)
    bias = torch.full((shape[1],), 2.0**-26)
    y, mask = op._operator(x, bias, None, True, True)
    assert torch.equal(y.nan_to_num(7.0), reference(x, bias, None, True).nan_to_num(7.0))
    assert torch.equal(mask, op.reference_mask(y))
    upstream = values(shape, dtype, 1)
    made = op._gradient_operator(upstream, mask)
    assert torch.equal(made, op.reference_gradient(upstream, mask))
    assert torch.equal(made, torch.ops.aten.threshold_backward(upstream, y, 0))
    assert op._operator(x, bias, None, True, False)[1].numel() == 0


def test_what_is_kept_for_a_relu_is_its_bits() -> None:
    kept: list[Tensor] = []
    x = values((2, 32, 5, 7), torch.float16, 0).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        epilogue(x, torch.zeros(32), relu=True)
        epilogue(x, torch.zeros(32))
        epilogue(x.detach(), relu=True)
    assert [(one.dtype, one.numel()) for one in kept] == [(torch.int16, 2 * 5 * 7 * 2)]


def test_nan_stays_and_what_does_not_fit_is_named() -> None:
    x = values((1, 4, 3, 3), torch.float32, 0)
    x[0, 1, 2, 2] = torch.nan
    assert epilogue(x, relu=True).isnan().sum() == 1
    with pytest.raises(ShadeFastError, match=r"bias is \[3\]: x has 4 channels"):
        epilogue(x, torch.zeros(3))
    with pytest.raises(ShadeFastError, match=r"residual is \[1, 4, 3, 2\]"):
        epilogue(x, None, x[..., :2])
