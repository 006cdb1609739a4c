"""Group normalisation with an activation after it, channels-last, and the gradient in its input alone.

    t = x (+ bias[c]) (+ addend)
    y = activation(gamma[c] · t̂ + beta[c]),  t̂ = (t - mean) · inverse,  inverse = 1 / √(variance + epsilon)
    dt = (d - mean(d) - t̂ · mean(d · t̂)) · inverse (+ residual),  d = gradient · activation'(gamma · t̂ + beta) · gamma

with mean and variance over each group of C / groups channels of each image. x, addend, gradient, residual and out:
float32, float16 or bfloat16 [B, C, h, w], in memory [B, h, w, C]; bias, gamma and beta float32 [C]; statistics float32
[B, groups, 2], mean and inverse. Sums and everything between a load and a store are float32. activation: 0 none, 1
ReLU, 2 SiLU.

Per value of size s, forward: 2s bytes read, s written; with an addend 3s read, 2s written, as the pass for the
statistics writes the sum; backward: 4s read, s written, and s read with a residual. A bias alone costs nothing: it is
added wherever x is read. Neither t̂ nor the activation is kept for the backward, which makes them again from the sum and
the statistics.

The statistics are split: up to 1024 programs for each image and each 128 channels, so that one image fills the chip,
and each leaves every channel's moments over its pixels; a second kernel combines them in a fixed order, without
atomics. A split depends on the image's size alone, and so do an image's results.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

#: Values in a program's tile, at most so many channels wide, and the warps that work on it: 8 values a thread, one
#: access of 128 bits in half precision, and few enough for two sums of each to stay in registers.
TILE = 2048
CHANNELS = 128
WARPS = 8
MOST_SPLITS = 1024


def scratch_size(images: int, pixels: int, channels: int, groups: int) -> int:
    """How many float32 values of scratch memory the forward, or the backward, needs."""
    splits, _ = split(pixels, channels)
    return 2 * images * (splits * channels + groups)


def forward(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    statistics: Tensor,
    out: Tensor,
    scratch: Tensor,
    groups: int,
    epsilon: float,
    activation: int,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    total: Tensor | None = None,
) -> None:
    """out = activation(normalised t), the statistics that the backward takes, and t into total.

    out may be x; total, which is there where an addend is, may be neither.
    """
    images, channels, pixels = _sizes(x)
    if not x.numel():
        return
    splits, blocks = split(pixels, channels)
    tile = tile_sides(channels)
    grid = (splits, triton.cdiv(channels, tile["channel_block"]), images)
    moments_kernel[grid](
        *(x, gamma if bias is None else bias, x if addend is None else addend, x if total is None else total, scratch),
        *(pixels, channels, blocks),
        shift=bias is not None,
        add=addend is not None,
        **tile,
        num_warps=WARPS,
    )
    shift = bias is not None and total is None
    statistics_kernel[(groups, images)](
        scratch,
        statistics,
        pixels,
        channels,
        channels // groups,
        splits,
        blocks * tile["pixel_block"],
        epsilon,
        MOST_SPLITS,
    )
    apply_kernel[grid](
        *(x if total is None else total, bias if shift else gamma, gamma, beta, statistics, out),
        *(pixels, channels, channels // groups, blocks),
        activation=activation,
        shift=shift,
        **tile,
        num_warps=WARPS,
    )


def backward(
    gradient: Tensor,
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    statistics: Tensor,
    out: Tensor,
    scratch: Tensor,
    groups: int,
    activation: int,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    """out = gradient in t (+ residual), x being t, or t without its bias. out may be any of the inputs."""
    images, channels, pixels = _sizes(x)
    if not x.numel():
        return
    splits, blocks = split(pixels, channels)
    tile = tile_sides(channels)
    grid = (splits, triton.cdiv(channels, tile["channel_block"]), images)
    size = channels // groups
    means = scratch[2 * images * splits * channels :]
    factors = (gamma if bias is None else bias, gamma, beta, statistics)
    slopes_kernel[grid](
        *(gradient, x, *factors, scratch, pixels, channels, size, blocks),
        activation=activation,
        shift=bias is not None,
        **tile,
        num_warps=WARPS,
    )
    means_kernel[(groups, images)](scratch, means, pixels, channels, size, splits, MOST_SPLITS)
    gradient_kernel[grid](
        *(gradient, x, *factors, means, out if residual is None else residual, out),
        *(pixels, channels, size, blocks),
        activation=activation,
        add=residual is not None,
        shift=bias is not None,
        **tile,
        num_warps=WARPS,
    )


def split(pixels: int, channels: int) -> tuple[int, int]:
    """How many programs share an image's pixels, and how many tiles each of them works on."""
    rows = tile_sides(channels)["pixel_block"]
    blocks = max(triton.cdiv(triton.cdiv(pixels, rows), MOST_SPLITS), 1)
    return triton.cdiv(pixels, rows * blocks), blocks


