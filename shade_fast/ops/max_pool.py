"""Max pooling that keeps, for its gradient, the place of each window's winner in a byte."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shade_fast.ops import gpu, pool
from shade_fast.ops.finish import Finish
from shade_fast.ops.layout import channels_last
from shade_fast.terms.errors import ShadeFastError

#: Windows of more than 4 · 4 pixels are not looked at one pixel after the other.
LARGEST_KERNEL = 4


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

    Where the tensors are on a GPU, in float32, float16 or bfloat16, Triton's kernels run; elsewhere plain torch does,
    `ops.pool`'s specification.

    Raises:
        ShadeFastError: the windows do not fit, or Triton is missing on a GPU.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ShadeFastError(f"x is {x.dtype} {list(x.shape)}: give float [B, C, h, w]")
    reach = [(count - 1) * stride - padding - side for count, side in zip(size, x.shape[2:], strict=True)]
    if (
        not (1 <= kernel <= LARGEST_KERNEL and stride >= 1 and 0 <= padding < kernel and min(size) >= 1)
        or max(reach) >= 0
    ):
        raise ShadeFastError(
            f"{size[0]} by {size[1]} windows with kernel={kernel} (1 to {LARGEST_KERNEL}), stride={stride}, "
            f"padding={padding} do not fit {x.shape[2]} by {x.shape[3]} pixels"
        )
    result: Tensor = _MaxPool.apply(channels_last(x), (kernel, stride, padding), size)  # type: ignore[no-untyped-call]
    return result


def reference_gradient(
    gradient: Tensor, index: Tensor, shape: tuple[int, int, int, int], kernel: int, stride: int, padding: int
) -> Tensor:
    """The gradient in x [*shape], of `ops.pool`'s index, in plain torch."""
    sums = gradient if gradient.dtype == torch.float64 else gradient.float()
    made = pool.reference_max_gradient(sums, index, shape, kernel, stride, padding, Finish())
    return channels_last(made.to(gradient.dtype))


@torch.library.custom_op("shade_fast::max_pool", mutates_args=())
def _operator(
    x: Tensor, kernel: int, stride: int, padding: int, height: int, width: int, mark: bool
) -> tuple[Tensor, Tensor]:
    """The largest values and, with `mark`, their places; else those are empty."""
    if not gpu.has_kernels(x):
        made, index = pool.reference_max(x, kernel, stride, padding, (height, width))
        return channels_last(made), index.contiguous() if mark else index.new_empty(0)
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
        shape = (*gradient.shape[:2], height, width)
        return reference_gradient(gradient, index, shape, kernel, stride, padding)
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
