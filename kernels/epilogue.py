"""What follows a convolution in one pass over its result, channels-last: bias, residual, ReLU; and the ReLU's gradient.

    y = relu(x + bias[c] + residual), each part where it is asked for
    dx = gradient where the mask has a 1, else 0

x, residual, out and gradient: float32, float16 or bfloat16 [B, C, h, w], in memory [B, h, w, C]; bias float32 [C];
mask int16 [B, h, w, ceil(C / 16)], channel c in bit c % 16 of word c // 16, 0 where y is at most 0 and past the last
channel. Everything between a load and a store is float32. Per value of size s: s bytes read, s more with a residual, s
written and a bit with the mask; backward s and a bit read, s written.
"""

from __future__ import annotations

import triton
import triton.language as tl
from shade_fast.kernels.group_norm import TILE, tile_sides
from torch import Tensor

WARPS = 8
#: Channels in a word of the mask.
BITS = tl.constexpr(16)


def forward(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor, relu: bool, mask: Tensor | None = None
) -> None:
    """out = y, and the mask of its ReLU. out may be x or the residual."""
    if not x.numel():
        return
    tile = relu_tile(x.shape[1])
    epilogue_kernel[_grid(x, tile)](
        *(x, x if bias is None else bias, x if residual is None else residual, out, x if mask is None else mask),
        *_sizes(x),
        shift=bias is not None,
        add=residual is not None,
        relu=relu,
        mark=mask is not None,
        **tile,
        num_warps=WARPS,
    )


def backward(gradient: Tensor, mask: Tensor, out: Tensor) -> None:
    """out = dx. out may be the gradient."""
    if not gradient.numel():
        return
    tile = relu_tile(gradient.shape[1])
    relu_gradient_kernel[_grid(gradient, tile)](
        *(gradient, mask, out, *_sizes(gradient)),
        **tile,
        num_warps=WARPS,
    )


def relu_tile(channels: int) -> dict[str, int]:
    """Pixels and channels of a tile, powers of two: whole words of the mask."""
    width = max(tile_sides(channels)["channel_block"], BITS.value)
    return {"pixel_block": TILE // width, "channel_block": width}


def _sizes(x: Tensor) -> tuple[int, int]:
    images, channels, height, width = x.shape
    return images * height * width, channels


def _grid(x: Tensor, tile: dict[str, int]) -> tuple[int, int]:
    pixels, channels = _sizes(x)
    return triton.cdiv(pixels, tile["pixel_block"]), triton.cdiv(channels, tile["channel_block"])


@triton.jit
def epilogue_kernel(
    x,
    bias,
    residual,
    out,
    mask,
    pixels,
    channels,
    shift: tl.constexpr,
    add: tl.constexpr,
    relu: tl.constexpr,
    mark: tl.constexpr,
    pixel_block: tl.constexpr,
    channel_block: tl.constexpr,
):
    """One tile of y."""
    first = tl.program_id(0).to(tl.int64) * pixel_block
    channel = tl.program_id(1) * channel_block + tl.arange(0, channel_block)
    known = channel < channels
    pixel = tl.arange(0, pixel_block)
    inside = (first + pixel < pixels)[:, None] & known[None, :]
    place = first * channels + pixel[:, None] * channels + channel[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if shift:
        value += tl.load(bias + channel, mask=known, other=0.0)[None, :]
    if add:
        value += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    if relu:
        value = tl.where(value < 0.0, 0.0, value)  # a NaN stays one
    made = value.to(out.dtype.element_ty)
    tl.store(out + place, made, mask=inside)
    if mark:
        # A NaN lets its gradient through, as in torch. What rounding makes 0 does not.
        passes = tl.where(made.to(tl.float32) <= 0.0, 0, 1) & inside.to(tl.int32)
        bits = tl.reshape(passes, [pixel_block, channel_block // BITS, BITS]) << tl.arange(0, BITS)[None, None, :]
        slots, held = words(first, pixels, channels, pixel_block, channel_block)
        tl.store(mask + slots, tl.sum(bits, axis=2).to(tl.int16), mask=held)


@triton.jit
def relu_gradient_kernel(gradient, mask, out, pixels, channels, pixel_block: tl.constexpr, channel_block: tl.constexpr):
    """One tile of dx."""
    first = tl.program_id(0).to(tl.int64) * pixel_block
    channel = tl.program_id(1) * channel_block + tl.arange(0, channel_block)
    pixel = tl.arange(0, pixel_block)
    inside = (first + pixel < pixels)[:, None] & (channel < channels)[None, :]
    place = first * channels + pixel[:, None] * channels + channel[None, :]
    upstream = tl.load(gradient + place, mask=inside, other=0.0)
    slots, held = words(first, pixels, channels, pixel_block, channel_block)
    word = tl.load(mask + slots, mask=held, other=0).to(tl.int32)
    bits = (word[:, :, None] >> tl.arange(0, BITS)[None, None, :]) & 1
    passes = tl.reshape(bits, [pixel_block, channel_block])
    tl.store(out + place, tl.where(passes != 0, upstream, 0.0).to(out.dtype.element_ty), mask=inside)


@triton.jit
def words(first, pixels, channels, pixel_block: tl.constexpr, channel_block: tl.constexpr):
    """Where the mask's words of a tile are, and which of them there are."""
    row = tl.cdiv(channels, BITS)
    word = tl.program_id(1) * (channel_block // BITS) + tl.arange(0, channel_block // BITS)
    pixel = tl.arange(0, pixel_block)
    held = (first + pixel < pixels)[:, None] & (word < row)[None, :]
    return first * row + pixel[:, None] * row + word[None, :], held