def tile_sides(channels: int) -> dict[str, int]:
    """Pixels and channels of a tile, powers of two."""
    width = min(triton.next_power_of_2(channels), CHANNELS)
    return {"pixel_block": max(TILE // width, 1), "channel_block": width}


def _sizes(x: Tensor) -> tuple[int, int, int]:
    images, channels, height, width = x.shape
    return images, channels, height * width


@triton.jit
def moments_kernel(
    x,
    bias,
    addend,
    total,
    partial,
    pixels,
    channels,
    blocks,
    shift: tl.constexpr,
    add: tl.constexpr,
    pixel_block: tl.constexpr,
    channel_block: tl.constexpr,
):
    """Mean and sum of squared deviations of each channel over this program's pixels: partial [B, splits, 2, C].

    Of x, with `shift` its bias on it, and with `add` its addend: that sum is rounded, and goes into total.
    """
    part = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * channel_block + tl.arange(0, channel_block)
    known = channel < channels
    first = part * blocks * pixel_block
    origin = (image * pixels + first) * channels
    # Sums of deviations from a value that is there: a mean far above the deviation does no harm.
    base = tl.load(x + origin + channel, mask=known, other=0.0).to(tl.float32)
    if shift:
        offset = tl.load(bias + channel, mask=known, other=0.0)
        base += offset
    if add:
        base += tl.load(addend + origin + channel, mask=known, other=0.0).to(tl.float32)
    sums = tl.zeros([pixel_block, channel_block], dtype=tl.float32)
    squares = tl.zeros([pixel_block, channel_block], dtype=tl.float32)
    for block in range(blocks):
        pixel = block * pixel_block + tl.arange(0, pixel_block)
        inside = (first + pixel < pixels)[:, None] & known[None, :]
        place = origin + pixel[:, None] * channels + channel[None, :]
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        if shift:
            value += offset[None, :]
        if add:
            value += tl.load(addend + place, mask=inside, other=0.0).to(tl.float32)
            kept = value.to(total.dtype.element_ty)
            tl.store(total + place, kept, mask=inside)
            value = kept.to(tl.float32)
        deviation = tl.where(inside, value - base[None, :], 0.0)
        sums += deviation
        squares += deviation * deviation
    count = 1.0 * tl.minimum(pixels - first, blocks * pixel_block)
    above = tl.sum(sums, axis=0)
    deviations = tl.sum(squares, axis=0) - above * (above / count)
    slot = partial + (image * tl.num_programs(0) + part) * 2 * channels + channel
    tl.store(slot, base + above / count, mask=known)
    tl.store(slot + channels, tl.where(deviations < 0.0, 0.0, deviations), mask=known)


@triton.jit
def statistics_kernel(partial, statistics, pixels, channels, size, splits, span, epsilon, most_splits: tl.constexpr):
    """A group's mean and inverse deviation from its channels' moments over `splits` runs of `span` pixels."""
    group = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    part = tl.arange(0, most_splits)
    known = part < splits
    count = 1.0 * tl.where(known, tl.minimum(pixels - part * span, span), 0)
    origin = partial + image * splits * 2 * channels + group * size
    base = tl.load(origin)
    slots = origin + part * 2 * channels
    total = tl.zeros([most_splits], dtype=tl.float32)
    for channel in range(size):
        mean = tl.load(slots + channel, mask=known, other=0.0)
        total += tl.where(known, (mean - base) * count, 0.0)
    values = 1.0 * pixels * size
    above = tl.sum(total) / values
    squares = tl.zeros([most_splits], dtype=tl.float32)
    for channel in range(size):
        mean = tl.load(slots + channel, mask=known, other=0.0)
        within = tl.load(slots + channels + channel, mask=known, other=0.0)
        deviation = mean - base - above
        squares += tl.where(known, within + count * deviation * deviation, 0.0)
    variance = tl.sum(squares) / values
    slot = statistics + (image * tl.num_programs(0) + group) * 2
    tl.store(slot, base + above)
    tl.store(slot + 1, 1.0 / tl.sqrt_rn(variance + epsilon))


@triton.jit
def apply_kernel(
    x,
    bias,
    gamma,
    beta,
    statistics,
    out,
    pixels,
    channels,
    size,
    blocks,
    activation: tl.constexpr,
    shift: tl.constexpr,
    pixel_block: tl.constexpr,
    channel_block: tl.constexpr,
):
    """out = activation(gamma · t̂ + beta)."""
    image = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * channel_block + tl.arange(0, channel_block)
    known = channel < channels
    slot = statistics + (image * (channels // size) + channel // size) * 2
    mean = tl.load(slot, mask=known, other=0.0)
    if shift:
        mean -= tl.load(bias + channel, mask=known, other=0.0)
    factor = tl.load(gamma + channel, mask=known, other=0.0) * tl.load(slot + 1, mask=known, other=0.0)
    base = tl.load(beta + channel, mask=known, other=0.0)
    first = tl.program_id(0) * blocks * pixel_block
    origin = (image * pixels + first) * channels
    for block in range(blocks):
        pixel = block * pixel_block + tl.arange(0, pixel_block)
        inside = (first + pixel < pixels)[:, None] & known[None, :]
        offset = pixel[:, None] * channels + channel[None, :]
        value = tl.load(x + origin + offset, mask=inside, other=0.0).to(tl.float32)
        y = (value - mean[None, :]) * factor[None, :] + base[None, :]
        tl.store(out + origin + offset, activated(y, activation).to(out.dtype.element_ty), mask=inside)


@triton.jit
def slopes_kernel(
    gradient,
    x,
    bias,
    gamma,
    beta,
    statistics,
    partial,
    pixels,
    channels,
    size,
    blocks,
    activation: tl.constexpr,
    shift: tl.constexpr,
    pixel_block: tl.constexpr,
    channel_block: tl.constexpr,
):
    """Sums of d and of d · t̂ of each channel over this program's pixels: partial [B, splits, 2, C]."""
    part = tl.program_id(0)
    image = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * channel_block + tl.arange(0, channel_block)
    known = channel < channels
    slot = statistics + (image * (channels // size) + channel // size) * 2
    mean = tl.load(slot, mask=known, other=0.0)
    if shift:
        mean -= tl.load(bias + channel, mask=known, other=0.0)
    inverse = tl.load(slot + 1, mask=known, other=0.0)
    scale = tl.load(gamma + channel, mask=known, other=0.0)
    base = tl.load(beta + channel, mask=known, other=0.0)
    first = part * blocks * pixel_block
    origin = (image * pixels + first) * channels
    total = tl.zeros([pixel_block, channel_block], dtype=tl.float32)
    products = tl.zeros([pixel_block, channel_block], dtype=tl.float32)
    for block in range(blocks):
        pixel = block * pixel_block + tl.arange(0, pixel_block)
        inside = (first + pixel < pixels)[:, None] & known[None, :]
        offset = pixel[:, None] * channels + channel[None, :]
        normalised, d = terms(
            x + origin + offset, gradient + origin + offset, inside, mean, inverse, scale, base, activation
        )
        total += tl.where(inside, d, 0.0)
        products += tl.where(inside, d * normalised, 0.0)
    slot = partial + (image * tl.num_programs(0) + part) * 2 * channels + channel
    tl.store(slot, tl.sum(total, axis=0), mask=known)
    tl.store(slot + channels, tl.sum(products, axis=0), mask=known)


@triton.jit
def means_kernel(partial, means, pixels, channels, size, splits, most_splits: tl.constexpr):
    """A group's mean(d) and mean(d · t̂): means [B, groups, 2]."""
    group = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    part = tl.arange(0, most_splits)
    known = part < splits
    slots = partial + image * splits * 2 * channels + group * size + part * 2 * channels
    total = tl.zeros([most_splits], dtype=tl.float32)
    products = tl.zeros([most_splits], dtype=tl.float32)
    for channel in range(size):
        total += tl.load(slots + channel, mask=known, other=0.0)
        products += tl.load(slots + channels + channel, mask=known, other=0.0)
    values = 1.0 * pixels * size
    slot = means + (image * tl.num_programs(0) + group) * 2
    tl.store(slot, tl.sum(total) / values)
    tl.store(slot + 1, tl.sum(products) / values)


@triton.jit
def gradient_kernel(
    gradient,
    x,
    bias,
    gamma,
    beta,
    statistics,
    means,
    residual,
    out,
    pixels,
    channels,
    size,
    blocks,
    activation: tl.constexpr,
    add: tl.constexpr,
    shift: tl.constexpr,
    pixel_block: tl.constexpr,
    channel_block: tl.constexpr,
):
    """out = (d - mean(d) - t̂ · mean(d · t̂)) · inverse, and with `add` the residual on it."""
    image = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * channel_block + tl.arange(0, channel_block)
    known = channel < channels
    group = (image * (channels // size) + channel // size) * 2
    mean = tl.load(statistics + group, mask=known, other=0.0)
    if shift:
        mean -= tl.load(bias + channel, mask=known, other=0.0)
    inverse = tl.load(statistics + group + 1, mask=known, other=0.0)
    mean_d = tl.load(means + group, mask=known, other=0.0)
    mean_product = tl.load(means + group + 1, mask=known, other=0.0)
    scale = tl.load(gamma + channel, mask=known, other=0.0)
    base = tl.load(beta + channel, mask=known, other=0.0)
    first = tl.program_id(0) * blocks * pixel_block
    origin = (image * pixels + first) * channels
    for block in range(blocks):
        pixel = block * pixel_block + tl.arange(0, pixel_block)
        inside = (first + pixel < pixels)[:, None] & known[None, :]
        offset = pixel[:, None] * channels + channel[None, :]
        normalised, d = terms(
            x + origin + offset, gradient + origin + offset, inside, mean, inverse, scale, base, activation
        )
        dx = (d - mean_d[None, :] - normalised * mean_product[None, :]) * inverse[None, :]
        if add:
            dx += tl.load(residual + origin + offset, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + origin + offset, dx.to(out.dtype.element_ty), mask=inside)


@triton.jit
def terms(x, gradient, inside, mean, inverse, scale, base, activation: tl.constexpr):
    """t̂ and d of a tile; x, gradient: its values' addresses, the rest its channels' factors."""
    value = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    upstream = tl.load(gradient, mask=inside, other=0.0).to(tl.float32)
    normalised = (value - mean[None, :]) * inverse[None, :]
    d = upstream * slope(normalised * scale[None, :] + base[None, :], activation) * scale[None, :]
    return normalised, d


@triton.jit
def activated(y, activation: tl.constexpr):
    if activation == 1:
        y = tl.where(y < 0.0, 0.0, y)  # a NaN stays one
    if activation == 2:
        y = y / (1.0 + tl.exp(-y))
    return y


@triton.jit
def slope(y, activation: tl.constexpr):
    result = tl.full(y.shape, 1.0, tl.float32)
    if activation == 1:
        result = tl.where(y > 0.0, 1.0, 0.0)
    if activation == 2:
        share = 1.0 / (1.0 + tl.exp(-y))
        result = share * (1.0 + y * (1.0 - share))
    return result
