"""What ONNX has no operator for, or a slow one, in terms of what it has; gradients are those in the data alone.

    convolution, stride 1   dx = convolution of dy with the weight rotated by half a turn, its channels exchanged
    convolution, stride s   dx = transposed convolution of dy with the weight
    group norm              y = a[c]·(x - mean) + b[c], with a from the variance of each group
    ReLU, SiLU              dx = dy·clip(1e30·x, 0, 1),  dx = dy·σ(x)·(1 + x - silu(x))

All take and give plain tensors; what comes of the weights alone is folded to constants after tracing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions

from shade_fast.ops import lpips_layer

aten = torch.ops.aten

#: Of ONNX's own operators; no others are used.
OPSET = 18


def table() -> dict[Any, Callable[..., Any]]:
    """Decompositions for `make_fx`, by operator."""
    return {
        **core_aten_decompositions(),
        aten.convolution_backward.default: convolution_backward,
        aten.native_group_norm.default: group_norm,
        aten.native_group_norm_backward.default: group_norm_backward,
        aten.threshold_backward.default: threshold_backward,
        aten.silu.default: silu,
        aten.silu_backward.default: silu_backward,
        torch.ops.shade_fast.lpips_layer.default: lpips_layer.reference,
        torch.ops.shade_fast.lpips_layer_gradient.default: lpips_layer.reference_gradient,
        torch.ops.shade_fast.unit_length.default: lpips_layer.reference_unit,
    }


def convolution_backward(
    gradient: Tensor,
    inputs: Tensor,
    weight: Tensor,
    _: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    wanted: list[bool],
) -> tuple[Tensor, None, None]:
    """The gradient in the inputs [B, C, h, w] of a convolution with weight [K, C / groups, ...]."""
    if wanted[1] or wanted[2]:
        raise NotImplementedError("the gradient of weights")
    axes = range(weight.ndim - 2)
    if transposed:
        back = aten.convolution(gradient, weight, None, stride, padding, dilation, False, [0] * len(axes), groups)
        return back, None, None
    sides = [inputs.shape[2 + axis] for axis in axes]
    reach = [dilation[axis] * (weight.shape[2 + axis] - 1) for axis in axes]
    if all(step == 1 for step in stride) and all(reach[axis] >= padding[axis] for axis in axes):
        around = [reach[axis] - padding[axis] for axis in axes]
        back = aten.convolution(
            gradient, rotated(weight, groups), None, stride, around, dilation, False, [0] * len(axes), groups
        )
    else:
        missing = [
            sides[axis] - ((gradient.shape[2 + axis] - 1) * stride[axis] - 2 * padding[axis] + reach[axis] + 1)
            for axis in axes
        ]
        back = aten.convolution(gradient, weight, None, stride, padding, dilation, True, missing, groups)
    return back, None, None


def rotated(weight: Tensor, groups: int) -> Tensor:
    """[K, C / groups, ...] -> [C, K / groups, ...], turned by half a turn."""
    filters, channels, *kernel = weight.shape
    turned = weight.flip(list(range(2, weight.ndim)))
    turned = turned.reshape(groups, filters // groups, channels, *kernel).transpose(1, 2)
    return turned.reshape(groups * channels, filters // groups, *kernel)


def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    batch: int,
    channels: int,
    _: int,
    groups: int,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and mean and 1 / √(variance + epsilon), [B, groups]."""
    grouped = x.reshape(batch, groups, -1)
    mean = grouped.mean(2)
    centred = _centred(x, mean)
    # The sum of squares in two steps: one of all of a group's values in a row would lose digits.
    size = grouped.shape[2]
    lengths = torch.linalg.vector_norm(centred.reshape(batch, channels, -1), dim=2)
    variance = lengths.square().reshape(batch, groups, -1).sum(2) / size
    inverse = (variance + epsilon).rsqrt()
    scale = _of_channels(inverse, weight, channels)
    result = centred * scale[:, :, *[None] * (x.ndim - 2)]
    if bias is not None:
        result = result + bias.reshape(1, channels, *[1] * (x.ndim - 2))
    return result, mean, inverse


def group_norm_backward(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    batch: int,
    channels: int,
    _: int,
    groups: int,
    wanted: list[bool],
) -> tuple[Tensor, None, None]:
    """dx = a[c]·dy + p[g]·(x - mean) + q[g], with p and q from sums over each channel of dy and dy·(x - mean)."""
    if wanted[1] or wanted[2]:
        raise NotImplementedError("the gradient of weights")
    centred = _centred(x, mean)
    size = x.numel() // (batch * groups)
    gamma = 1.0 if weight is None else weight

    def mean_of(values: Tensor) -> Tensor:
        sums = values.reshape(batch, channels, -1).sum(2) * gamma
        return sums.reshape(batch, groups, -1).sum(2) / size

    first, second = mean_of(gradient), mean_of(gradient * centred)
    ones = [1] * (x.ndim - 2)
    scale = _of_channels(inverse, weight, channels).reshape(batch, channels, *ones)
    slope = _of_channels(-second * inverse * inverse * inverse, None, channels).reshape(batch, channels, *ones)
    shift = _of_channels(-first * inverse, None, channels).reshape(batch, channels, *ones)
    return gradient * scale + (centred * slope + shift), None, None


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    batch, groups = mean.shape
    return (x.reshape(batch, groups, -1) - mean[:, :, None]).reshape(x.shape)


def _of_channels(values: Tensor, weight: Tensor | None, channels: int) -> Tensor:
    """[B, groups] -> [B, C], times the weight."""
    batch, groups = values.shape
    spread = values[:, :, None].expand(batch, groups, channels // groups).reshape(batch, channels)
    return spread if weight is None else spread * weight


def threshold_backward(gradient: Tensor, x: Tensor, threshold: float) -> Tensor:
    """dy where x > threshold, else 0."""
    if threshold != 0:
        return torch.where(x > threshold, gradient, 0)
    # Comparisons and choices run on one core in ONNX Runtime, this on all: 3 ms for what takes 34.
    mask: Tensor = torch.onnx.ops.symbolic(
        "HardSigmoid", [x], {"alpha": 1e30, "beta": 0.0}, dtype=x.dtype, shape=list(x.shape), version=OPSET
    )
    return gradient * mask


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def silu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(x)
    return gradient * (sigmoid * (1 + (x - x * sigmoid)))
