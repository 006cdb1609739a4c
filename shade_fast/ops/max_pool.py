"""Max pooling that keeps, for its gradient, the place of each window's winner in a byte; windows as in `ops.windows`.

What lies outside the image counts for nothing. Tensors are [B, C, h, w]. `reference...` take any float dtype and memory
format. `bind...` are for networks on the CPU: they take dense channels-last float32 tensors and return the call of the
compiled kernel on those very buffers, which allocates nothing; an Epilogue's residual may be `out`. `max_pool` is the
op of networks on a GPU. All raise ShadeFastError where an argument does not fit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from shade_fast.ops import gpu, native
from shade_fast.ops.binding import bound, check_array
from shade_fast.ops.epilogue import Epilogue
from shade_fast.ops.layout import channels_last
from shade_fast.ops.native import Call
from shade_fast.ops.windows import Window, beyond, every, window
from shade_fast.terms.errors import ShadeFastError

#: Windows of more than 4 · 4 pixels are not looked at one pixel after the other.
LARGEST_KERNEL_ON_GPU = 4


def reference(x: Tensor, kernel: int, stride: int, padding: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The largest value of each window [B, C, *size], and which pixel of the window, row by row, is the first such.

    A NaN counts as the largest. The index is uint8 [B, h', w', C].
    """
    below, beside = beyond(x, kernel, stride, padding, size)
    padded = functional.pad(x, (padding, beside, padding, below), value=-torch.inf)
    windows = padded.unfold(2, kernel, stride).unfold(3, kernel, stride).flatten(4)
    index = windows.argmax(4, keepdim=True)
    return windows.gather(4, index)[..., 0], index[..., 0].permute(0, 2, 3, 1).to(torch.uint8)


def reference_gradient(
    gradient: Tensor,
    index: Tensor,
    shape: tuple[int, int, int, int],
    kernel: int,
    stride: int,
    padding: int,
    epilogue: Epilogue,
) -> Tensor:
    """The gradient in x [*shape], with the epilogue: each window's goes to the pixel that its index names."""
    height, width = gradient.shape[2:]
    below, beside = beyond(gradient.new_empty(shape), kernel, stride, padding, (height, width))
    padded = gradient.new_zeros(*shape[:2], shape[2] + padding + max(below, 0), shape[3] + padding + max(beside, 0))
    for i in range(kernel):
        for j in range(kernel):
            chosen = (index == i * kernel + j).permute(0, 3, 1, 2)
            pixels = padded[:, :, every(i, height, stride), every(j, width, stride)]
            pixels += torch.where(chosen, gradient, 0)
    return epilogue.reference(padded[:, :, padding : padding + shape[2], padding : padding + shape[3]])


def bind(x: Tensor, out: Tensor, index: Tensor | None, kernel: int, stride: int, padding: int, threads: int) -> Call:
    """out, index = the largest value of each window and its place; kernel <= 15."""
    windows = _checked(window(x, out, kernel, stride, padding))
    if index is not None:
        _check_index(index, out)
    return bound(native.cpu().max_pool, x, out, index, windows, threads)


def bind_gradient(
    gradient: Tensor,
    index: Tensor,
    out: Tensor,
    kernel: int,
    stride: int,
    padding: int,
    epilogue: Epilogue,
    threads: int,
) -> Call:
    """out = epilogue(gradient in x), `index` being what the forward wrote."""
    windows = _checked(window(out, gradient, kernel, stride, padding))
    _check_index(index, gradient)
    epilogue.check(out)
    return bound(native.cpu().max_pool_gradient, gradient, index, out, windows, epilogue, threads)


def _checked(windows: Window) -> Window:
    windows.check(windows.padding < windows.kernel and windows.overreach < windows.kernel)
    return windows


def _check_index(index: Tensor, windows: Tensor) -> None:
    images, channels, height, width = windows.shape
    check_array("index", index, (images, height, width, channels), torch.uint8)


