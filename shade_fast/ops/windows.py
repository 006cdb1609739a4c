"""Windows of pixels that are pooled or blurred.

Windows are kernel · kernel pixels, `stride` apart, the first `padding` pixels before the image's corner; their number
is the result's size, so that windows may run over the far edges too.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from shade_fast.ops.binding import check_images
from shade_fast.terms.errors import ShadeFastError

#: Pixels of a side, at most, where the compiled CPU module takes a window.
LARGEST_KERNEL = 15


class Window(NamedTuple):
    """As the compiled module takes it."""

    images: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    kernel: int
    stride: int
    padding: int

    @property
    def overreach(self) -> int:
        """How far the last windows reach past the image's far edges, the farther of the two."""
        below = (self.out_height - 1) * self.stride - self.height
        beside = (self.out_width - 1) * self.stride - self.width
        return max(below, beside) - self.padding + self.kernel

    def check(self, fits: bool) -> None:
        """Raise ShadeFastError unless sizes are in range and the op says that the windows fit."""
        sizes = (self.height, self.width, self.channels, self.out_height, self.out_width, self.kernel, self.stride)
        if min(sizes) < 1 or self.kernel > LARGEST_KERNEL or self.padding < 0 or not fits:
            raise ShadeFastError(
                f"{self.out_height} by {self.out_width} windows with kernel={self.kernel} (at most {LARGEST_KERNEL}), "
                f"stride={self.stride}, padding={self.padding} do not fit an image of {self.height} by {self.width} "
                "pixels"
            )


def window(image: Tensor, windows: Tensor, kernel: int, stride: int, padding: int) -> Window:
    """Those of an image [B, C, h, w] whose results are `windows` [B, C, h', w'], both as CPU kernels take them."""
    check_images(image)
    check_images(windows)
    images, channels, height, width = image.shape
    if windows.shape[:2] != image.shape[:2]:
        raise ShadeFastError(f"the windows are {list(windows.shape)}, the image {list(image.shape)}")
    return Window(images, height, width, channels, windows.shape[2], windows.shape[3], kernel, stride, padding)


def every(first: int, count: int, stride: int) -> slice:
    """`count` places from `first` on, `stride` apart."""
    return slice(first, first + (count - 1) * stride + 1, stride)


def beyond(x: Tensor, kernel: int, stride: int, padding: int, size: tuple[int, int]) -> tuple[int, int]:
    """How far the last windows reach past the last row and the last column; negative where they end before."""
    height, width = x.shape[2:]
    return (size[0] - 1) * stride - padding + kernel - height, (size[1] - 1) * stride - padding + kernel - width
