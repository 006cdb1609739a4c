"""What follows a convolution in one pass over its result, channels-last: bias, residual, ReLU.

    y = relu(x + bias[c] + residual), each part where it is asked for

x, residual and out: float32, float16 or bfloat16 [B, C, h, w], in memory [B, h, w, C]; bias float32 [C]. Everything
between a load and a store is float32. Per value of size s: s bytes read, s more with a residual, s written.
"""

from __future__ import annotations

import triton
import triton.language as tl
from shade_fast.kernels.group_norm_silu import tile_sides
from torch import Tensor

WARPS = 8


def forward(x: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor, relu: bool) -> None:
    """out = y. out may be x or the residual."""
    images, channels, height, width = x.shape
    pixels = images * height * width
    if not x.numel():
        return
    tile = tile_sides(channels)
    grid = (triton.cdiv(pixels, tile["pixel_block"]), triton.cdiv(channels, tile["channel_block"]))
    epilogue_kernel[grid](
        *(x, x if bias is None else bias, x if residual is None else residual, out, pixels, channels),
        shift=bias is not None,
        add=residual is not None,
        relu=relu,
        **tile,
        num_warps=WARPS,
    )


@triton.jit
def epilogue_kernel(
    x,
    bias,
    residual,
    out,
    pixels,
    channels,
    shift: tl.constexpr,
    add: tl.constexpr,
    relu: tl.constexpr,
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
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)
