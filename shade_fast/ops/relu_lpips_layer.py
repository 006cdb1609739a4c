"""A ReLU whose result LPIPS compares with the clean image's: one pass over the features, and one for the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shade_fast.ops import epilogue, gpu, lpips_layer
from shade_fast.ops.layout import channels_last
from shade_fast.terms.errors import ShadeFastError


def relu_lpips_layer(x: Tensor, bias: Tensor | None, clean: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """Add a bias, cut off what is below 0, and measure how far that is from the clean image's.

        y = max(x + bias[c], 0),    distance = lpips_layer(y, clean, head)

    Whoever else needs y takes this one: the gradient that comes back through it is added by the pass that makes the
    distance's, and that cuts off where y is 0.

    Args:
        x: float [B, C, h, w], channels-last; other layouts are copied. bias: float32 [C], None for none.
        clean, head: as in `lpips_layer`; clean of x's dtype. Neither gets a gradient, nor the bias.

    Returns:
        y, of x's shape and dtype, channels-last, and the distance [B], float64 for float64 x, else float32.
        Differentiable once; y and clean are kept, nothing of the ReLU.

    Where the tensors are on a GPU, in float32, float16 or bfloat16, Triton's kernels run; elsewhere plain torch does,
    which is the specification.

    Raises:
        ShadeFastError: shapes, dtypes or devices do not fit, or Triton is missing on a GPU.
    """
    lpips_layer.check(x, clean, head)
    if bias is not None and bias.shape != x.shape[1:2]:
        raise ShadeFastError(f"bias is {list(bias.shape)}: x has {x.shape[1]} channels")
    result: tuple[Tensor, Tensor] = _ReluLayer.apply(  # type: ignore[no-untyped-call]
        channels_last(x), bias, channels_last(clean), head.contiguous()
    )
    return result


def reference(x: Tensor, bias: Tensor | None, clean: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """The specification, in plain torch; arguments as in `relu_lpips_layer`."""
    y = epilogue.reference(x, bias, None, relu=True)
    return y, lpips_layer.reference(y, clean, head)


def reference_gradient(
    upstream: Tensor, activations: Tensor, clean: Tensor, head: Tensor, residual: Tensor | None
) -> Tensor:
    """The gradient in x, in plain torch: activations is y, upstream the distance's, residual what comes through y."""
    sums = torch.float64 if activations.dtype == torch.float64 else torch.float32
    input_gradient = lpips_layer.reference_gradient(upstream, activations.to(sums), clean, head)
    if residual is not None:
        input_gradient = input_gradient + residual
    return channels_last(torch.where(activations <= 0, 0, input_gradient).to(activations.dtype))


@torch.library.custom_op("shade_fast::relu_lpips_layer", mutates_args=())
def _operator(x: Tensor, bias: Tensor | None, clean: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    if not gpu.has_kernels(x):
        return reference(x, bias, clean, head)
    out, distance = torch.empty_like(x), lpips_layer.new_distance(x)
    with gpu.selected(x):
        gpu.triton("relu_lpips_layer").forward(x, bias, clean, head, out, distance, lpips_layer.new_scratch(x))
    return out, distance


@_operator.register_fake
def _(x: Tensor, bias: Tensor | None, clean: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), lpips_layer.new_distance(x)


@torch.library.custom_op("shade_fast::relu_lpips_layer_gradient", mutates_args=())
def _gradient_operator(
    upstream: Tensor, activations: Tensor, clean: Tensor, head: Tensor, residual: Tensor | None
) -> Tensor:
    if not gpu.has_kernels(activations):
        return reference_gradient(upstream, activations, clean, head, residual)
    out = torch.empty_like(activations)
    with gpu.selected(activations):
        gpu.triton("relu_lpips_layer").backward(activations, clean, head, upstream.contiguous(), residual, out)
    return out


@_gradient_operator.register_fake
def _(upstream: Tensor, activations: Tensor, clean: Tensor, head: Tensor, residual: Tensor | None) -> Tensor:
    return torch.empty_like(activations)


class _ReluLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, clean: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        y, distance = _operator(x, bias, clean, head)
        ctx.save_for_backward(y, clean, head)
        ctx.set_materialize_grads(False)
        return y, distance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, residual: Tensor | None, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        y, clean, head = ctx.saved_tensors
        if upstream is None:
            upstream = lpips_layer.new_distance(y).zero_()
        residual = None if residual is None else channels_last(residual)
        return _gradient_operator(upstream, y, clean, head, residual), None, None, None