def max_pool(x: Tensor, kernel: int, stride: int, padding: int, size: tuple[int, int]) -> Tensor:
    """The largest value of each window.

    Args:
        x: float [B, C, h, w], channels-last; other layouts are copied. A NaN counts as the largest.
        kernel: side of a window in pixels, 1 to 4. stride: from one to the next. padding: the first begins so many
            pixels before the corner; less than kernel.
        size: how many windows there are, down and across; each holds a pixel of the image.

    Returns:
        [B, C, *size], channels-last, of x's dtype. Differentiable once; of equal values the first gets the gradient,
        whose sums are float32.

    Where the tensors are on a GPU, in float32, float16 or bfloat16, Triton's kernels run; elsewhere plain torch does:
    `reference`.

    Raises:
        ShadeFastError: the windows do not fit, or Triton is missing on a GPU.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ShadeFastError(f"x is {x.dtype} {list(x.shape)}: give float [B, C, h, w]")
    reach = [(count - 1) * stride - padding - side for count, side in zip(size, x.shape[2:], strict=True)]
    if (
        not (1 <= kernel <= LARGEST_KERNEL_ON_GPU and stride >= 1 and 0 <= padding < kernel and min(size) >= 1)
        or max(reach) >= 0
    ):
        raise ShadeFastError(
            f"{size[0]} by {size[1]} windows with kernel={kernel} (1 to {LARGEST_KERNEL_ON_GPU}), stride={stride}, "
            f"padding={padding} do not fit {x.shape[2]} by {x.shape[3]} pixels"
        )
    result: Tensor = _MaxPool.apply(channels_last(x), (kernel, stride, padding), size)  # type: ignore[no-untyped-call]
    return result


@torch.library.custom_op("shade_fast::max_pool", mutates_args=())
def _operator(
    x: Tensor, kernel: int, stride: int, padding: int, height: int, width: int, mark: bool
) -> tuple[Tensor, Tensor]:
    """The largest values and, with `mark`, their places; else those are empty."""
    if not gpu.has_kernels(x):
        values, index = reference(x, kernel, stride, padding, (height, width))
        return channels_last(values), index.contiguous() if mark else index.new_empty(0)
    out, index = _new(x, height, width, mark)
    with gpu.selected(x):
        gpu.triton("max_pool").forward(x, out, index if mark else None, kernel, stride, padding)
    return out, index


@_operator.register_fake
def _(x: Tensor, kernel: int, stride: int, padding: int, height: int, width: int, mark: bool) -> tuple[Tensor, Tensor]:
    return _new(x, height, width, mark)


@torch.library.custom_op("shade_fast::max_pool_gradient", mutates_args=())
def _gradient_operator(
    gradient: Tensor, index: Tensor, height: int, width: int, kernel: int, stride: int, padding: int
) -> Tensor:
    if not gpu.has_kernels(gradient):
        sums = gradient if gradient.dtype == torch.float64 else gradient.float()
        shape = (*gradient.shape[:2], height, width)
        dx = reference_gradient(sums, index, shape, kernel, stride, padding, Epilogue())
        return channels_last(dx.to(gradient.dtype))
    out = _new_image(gradient, height, width)
    with gpu.selected(gradient):
        gpu.triton("max_pool").backward(gradient, index, out, kernel, stride, padding)
    return out


@_gradient_operator.register_fake
def _(gradient: Tensor, index: Tensor, height: int, width: int, kernel: int, stride: int, padding: int) -> Tensor:
    return _new_image(gradient, height, width)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[int, int, int], size: tuple[int, int]) -> Tensor:
        mark = ctx.needs_input_grad[0]
        y: Tensor
        y, index = _operator(x, *window, *size, mark)
        ctx.save_for_backward(*([index] if mark else []))
        ctx.parameters = (*x.shape[2:], *window)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        return _gradient_operator(channels_last(gradient), index, *ctx.parameters), None, None


def _new_image(like: Tensor, height: int, width: int) -> Tensor:
    """Channels-last [B, C, height, width]."""
    images, channels = like.shape[:2]
    return like.new_empty(images, height, width, channels).permute(0, 3, 1, 2)


def _new(x: Tensor, height: int, width: int, mark: bool) -> tuple[Tensor, Tensor]:
    images, channels = x.shape[:2]
    index = x.new_empty((images, height, width, channels) if mark else 0, dtype=torch.uint8)
    return _new_image(x, height, width), index
