"""Max pooling and blurs of a frozen network, and their gradients.

Windows are kernel · kernel pixels, `stride` apart, the first `padding` pixels before the image's corner; their number
is the result's size, so that windows may run over the far edges too. What lies outside the image counts for nothing in
max pooling; in a blur it is the image's mirror image, the edge pixel not repeated.

Tensors are [B, C, h, w]. `reference...` take any float dtype and memory format. `bind...` take dense channels-last
float32 tensors on the CPU and return the call of the compiled kernel on those very buffers, which allocates nothing; a
Finish's residual may be `out`. All raise ShadeFastError where an argument does not fit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from shade_fast.ops import native
from shade_fast.ops.binding import bound, check_array, check_images
from shade_fast.ops.finish import Call, Finish
from shade_fast.terms.errors import ShadeFastError

LARGEST_KERNEL = 15


def reference_max(x: Tensor, kernel: int, stride: int, padding: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The largest value of each window [B, C, *size], and which pixel of the window, row by row, is the first such.

    A NaN counts as the largest. The index is uint8 [B, h', w', C].
    """
    below, beside = _beyond(x, kernel, stride, padding, size)
    padded = functional.pad(x, (padding, beside, padding, below), value=-torch.inf)
    windows = padded.unfold(2, kernel, stride).unfold(3, kernel, stride).flatten(4)
    index = windows.argmax(4, keepdim=True)
    return windows.gather(4, index)[..., 0], index[..., 0].permute(0, 2, 3, 1).to(torch.uint8)


def reference_max_gradient(
    gradient: Tensor,
    index: Tensor,
    shape: tuple[int, int, int, int],
    kernel: int,
    stride: int,
    padding: int,
    finish: Finish,
) -> Tensor:
    """The gradient in x [*shape], finished: each window's goes to the pixel that its index names."""
    height, width = gradient.shape[2:]
    below, beside = _beyond(gradient.new_empty(shape), kernel, stride, padding, (height, width))
    padded = gradient.new_zeros(*shape[:2], shape[2] + padding + max(below, 0), shape[3] + padding + max(beside, 0))
    for i in range(kernel):
        for j in range(kernel):
            chosen = (index == i * kernel + j).permute(0, 3, 1, 2)
            pixels = padded[:, :, _every(i, height, stride), _every(j, width, stride)]
            pixels += torch.where(chosen, gradient, 0)
    return finish.reference(padded[:, :, padding : padding + shape[2], padding : padding + shape[3]])


def reference_blur(x: Tensor, taps: Tensor, stride: int, padding: int, size: tuple[int, int]) -> Tensor:
    """The sum of each window's pixels times `taps` [k, k], the same for every channel: [B, C, *size]."""
    kernel = taps.shape[0]
    below, beside = _beyond(x, kernel, stride, padding, size)
    padded = functional.pad(x, (padding, max(beside, 0), padding, max(below, 0)), mode="reflect")
    blurred = padded.new_zeros(*x.shape[:2], *size)
    for i in range(kernel):
        for j in range(kernel):
            blurred = blurred + taps[i, j] * padded[:, :, _every(i, size[0], stride), _every(j, size[1], stride)]
    return blurred


def reference_blur_gradient(
    gradient: Tensor, taps: Tensor, shape: tuple[int, int, int, int], stride: int, padding: int, finish: Finish
) -> Tensor:
    """The gradient in x [*shape], finished."""
    height, width = gradient.shape[2:]
    with torch.enable_grad():
        x = gradient.new_zeros(shape, requires_grad=True)
        blurred = reference_blur(x, taps, stride, padding, (height, width))
    (dx,) = torch.autograd.grad(blurred, x, gradient)
    return finish.reference(dx)


def _every(first: int, count: int, stride: int) -> slice:
    """`count` places from `first` on, `stride` apart."""
    return slice(first, first + (count - 1) * stride + 1, stride)


