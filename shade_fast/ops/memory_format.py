"""Between the NCHW and NHWC memory formats, with a scale and a shift for each channel on the way.

    result = scale[c] · x + shift[c], an absent scale being 1 and an absent shift 0

All tensors are float32 [B, C, h, w] on the CPU, scale and shift [C]. `bind...` return the call of the compiled kernel
on those very buffers, which allocates nothing; they raise ShadeFastError where a tensor does not fit.
"""

from __future__ import annotations

from torch import Tensor

from shade_fast.ops import native
from shade_fast.ops.binding import bound, check_array, check_images, extent
from shade_fast.ops.native import Call


def reference(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """The values; the memory format is that of x."""
    if scale is not None:
        x = x * scale[:, None, None]
    return x if shift is None else x + shift[:, None, None]


def bind_channels_last(x: Tensor, scale: Tensor | None, shift: Tensor | None, out: Tensor, threads: int) -> Call:
    """out = scale · x + shift, from a contiguous x to a dense channels-last out."""
    check_images(out)
    check_array("x", x, out.shape)
    _check_factors(out.shape[1], scale, shift)
    return bound(native.cpu().to_channels_last, x, scale, shift, out, extent(out), threads)


def bind_channels_first(x: Tensor, scale: Tensor | None, shift: Tensor | None, out: Tensor, threads: int) -> Call:
    """out = scale · x + shift, from a dense channels-last x to a contiguous out."""
    check_images(x)
    check_array("out", out, x.shape)
    _check_factors(x.shape[1], scale, shift)
    return bound(native.cpu().to_channels_first, x, scale, shift, out, extent(x), threads)


def _check_factors(channels: int, scale: Tensor | None, shift: Tensor | None) -> None:
    if scale is not None:
        check_array("scale", scale, (channels,))
    if shift is not None:
        check_array("shift", shift, (channels,))
