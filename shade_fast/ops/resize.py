"""Antialiased resize, and its adjoint: the view's part that runs at the file's own resolution."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shade_fast.ops import native
from shade_fast.ops.separable import Band, apply_bands, banded
from shade_fast.terms.errors import ShadeFastError


def resize(images: Tensor, size: tuple[int, int], *, backend: str = "native") -> Tensor:
    """Shrink or enlarge images with a triangle filter, as wide as one output pixel where that is more than an input's.

        result = V · image · Hᵀ for each channel, with V[i, j] ∝ max(0, 1 - |j + 1/2 - s·(i + 1/2)| / max(s, 1)),
        s = input size / output size, each row of V and H summing to 1

    the same as Pillow's BILINEAR resize before its rounding. Linear; the gradient is Vᵀ · g · H.

    Args:
        images: float [B, C, H, W].
        size: height and width of the result, at least 1.
        backend: "native" runs the compiled kernels for float32 on the CPU; for other dtypes, and on CUDA, plain torch
            is the implementation, there with a gradient of its own: torch's adds up atomically, in another order each
            time. "reference" runs plain torch everywhere.

    Returns:
        [B, C, *size], same dtype; differentiable, on CUDA once.

    Raises:
        ShadeFastError: the shape or size does not fit, or the compiled module is missing.
    """
    if images.ndim != 4 or 0 in images.shape[2:] or not images.is_floating_point():
        raise ShadeFastError(f"images is {images.dtype} {list(images.shape)}: give float [B, C, H, W]")
    if min(size) < 1:
        raise ShadeFastError(f"size={size}: height and width are at least 1")
    if backend == "reference":
        return reference(images, size)
    if backend != "native" or images.device.type not in native.DEVICES:
        raise native.missing_backend(backend, images.device)
    if images.device.type != "cpu":
        gathered: Tensor = _Gathered.apply(images, size)  # type: ignore[no-untyped-call]
        return gathered
    if images.dtype != torch.float32:
        return reference(images, size)
    result: Tensor = _operator(images, *size)
    return result


def reference(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The specification, in plain torch; arguments as in `resize`."""
    if images.shape[0] == 0:
        return images.new_empty(*images.shape[:2], *size)
    return functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


class _Gathered(torch.autograd.Function):
    """torch's resize; in the gradient each pixel gathers its few terms, first down, then across."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, size: tuple[int, int]) -> Tensor:
        ctx.size = images.shape[2:]
        return reference(images, size)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        for axis, (inputs, outputs) in enumerate(zip(ctx.size, gradient.shape[2:], strict=True)):
            gradient = _along(gradient, axis + 2, *_on(gradient.device, inputs, outputs))
        return gradient, None


def _along(values: Tensor, axis: int, places: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """A banded matrix' product along an axis of [B, C, H, W]: tap by tap."""
    shape = [1] * values.ndim
    shape[axis] = -1
    result = None
    for place, weight in zip(places, weights, strict=True):
        term, factor = values.index_select(axis, place), weight.view(shape).to(values.dtype)
        result = term.mul_(factor) if result is None else result.addcmul_(term, factor)
    assert result is not None
    return result


@functools.lru_cache(maxsize=256)
def _on(device: torch.device, inputs: int, outputs: int) -> tuple[list[Tensor], list[Tensor]]:
    """The transpose of `band(inputs, outputs)` on a device: each tap's columns int64 [inputs] and weights [inputs]."""
    start, weights, _ = transposed(band(inputs, outputs))
    places = start.long() + torch.arange(weights.shape[1], device="cpu")[:, None]
    return [[*table.contiguous().to(device)] for table in (places, weights.t())]  # type: ignore[return-value]


@torch.library.custom_op("shade_fast::resize", mutates_args=(), device_types="cpu")
def _operator(images: Tensor, height: int, width: int) -> Tensor:
    return apply_bands(images, band(images.shape[2], height), band(images.shape[3], width))


@torch.library.custom_op("shade_fast::resize_adjoint", mutates_args=(), device_types="cpu")
def _adjoint(gradient: Tensor, height: int, width: int) -> Tensor:
    return apply_bands(
        gradient, transposed(band(height, gradient.shape[2])), transposed(band(width, gradient.shape[3]))
    )


@_operator.register_fake
@_adjoint.register_fake
def _(images: Tensor, height: int, width: int) -> Tensor:
    return images.new_empty(*images.shape[:2], height, width)


def _keep_size(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.size = inputs[0].shape[2:]


_operator.register_autograd(lambda ctx, g: (_adjoint(g, *ctx.size), None, None), setup_context=_keep_size)
_adjoint.register_autograd(lambda ctx, g: (_operator(g, *ctx.size), None, None), setup_context=_keep_size)


@functools.lru_cache(maxsize=256)
def band(inputs: int, outputs: int) -> Band:
    """The matrix [outputs, inputs] of one axis of a resize."""
    ratio = inputs / outputs
    reach = max(ratio, 1.0)
    centre = ratio * (np.arange(outputs) + 0.5)
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + reach + 0.5).astype(np.int64), inputs)
    columns = first[:, None] + np.arange(int((last - first).max()))
    weights = np.maximum(0, 1 - np.abs(columns + 0.5 - centre[:, None]) / reach) * (columns < last[:, None])
    return banded(first, weights / weights.sum(axis=1, keepdims=True), inputs)


@functools.lru_cache(maxsize=256)
def _transposed(inputs: int, outputs: int) -> Band:
    matrix = band(inputs, outputs)
    start, weights = matrix.start.numpy(), matrix.weights.numpy()
    rows, taps = np.nonzero(weights)
    columns = start[rows] + taps
    first = np.full(inputs, outputs, dtype=np.int64)
    np.minimum.at(first, columns, rows)
    first[first == outputs] = 0  # a column that no row touches
    transposed = np.zeros((inputs, int((rows - first[columns]).max()) + 1))
    transposed[columns, rows - first[columns]] = weights[rows, taps]
    return banded(first, transposed, outputs)


def transposed(matrix: Band) -> Band:
    """The transpose of one axis' matrix, a banded matrix too."""
    return _transposed(matrix.columns, len(matrix.start))
