"""What ONNX has no operator for, or a slow one, in terms of what it has; gradients are those in the data alone.

    convolution, stride 1   dx = convolution of dy with the weight rotated by half a turn, its channels exchanged
    convolution, stride s   dx = transposed convolution of dy with the weight
    group norm              y = a[c]·(x - mean) + b[c], with a from the variance of each group
    max pooling             dx from what equals the maximum, without indices
    ReLU, SiLU              dx = dy·clip(1e30·x, 0, 1),  dx = dy·σ(x)·(1 + x - silu(x))

All take and give plain tensors; what comes of the weights alone is folded to constants after tracing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch.nn import functional

from shade_fast.ops import lpips_layer

aten = torch.ops.aten

#: Of ONNX's own operators; no others are used. Convolutions of bfloat16 are newer.
OPSET, OPSET_OF_BFLOAT16 = 18, 22


def table() -> dict[Any, Callable[..., Any]]:
    """Decompositions for `make_fx`, by operator."""
    # Padding with mirrored edges has a form in ONNX.
    others = {
        op: body for op, body in {**core_aten_decompositions()}.items() if op is not aten.reflection_pad2d.default
    }
    return {
        **others,
        aten.convolution_backward.default: convolution_backward,
        aten.native_group_norm.default: group_norm,
        aten.native_group_norm_backward.default: group_norm_backward,
        aten.threshold_backward.default: threshold_backward,
        aten.max_pool2d_with_indices_backward.default: max_pool_backward,
        aten.reflection_pad2d_backward.default: reflection_pad_backward,
        aten.silu.default: silu,
        aten.silu_backward.default: silu_backward,
        torch.ops.shade_fast.widen.default: lambda values: values.float(),
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
    """The result, and mean and 1 / √(variance + epsilon), [B, groups]; in float32 but for the result."""
    values = x.float()
    grouped = values.reshape(batch, groups, -1)
    mean = grouped.mean(2)
    centred = _centred(values, mean)
    # The sum of squares in two steps: one of all of a group's values in a row would lose digits.
    size = grouped.shape[2]
    lengths = torch.linalg.vector_norm(centred.reshape(batch, channels, -1), dim=2)
    variance = lengths.square().reshape(batch, groups, -1).sum(2) / size
    inverse = (variance + epsilon).rsqrt()
    scale = _of_channels(inverse, weight, channels)
    result = centred * scale[:, :, *[None] * (x.ndim - 2)]
    if bias is not None:
        result = result + bias.reshape(1, channels, *[1] * (x.ndim - 2))
    return result.to(x.dtype), mean, inverse


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
    dtype = x.dtype
    x, gradient = x.float(), gradient.float()
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
    return (gradient * scale + (centred * slope + shift)).to(dtype), None, None


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
    if threshold != 0 or x.dtype != torch.float32:
        return torch.where(x > threshold, gradient, 0)
    # Comparisons and choices run on one of a CPU's cores in ONNX Runtime, this on all: 3 ms for what takes 34.
    return gradient * clipped_line(x, 1e30, 0.0)


def clipped_line(x: Tensor, slope: float, shift: float) -> Tensor:
    """clip(slope·x + shift, 0, 1), as one operator; float32, since no other type holds the slopes."""
    attributes: dict[str, Any] = {"alpha": slope, "beta": shift}
    result: Tensor = torch.onnx.ops.symbolic(
        "HardSigmoid", [x], attributes, dtype=x.dtype, shape=x.shape, version=OPSET
    )
    return result


def _zero(x: Tensor) -> Tensor:
    """1 where x is 0, else, x being positive, 0."""
    return clipped_line(x, -1e30, 1.0) if x.dtype == torch.float32 else (x == 0).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def silu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(x)
    return gradient * (sigmoid * (1 + (x - x * sigmoid)))


def max_pool_backward(
    gradient: Tensor,
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """dy where x is the first of its window's largest, summed over the windows."""
    stride = stride or kernel
    pooled = aten.max_pool2d_with_indices(x, kernel, stride, padding, dilation, ceil_mode)[0]
    sides, windows = x.shape[2:], pooled.shape[2:]
    # What the windows reach over: pixels around x, and where the last of x are in none, less than x.
    reach = [(windows[axis] - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1 for axis in (0, 1)]
    after = [reach[axis] - sides[axis] - padding[axis] for axis in (0, 1)]
    around = [padding[1], max(after[1], 0), padding[0], max(after[0], 0)]
    if any(around):
        x = functional.pad(x, around, value=-torch.inf)
    rest, parts = gradient, []
    places = [(down * dilation[0], across * dilation[1]) for down in range(kernel[0]) for across in range(kernel[1])]
    for down, across in places:
        rows = slice(down, down + stride[0] * (windows[0] - 1) + 1, stride[0])
        columns = slice(across, across + stride[1] * (windows[1] - 1) + 1, stride[1])
        part = rest * _zero(pooled - x[:, :, rows, columns])
        rest = rest - part
        parts.append(part)
    batch, channels = x.shape[:2]
    if stride == kernel and dilation == [1, 1]:
        stacked = torch.stack(parts, dim=2).reshape(batch, channels, *kernel, *windows)
        whole = stacked.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels, *reach)
    else:
        ends = [(kernel[axis] - 1) * dilation[axis] for axis in (0, 1)]
        grown = [
            functional.pad(_apart(part, stride), [across, ends[1] - across, down, ends[0] - down])
            for part, (down, across) in zip(parts, places, strict=True)
        ]
        whole = functools.reduce(torch.add, grown)
    inside = whole[:, :, padding[0] : padding[0] + sides[0], padding[1] : padding[1] + sides[1]]
    return functional.pad(inside, [0, sides[1] - inside.shape[3], 0, sides[0] - inside.shape[2]])


def _apart(x: Tensor, stride: list[int]) -> Tensor:
    """[B, C, h, w] with stride - 1 zeros between rows and between columns."""
    if stride == [1, 1]:
        return x
    batch, channels, height, width = x.shape
    spread = functional.pad(x.reshape(batch, channels, height, 1, width, 1), [0, stride[1] - 1, 0, 0, 0, stride[0] - 1])
    rows, columns = ((side - 1) * step + 1 for side, step in zip((height, width), stride, strict=True))
    return spread.reshape(batch, channels, height * stride[0], width * stride[1])[:, :, :rows, :columns]


def reflection_pad_backward(gradient: Tensor, x: Tensor, padding: list[int]) -> Tensor:
    """What was mirrored goes back to where it came from."""
    for axis, (before, after) in zip((2, 3), (padding[2:], padding[:2]), strict=True):
        side = x.shape[axis]
        kept = gradient.narrow(axis, before, side)
        left = gradient.narrow(axis, 0, before).flip(axis)
        right = gradient.narrow(axis, before + side, after).flip(axis)
        for edge, start in ((left, 1), (right, side - 1 - after)):
            around = [start, side - start - edge.shape[axis]]
            kept = kept + functional.pad(edge, around if axis == 3 else [0, 0, *around])
        gradient = kept
    return gradient
