"""The layers of a network frozen for a GPU, as functions of tensors with the gradient in the data alone.

What autograd would keep of a product for its weight's gradient is not kept: a convolution keeps the size of its input,
a ReLU a bit a value, pooling a byte a window. Features are channels-last, in the dtype of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from shade_fast.ops.epilogue import epilogue
from shade_fast.ops.group_norm import group_norm
from shade_fast.ops.layout import channels_last
from shade_fast.ops.lpips_layer import lpips_layer as layer_distance
from shade_fast.ops.max_pool import max_pool
from shade_fast.ops.relu_lpips_layer import relu_lpips_layer as relu_layer_distance
from shade_fast.runtime.cuda.attention import attention
from shade_fast.runtime.switches import products

aten = torch.ops.aten

__all__ = [
    "attention",
    "convolution",
    "epilogue",
    "linear",
    "lpips_layer",
    "max_pool",
    "norm",
    "pointwise",
    "reflection_pad",
    "relu_lpips_layer",
    "scaled",
]


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    tf32: bool | None,
    crop: Sequence[int] | None = None,
) -> Tensor:
    """torch's convolution of [B, C, h, w], with algorithms that give the same bits each time.

    crop: top, left, height and width of what is wanted of the result; None for all of it.
    """
    x = channels_last(x.to(weight.dtype))
    result: Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, list(stride), list(padding), list(dilation), groups, tf32, crop
    )
    return result


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, tf32: bool | None) -> Tensor:
    """A convolution of 1x1 pixels as a product of matrices: weight [K, C]."""
    return linear(channels_last(x).permute(0, 2, 3, 1), weight, bias, tf32).permute(0, 3, 1, 2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, tf32: bool | None) -> Tensor:
    """x · weightᵀ + bias, over the last axis."""
    result: Tensor = _Linear.apply(x.to(weight.dtype), weight, bias, tf32)  # type: ignore[no-untyped-call]
    return result


def norm(
    x: Tensor,
    bias: Tensor | None,
    addend: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    epsilon: float,
    activation: str,
    keep: bool,
    dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor]:
    """`group_norm` of [B, C, ...]."""
    shape = x.shape
    x = x.to(dtype).reshape(*shape[:2], -1, shape[-1] if x.ndim == 4 else 1)
    total, y = group_norm(
        *(x, gamma, beta),
        groups=groups,
        epsilon=epsilon,
        activation=activation,
        bias=bias,
        addend=addend,
        keep=keep,
    )
    return (None if total is None else total.reshape(shape)), y.reshape(shape)


def lpips_layer(activations: Tensor, clean: Tensor, head: Tensor) -> Tensor:
    """One layer's share of the LPIPS distance, [B]."""
    return layer_distance(activations, clean.to(activations.dtype), head)


def relu_lpips_layer(x: Tensor, bias: Tensor | None, clean: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """A ReLU's result, and its share of the LPIPS distance, [B]."""
    return relu_layer_distance(x, bias, clean.to(x.dtype), head)


def reflection_pad(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Mirrored pixels around [B, C, h, w], left, right, above and below: torch's adds up its gradient atomically."""
    result: Tensor = _Reflected.apply(x, list(sides))  # type: ignore[no-untyped-call]
    return result


def scaled(x: Tensor, scale: float) -> Tensor:
    """x, whose gradient is multiplied by a constant."""
    result: Tensor = x if scale == 1 else _Scaled.apply(x, scale)  # type: ignore[no-untyped-call]
    return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
        tf32: bool | None,
        crop: Sequence[int] | None,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.tf32, ctx.margin = x.shape[2:], tf32, None
        ctx.window = stride, padding, dilation, groups
        with products(tf32):
            result: Tensor = aten.convolution(x, weight, bias, stride, padding, dilation, False, [0, 0], groups)
        if crop is not None and tuple(result.shape[2:]) != tuple(crop[2:]):
            top, left, height, width = crop
            ctx.margin = left, result.shape[3] - left - width, top, result.shape[2] - top - height
            result = channels_last(result[..., top : top + height, left : left + width])
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """As a transposed convolution, which asks for no input: torch's gradient of a convolution takes the order of
        its input's memory, and would copy the gradient into another and back where the input is not kept."""
        (weight,) = ctx.saved_tensors
        gradient = channels_last(gradient.to(weight.dtype))
        if ctx.margin is not None:
            gradient = channels_last(functional.pad(gradient, ctx.margin))
        stride, padding, dilation, groups = ctx.window
        sides = zip(ctx.size, gradient.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        rest = [had - ((made - 1) * s - 2 * p + d * (side - 1) + 1) for had, made, side, s, p, d in sides]
        with products(ctx.tf32):
            result = aten.convolution(gradient, weight, None, stride, padding, dilation, True, rest, groups)
        return result, *[None] * 8


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, tf32: bool | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.tf32 = tf32
        with products(tf32):
            return functional.linear(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        with products(ctx.tf32):
            return gradient.to(weight.dtype) @ weight, None, None, None


class _Reflected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sides: list[int]) -> Tensor:
        batch, channels, height, width = x.shape
        left, right, top, bottom = ctx.sides = sides
        size = (batch, channels, top + height + bottom, left + width + right)
        padded = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        inside = padded[:, :, top : top + height]
        inside[..., left : left + width] = x
        for outer, inner in _mirrored(left, width, right):
            inside[..., outer] = inside[..., inner]
        for outer, inner in _mirrored(top, height, bottom):
            padded[:, :, outer] = padded[:, :, inner]
        return padded

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        left, right, top, bottom = ctx.sides
        height, width = gradient.shape[2] - top - bottom, gradient.shape[3] - left - right
        gradient = gradient.clone(memory_format=torch.channels_last)
        for outer, inner in _mirrored(top, height, bottom):
            gradient[:, :, inner] += gradient[:, :, outer]
        inside = gradient[:, :, top : top + height]
        for outer, inner in _mirrored(left, width, right):
            inside[..., inner] += inside[..., outer]
        return channels_last(inside[..., left : left + width]), None


def _mirrored(before: int, size: int, after: int) -> Iterator[tuple[int, int]]:
    """Places outside of an axis' values and the ones inside that they mirror."""
    for step in range(1, before + 1):
        yield before - step, before + step
    for step in range(1, after + 1):
        yield before + size - 1 + step, before + size - 1 - step


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient * ctx.scale, None
