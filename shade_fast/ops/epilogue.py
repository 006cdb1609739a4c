"""What follows a convolution: bias, residual and ReLU in one pass over its result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shade_fast.ops import gpu
from shade_fast.ops.finish import mask_shape, pack_mask, unpack_mask
from shade_fast.ops.layout import channels_last
from shade_fast.terms.errors import ShadeFastError


def epilogue(x: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """Add a bias to each channel and another tensor to that, and cut off what is below 0.

        y = max(x + bias[c] + residual, 0)

    Args:
        x: float [B, C, h, w], channels-last; other layouts are copied.
        bias: float32 [C]. residual: as x. None for none. relu: whether negative values become 0.

    Returns:
        As x, channels-last; sums are float32, float64 for float64. The gradient in x and in the residual is one tensor;
        the bias gets none. Differentiable once: of a ReLU one bit a value is kept.

    Where the tensors are on a GPU, in float32, float16 or bfloat16, Triton's kernels run; elsewhere plain torch does,
    which is the specification.

    Raises:
        ShadeFastError: shapes or devices do not fit, or Triton is missing on a GPU.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ShadeFastError(f"x is {x.dtype} {list(x.shape)}: give float [B, C, h, w]")
    if bias is not None and bias.shape != x.shape[1:2]:
        raise ShadeFastError(f"bias is {list(bias.shape)}: x has {x.shape[1]} channels")
    if residual is not None:
        if residual.shape != x.shape or residual.device != x.device:
            raise ShadeFastError(
                f"residual is {list(residual.shape)} on {residual.device}: give {list(x.shape)} on {x.device}, as x is"
            )
        residual = channels_last(residual.to(x.dtype))
    result: Tensor = _Epilogue.apply(channels_last(x), bias, residual, relu)  # type: ignore[no-untyped-call]
    return result


def reference(x: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool) -> Tensor:
    """The specification, in plain torch; arguments as in `epilogue`."""
    value = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    if bias is not None:
        value = value + bias[:, None, None]
    if residual is not None:
        value = value + residual
    return channels_last((value.clamp_min(0) if relu else value).to(x.dtype))


def reference_mask(y: Tensor) -> Tensor:
    """Where a ReLU of result y passes its gradient on, a NaN's too: a mask as in `ops.finish`."""
    return pack_mask(~(y <= 0))


def reference_gradient(gradient: Tensor, mask: Tensor) -> Tensor:
    """The gradient in what the ReLU was given, in plain torch."""
    return channels_last(torch.where(unpack_mask(mask, gradient.shape[1]), gradient, 0))


@torch.library.custom_op("shade_fast::epilogue", mutates_args=())
def _operator(x: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool, mark: bool) -> tuple[Tensor, Tensor]:
    """y and, with `mark`, the mask of its ReLU; else that is empty."""
    if not gpu.has_kernels(x):
        result = reference(x, bias, residual, relu)
        return result.clone() if result is x else result, reference_mask(result) if mark else _new_mask(x, mark)
    out, mask = torch.empty_like(x), _new_mask(x, mark)
    with gpu.selected(x):
        gpu.triton("epilogue").forward(x, bias, residual, out, relu, mask if mark else None)
    return out, mask


@_operator.register_fake
def _(x: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool, mark: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _new_mask(x, mark)


@torch.library.custom_op("shade_fast::relu_gradient", mutates_args=())
def _gradient_operator(gradient: Tensor, mask: Tensor) -> Tensor:
    if not gpu.has_kernels(gradient):
        return reference_gradient(gradient, mask)
    out = torch.empty_like(gradient)
    with gpu.selected(gradient):
        gpu.triton("epilogue").backward(gradient, mask, out)
    return out


@_gradient_operator.register_fake
def _(gradient: Tensor, mask: Tensor) -> Tensor:
    return torch.empty_like(gradient)


class _Epilogue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool) -> Tensor:
        mark = relu and any(ctx.needs_input_grad)
        y: Tensor
        y, mask = _operator(x, bias, residual, relu, mark)
        ctx.adds = residual is not None
        ctx.save_for_backward(*([mask] if mark else []))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for mask in ctx.saved_tensors:
            gradient = _gradient_operator(channels_last(gradient), mask)
        return gradient, None, gradient if ctx.adds else None, None


def _new_mask(x: Tensor, mark: bool) -> Tensor:
    return x.new_empty(mask_shape(x.shape) if mark else 0, dtype=torch.int16)
