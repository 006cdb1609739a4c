"""One layer's share of the LPIPS distance, and its gradient, each in one pass over the features, channels-last.

    distance[b] = 1/P · Σ_p Σ_c head[c] · (u - clean)²,  u = a / (|a| + 1e-10), 0 where |a| is 0
    gradient = (d - a · Σ_c(u · d) / |a|) / (|a| + 1e-10),  d = 2/P · upstream[b] · head · (u - clean)

with P pixels and |a| the length over a pixel's channels. activations a, clean and gradient: float32, float16 or
bfloat16 [B, C, h, w], in memory [B, h, w, C]; head float32 or as the activations [C]; upstream and distance float32
[B]. Everything between a load and a store is float32.

Per value of size s: distance 2s bytes read; gradient 2s read, s written. A program holds all channels of a few pixels.
Up to 1024 programs share an image; their sums are added by a second kernel in a fixed order, without atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

#: Values in a program's tile.
TILE = 2048
MOST_SPLITS = 1024


def scratch_size(images: int, pixels: int, channels: int) -> int:
    """How many float32 values of scratch memory the distance needs."""
    return images * split(pixels, channels)[0]


def forward(activations: Tensor, clean: Tensor, head: Tensor, distance: Tensor, scratch: Tensor) -> None:
    """The distance."""
    _run(activations, clean, head, head, distance, activations, scratch, measure=True, differentiate=False)


def backward(activations: Tensor, clean: Tensor, head: Tensor, upstream: Tensor, out: Tensor) -> None:
    """out = gradient in the activations of Σ upstream · distance. out may be the activations."""
    _run(activations, clean, head, upstream, head, out, head, measure=False, differentiate=True)


def split(pixels: int, channels: int) -> tuple[int, int]:
    """How many programs share an image's pixels, and how many tiles each of them works on."""
    rows = tile_sides(channels)["pixel_block"]
    blocks = max(triton.cdiv(triton.cdiv(pixels, rows), MOST_SPLITS), 1)
    return triton.cdiv(pixels, rows * blocks), blocks


def tile_sides(channels: int) -> dict[str, int]:
    """Pixels and channels of a tile, powers of two."""
    width = triton.next_power_of_2(channels)
    return {"pixel_block": max(TILE // width, 1), "channel_block": width}


def _run(
    activations: Tensor,
    clean: Tensor,
    head: Tensor,
    upstream: Tensor,
    distance: Tensor,
    out: Tensor,
    scratch: Tensor,
    *,
    measure: bool,
    differentiate: bool,
) -> None:
    images, channels, height, width = activations.shape
    pixels = height * width
    splits, blocks = split(pixels, channels)
    if activations.numel():
        layer_kernel[(splits, images)](
            *(activations, clean, head, upstream, scratch, out, pixels, channels, blocks),
            measure=measure,
            differentiate=differentiate,
            **tile_sides(channels),
        )
    if measure and images:
        mean_kernel[(images,)](scratch, distance, splits, pixels, MOST_SPLITS)


@triton.jit
def layer_kernel(
    activations,
    clean,
    head,
    upstream,
    partial,
    gradient,
    pixels,
    channels,
    blocks,
    measure: tl.constexpr,
    differentiate: tl.constexpr,
    pixel_block: tl.constexpr,
    channel_block: tl.constexpr,
):
    """The sum over this program's pixels, partial [B, splits], and their gradient."""
    part = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, channel_block)
    known = channel < channels
    weight = tl.load(head + channel, mask=known, other=0.0).to(tl.float32)
    first = part * blocks * pixel_block
    origin = (image * pixels + first) * channels
    if differentiate:
        factor = 2.0 * tl.load(upstream + image) / pixels
    total = tl.zeros([pixel_block], dtype=tl.float32)
    for block in range(blocks):
        pixel = block * pixel_block + tl.arange(0, pixel_block)
        inside = (first + pixel < pixels)[:, None] & known[None, :]
        offset = pixel[:, None] * channels + channel[None, :]
        value = tl.load(activations + origin + offset, mask=inside, other=0.0).to(tl.float32)
        wanted = tl.load(clean + origin + offset, mask=inside, other=0.0).to(tl.float32)
        unit, length, inverse = direction(value)
        weighted = weight[None, :] * (unit - wanted)
        if measure:
            total += tl.sum(weighted * (unit - wanted), axis=1)
        if differentiate:
            dx = slope(value, unit, length, inverse, factor * weighted)
            tl.store(gradient + origin + offset, dx.to(gradient.dtype.element_ty), mask=inside)
    if measure:
        tl.store(partial + image * tl.num_programs(0) + part, tl.sum(total))


@triton.jit
def mean_kernel(partial, distance, splits, pixels, most_splits: tl.constexpr):
    """The mean over an image's pixels."""
    image = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, most_splits)
    sums = tl.load(partial + image * splits + part, mask=part < splits, other=0.0)
    tl.store(distance + image, tl.sum(sums) / pixels)


@triton.jit
def direction(value):
    """Unit, length and what the value is multiplied by for the unit, of a tile [pixels, C]."""
    length = tl.sqrt_rn(tl.sum(value * value, axis=1))
    inverse = tl.where(length == 0.0, 0.0, 1.0 / (length + 1e-10))
    return value * inverse[:, None], length, inverse


@triton.jit
def slope(value, unit, length, inverse, outer):
    """The gradient in a tile's values, of the gradient in their unit."""
    inner = tl.sum(unit * outer, axis=1) / tl.where(length == 0.0, 1.0, length)
    return (outer - value * inner[:, None]) * inverse[:, None]
