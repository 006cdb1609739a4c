"""What follows a convolution: bias, residual and ReLU in one pass over its result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shade_fast.errors import ShadeFastError
from shade_fast.ops import gpu
from shade_fast.ops.layout import channels_last


def epilogue(x: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """Add a bias to each channel and another tensor to that, and cut off what is below 0.

        y = max(x + bias[c] + residual, 0)

    Args:
        x: float [B, C, h, w], channels-last; other layouts are copied.
        bias: float32 [C]. residual: as x. None for none. relu: whether negative values become 0.

    Returns:
        As x, channels-last; sums are float32, float64 for float64. The gradient in x and in the residual is one tensor;
        the bias gets none. Differentiable once.

    Where the tensors are on a GPU, in float32, float16 or bfloat16, Triton's kernel runs; elsewhere plain torch does,
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


@torch.library.custom_op("shade_fast::epilogue", mutates_args=())
def _operator(x: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool) -> Tensor:
    if not (gpu.on_gpu(x) and x.dtype in gpu.DTYPES):
        result = reference(x, bias, residual, relu)
        return result.clone() if result is x else result
    out = torch.empty_like(x)
    with gpu.selected(x):
        gpu.triton("epilogue").forward(x, bias, residual, out, relu)
    return out


@_operator.register_fake
def _(x: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool) -> Tensor:
    return torch.empty_like(x)


class _Epilogue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool) -> Tensor:
        y: Tensor = _operator(x, bias, residual, relu)
        ctx.adds = residual is not None
        ctx.save_for_backward(*([y] if relu else []))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for y in ctx.saved_tensors:
            gradient = torch.ops.aten.threshold_backward(channels_last(gradient), y, 0)
        return gradient, None, gradient if ctx.adds else None, None