def _beyond(x: Tensor, kernel: int, stride: int, padding: int, size: tuple[int, int]) -> tuple[int, int]:
    """How far the last windows reach past the last row and the last column; negative where they end before."""
    height, width = x.shape[2:]
    return (size[0] - 1) * stride - padding + kernel - height, (size[1] - 1) * stride - padding + kernel - width


def bind_max(
    x: Tensor, out: Tensor, index: Tensor | None, kernel: int, stride: int, padding: int, threads: int
) -> Call:
    """out, index = the largest value of each window and its place; kernel <= 15."""
    window = _window(x, out, kernel, stride, padding)
    _check_pool(window)
    if index is not None:
        _check_index(index, out)
    return bound(native.cpu().max_pool, x, out, index, window, threads)


def bind_max_gradient(
    gradient: Tensor,
    index: Tensor,
    out: Tensor,
    kernel: int,
    stride: int,
    padding: int,
    finish: Finish,
    threads: int,
) -> Call:
    """out = finish(gradient in x), `index` being what the forward wrote."""
    window = _window(out, gradient, kernel, stride, padding)
    _check_pool(window)
    _check_index(index, gradient)
    finish.check(out)
    return bound(native.cpu().max_pool_gradient, gradient, index, out, window, finish, threads)


def bind_blur(x: Tensor, taps: Tensor, out: Tensor, stride: int, padding: int, threads: int) -> Call:
    """out = the windows' sums with `taps` [k, k]; k <= 15, padding < h, w."""
    window = _window(x, out, len(taps), stride, padding)
    _check_blur(window, taps)
    return bound(native.cpu().blur, x, taps, out, window, threads)


def bind_blur_gradient(
    gradient: Tensor, taps: Tensor, out: Tensor, stride: int, padding: int, finish: Finish, threads: int
) -> Call:
    """out = finish(gradient in x)."""
    window = _window(out, gradient, len(taps), stride, padding)
    _check_blur(window, taps)
    finish.check(out)
    return bound(native.cpu().blur_gradient, gradient, taps, out, window, finish, threads)


Window = tuple[int, int, int, int, int, int, int, int, int]


def _window(image: Tensor, windows: Tensor, kernel: int, stride: int, padding: int) -> Window:
    """As the compiled module takes it."""
    check_images(image)
    check_images(windows)
    images, channels, height, width = image.shape
    if windows.shape[:2] != image.shape[:2]:
        raise ShadeFastError(f"the windows are {list(windows.shape)}, the image {list(image.shape)}")
    return images, height, width, channels, windows.shape[2], windows.shape[3], kernel, stride, padding


def _overreach(window: Window) -> int:
    _, height, width, _, out_height, out_width, kernel, stride, padding = window
    return max((out_height - 1) * stride - height, (out_width - 1) * stride - width) - padding + kernel


def _check(window: Window, fits: bool) -> None:
    _, height, width, channels, out_height, out_width, kernel, stride, padding = window
    sizes = min(height, width, channels, out_height, out_width, kernel, stride) >= 1 and kernel <= LARGEST_KERNEL
    if not sizes or padding < 0 or not fits:
        raise ShadeFastError(
            f"{out_height} by {out_width} windows with kernel={kernel} (at most {LARGEST_KERNEL}), stride={stride}, "
            f"padding={padding} do not fit an image of {height} by {width} pixels"
        )


def _check_pool(window: Window) -> None:
    kernel, padding = window[6], window[8]
    _check(window, padding < kernel and _overreach(window) < kernel)


def _check_blur(window: Window, taps: Tensor) -> None:
    side = min(window[1], window[2])
    check_array("taps", taps, (window[6], window[6]))
    _check(window, window[8] < side and _overreach(window) < side)


def _check_index(index: Tensor, windows: Tensor) -> None:
    images, channels, height, width = windows.shape
    check_array("index", index, (images, height, width, channels), torch.uint8)
