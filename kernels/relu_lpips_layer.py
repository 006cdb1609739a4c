"""A ReLU, with the bias before it, whose result LPIPS compares: distance and gradient in one pass each, channels-last.

    y = relu(x + bias[c]),  distance[b] as in lpips_layer.py with the activations y
    dx = (gradient of Σ upstream · distance in y, + residual) where y is above 0, else 0

x, y, clean, residual and out: float32, float16 or bfloat16 [B, C, h, w], in memory [B, h, w, C]; bias float32 [C]; head
float32 or as x [C]; upstream and distance float32 [B]. The residual is the gradient of whatever else takes y.
Everything between a load and a store is float32.

Per value of size s: forward 2s bytes read, s written; backward 2s read, s written, s read with a residual. Programs and
their sums are those of lpips_layer.py.
"""

from __future__ import annotations

import triton
import triton.language as tl
from shade_fast.kernels.lpips_layer import MOST_SPLITS, direction, mean_kernel, slope, split, tile_sides
from torch import Tensor

#: Of 16 values a thread, three feature maps and what is made of them do not stay in registers on sm_100; of 8, those of
#: float32's forward do not. The forward's are by the bytes of a value.
FORWARD_WARPS, BACKWARD_WARPS = {2: 8, 4: 4}, 8


def forward(
    x: Tensor, bias: Tensor | None, clean: Tensor, head: Tensor, out: Tensor, distance: Tensor, scratch: Tensor
) -> None:
    """out = y, and the distance; scratch is lpips_layer's. out may be x."""
    images, channels, height, width = x.shape
    pixels = height * width
    splits, blocks = split(pixels, channels)
    if x.numel():
        forward_kernel[(splits, images)](
            *(x, head if bias is None else bias, clean, head, out, scratch, pixels, channels, blocks),
            shift=bias is not None,
            **tile_sides(channels),
            num_warps=FORWARD_WARPS[x.element_size()],
        )
    if images:
        mean_kernel[(images,)](scratch, distance, splits, pixels, MOST_SPLITS)


def backward(
    activations: Tensor, clean: Tensor, head: Tensor, upstream: Tensor, residual: Tensor | None, out: Tensor
) -> None:
    """out = dx, the activations being y. out may be any of the feature maps."""
    images, channels, height, width = activations.shape
    pixels = height * width
    splits, blocks = split(pixels, channels)
    if activations.numel():
        backward_kernel[(splits, images)](
            *(activations, clean, head, upstream, out if residual is None else residual, out),
            *(pixels, channels, blocks),
            add=residual is not None,
            **tile_sides(channels),
            num_warps=BACKWARD_WARPS,
        )


@triton.jit
def forward_kernel(
    x,
    bias,
    clean,
    head,
    out,
    partial,
    pixels,
    channels,
    blocks,
    shift: tl.constexpr,
    pixel_block: tl.constexpr,
    channel_block: tl.constexpr,
):
    """y of this program's pixels, and the sum over them: partial [B, splits]."""
    part = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, channel_block)
    known = channel < channels
    weight = tl.load(head + channel, mask=known, other=0.0).to(tl.float32)
    if shift:
        offsets = tl.load(bias + channel, mask=known, other=0.0)
    first = part * blocks * pixel_block
    origin = (image * pixels + first) * channels
    total = tl.zeros([pixel_block], dtype=tl.float32)
    for block in range(blocks):
        pixel = block * pixel_block + tl.arange(0, pixel_block)
        inside = (first + pixel < pixels)[:, None] & known[None, :]
        place = origin + pixel[:, None] * channels + channel[None, :]
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        wanted = tl.load(clean + place, mask=inside, other=0.0).to(tl.float32)
        if shift:
            value += offsets[None, :]
        made = tl.where(value < 0.0, 0.0, value).to(out.dtype.element_ty)  # a NaN stays one
        tl.store(out + place, made, mask=inside)
        # Pixels past the last have the bias alone: they count for nothing.
        unit, _, _ = direction(tl.where(inside, made.to(tl.float32), 0.0))
        total += tl.sum(weight[None, :] * (unit - wanted) * (unit - wanted), axis=1)
    tl.store(partial + image * tl.num_programs(0) + part, tl.sum(total))


@triton.jit
def backward_kernel(
    activations,
    clean,
    head,
    upstream,
    residual,
    out,
    pixels,
    channels,
    blocks,
    add: tl.constexpr,
    pixel_block: tl.constexpr,
    channel_block: tl.constexpr,
):
    """dx of this program's pixels."""
    image = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, channel_block)
    known = channel < channels
    weight = tl.load(head + channel, mask=known, other=0.0).to(tl.float32)
    factor = 2.0 * tl.load(upstream + image) / pixels
    first = tl.program_id(0) * blocks * pixel_block
    origin = (image * pixels + first) * channels
    for block in range(blocks):
        pixel = block * pixel_block + tl.arange(0, pixel_block)
        inside = (first + pixel < pixels)[:, None] & known[None, :]
        place = origin + pixel[:, None] * channels + channel[None, :]
        value = tl.load(activations + place, mask=inside, other=0.0).to(tl.float32)
        wanted = tl.load(clean + place, mask=inside, other=0.0).to(tl.float32)
        unit, length, inverse = direction(value)
        dx = slope(value, unit, length, inverse, factor * weight[None, :] * (unit - wanted))
        if add:
            dx += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + place, tl.where(value <= 0.0, 0.0, dx).to(out.dtype.element_ty), mask=inside)
