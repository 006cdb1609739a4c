"""Blurs of a frozen network with one small kernel for all channels, and their gradient; windows as in `ops.windows`.

What lies outside the image is its mirror image, the edge pixel not repeated. Tensors are [B, C, h, w]. `reference...`
take any float dtype and memory format. `bind...` take dense channels-last float32 tensors on the CPU and return the
call of the compiled kernel on those very buffers, which allocates nothing; an Epilogue's residual may be `out`. All
raise ShadeFastError where an argument does not fit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from shade_fast.ops import native
from shade_fast.ops.binding import bound, check_array
from shade_fast.ops.epilogue import Epilogue
from shade_fast.ops.native import Call
from shade_fast.ops.windows import Window, beyond, every, window


def reference(x: Tensor, taps: Tensor, stride: int, padding: int, size: tuple[int, int]) -> Tensor:
    """The sum of each window's pixels times `taps` [k, k], the same for every channel: [B, C, *size]."""
    kernel = taps.shape[0]
    below, beside = beyond(x, kernel, stride, padding, size)
    padded = functional.pad(x, (padding, max(beside, 0), padding, max(below, 0)), mode="reflect")
    blurred = padded.new_zeros(*x.shape[:2], *size)
    for i in range(kernel):
        for j in range(kernel):
            blurred = blurred + taps[i, j] * padded[:, :, every(i, size[0], stride), every(j, size[1], stride)]
    return blurred


def reference_gradient(
    gradient: Tensor, taps: Tensor, shape: tuple[int, int, int, int], stride: int, padding: int, epilogue: Epilogue
) -> Tensor:
    """The gradient in x [*shape], with the epilogue."""
    height, width = gradient.shape[2:]
    with torch.enable_grad():
        x = gradient.new_zeros(shape, requires_grad=True)
        blurred = reference(x, taps, stride, padding, (height, width))
    (dx,) = torch.autograd.grad(blurred, x, gradient)
    return epilogue.reference(dx)


def bind(x: Tensor, taps: Tensor, out: Tensor, stride: int, padding: int, threads: int) -> Call:
    """out = the windows' sums with `taps` [k, k]; k <= 15, padding < h, w."""
    windows = _checked(window(x, out, len(taps), stride, padding), taps)
    return bound(native.cpu().blur, x, taps, out, windows, threads)


def bind_gradient(
    gradient: Tensor, taps: Tensor, out: Tensor, stride: int, padding: int, epilogue: Epilogue, threads: int
) -> Call:
    """out = epilogue(gradient in x)."""
    windows = _checked(window(out, gradient, len(taps), stride, padding), taps)
    epilogue.check(out)
    return bound(native.cpu().blur_gradient, gradient, taps, out, windows, epilogue, threads)


def _checked(windows: Window, taps: Tensor) -> Window:
    side = min(windows.height, windows.width)
    check_array("taps", taps, (windows.kernel, windows.kernel))
    windows.check(windows.padding < side and windows.overreach < side)
    return windows
