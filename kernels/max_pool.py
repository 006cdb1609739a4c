"""Max pooling, channels-last, with the place of each window's winner, and its gradient, which takes that place alone.

    y[o] = max over i of x[o·stride - padding + i],  index[o] = the first such i, row by row
    dx[p] = Σ of gradient[o] over the windows o whose winner is p

o, p and i are of two axes, kernel · kernel pixels a window; what lies outside the image is -∞, a NaN counts as the
largest. x, y, gradient and out: float32, float16 or bfloat16 [B, C, h, w] and [B, C, h', w'], in memory [B, h, w, C];
index uint8 [B, h', w', C], sums float32. Per value of x, of size s, and window, forward: s bytes read, s and 1 written
a window; backward: s and 1 read a window, s written. A pixel's windows are looked at one after the other, without
atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl
from shade_fast.kernels.group_norm import tile_sides
from torch import Tensor

WARPS = 8


def forward(x: Tensor, out: Tensor, index: Tensor | None, kernel: int, stride: int, padding: int) -> None:
    """out = y, and the index where it is asked for."""
    channels, height, width = x.shape[1:]
    rows, columns = out.shape[2:]
    if not out.numel():
        return
    tile = tile_sides(channels)
    max_pool_kernel[_grid(out, tile)](
        *(x, out, x if index is None else index, channels, height, width, rows, columns),
        *(stride, padding),
        kernel=kernel,
        mark=index is not None,
        **tile,
        num_warps=WARPS,
    )


def backward(gradient: Tensor, index: Tensor, out: Tensor, kernel: int, stride: int, padding: int) -> None:
    """out = dx."""
    channels, height, width = out.shape[1:]
    rows, columns = gradient.shape[2:]
    if not out.numel():
        return
    tile = tile_sides(channels)
    max_pool_gradient_kernel[_grid(out, tile)](
        *(gradient, index, out, channels, height, width, rows, columns),
        *(stride, padding),
        kernel=kernel,
        reach=triton.cdiv(kernel, stride),
        **tile,
        num_warps=WARPS,
    )


def _grid(written: Tensor, tile: dict[str, int]) -> tuple[int, int, int]:
    images, channels, height, width = written.shape
    return triton.cdiv(height * width, tile["pixel_block"]), triton.cdiv(channels, tile["channel_block"]), images


@triton.jit
def max_pool_kernel(
    x,
    out,
    index,
    channels,
    height,
    width,
    rows,
    columns,
    stride,
    padding,
    kernel: tl.constexpr,
    mark: tl.constexpr,
    pixel_block: tl.constexpr,
    channel_block: tl.constexpr,
):
    """One tile of windows."""
    image = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * channel_block + tl.arange(0, channel_block)
    known = channel < channels
    window = tl.program_id(0) * pixel_block + tl.arange(0, pixel_block)
    there = window < rows * columns
    top = window // columns * stride - padding
    left = window % columns * stride - padding
    best = tl.full([pixel_block, channel_block], float("-inf"), tl.float32)
    winner = tl.zeros([pixel_block, channel_block], dtype=tl.int32)
    for i in tl.static_range(kernel):
        for j in tl.static_range(kernel):
            row, column = top + i, left + j
            held = there & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = (image * height * width + row * width + column) * channels
            inside = held[:, None] & known[None, :]
            value = tl.load(x + place[:, None] + channel[None, :], mask=inside, other=float("-inf")).to(tl.float32)
            larger = (value > best) | ((value != value) & (best == best))
            best = tl.where(larger, value, best)
            winner = tl.where(larger, i * kernel + j, winner)
    slot = ((image * rows * columns + window) * channels)[:, None] + channel[None, :]
    inside = there[:, None] & known[None, :]
    tl.store(out + slot, best.to(out.dtype.element_ty), mask=inside)
    if mark:
        tl.store(index + slot, winner.to(tl.uint8), mask=inside)


@triton.jit
def max_pool_gradient_kernel(
    gradient,
    index,
    out,
    channels,
    height,
    width,
    rows,
    columns,
    stride,
    padding,
    kernel: tl.constexpr,
    reach: tl.constexpr,
    pixel_block: tl.constexpr,
    channel_block: tl.constexpr,
):
    """One tile of dx; up to reach · reach windows hold a pixel."""
    image = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * channel_block + tl.arange(0, channel_block)
    known = channel < channels
    pixel = tl.program_id(0) * pixel_block + tl.arange(0, pixel_block)
    there = pixel < height * width
    down = pixel // width + padding
    across = pixel % width + padding
    total = tl.zeros([pixel_block, channel_block], dtype=tl.float32)
    for a in tl.static_range(reach):
        for b in tl.static_range(reach):
            row, column = down // stride - a, across // stride - b
            i, j = down - row * stride, across - column * stride
            held = there & (row >= 0) & (row < rows) & (column >= 0) & (column < columns) & (i < kernel) & (j < kernel)
            inside = held[:, None] & known[None, :]
            slot = ((image * rows * columns + row * columns + column) * channels)[:, None] + channel[None, :]
            winner = tl.load(index + slot, mask=inside, other=255).to(tl.int32)
            share = tl.load(gradient + slot, mask=inside, other=0.0).to(tl.float32)
            total += tl.where(winner == (i * kernel + j)[:, None], share, 0.0)
    place = ((image * height * width + pixel) * channels)[:, None] + channel[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=there[:, None] & known[None, :])
