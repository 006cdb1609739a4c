"""A separable linear map of images, one banded matrix for each axis, and its adjoint."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shade_fast.ops import native
from shade_fast.terms.errors import ShadeFastError


class Band(NamedTuple):
    """A banded matrix: row i holds weights[i] for the columns from start[i] on. int32 [rows], float32 [rows, taps]."""

    start: Tensor
    weights: Tensor
    columns: int

    def dense(self) -> Tensor:
        """The matrix, float32 [rows, columns], on the CPU."""
        rows, taps = self.weights.shape
        dense = self.weights.new_zeros(rows, self.columns)
        return dense.scatter_(1, self.start.long()[:, None] + torch.arange(taps, device="cpu"), self.weights)


class Axis(NamedTuple):
    """One axis' matrix and its transpose."""

    matrix: Band
    transpose: Band


def axis(matrix: NDArray[Any]) -> Axis:
    """The banded form of a dense matrix [rows, columns] and of its transpose."""
    return Axis(_band_of(matrix), _band_of(matrix.T))


def separable(images: Tensor, vertical: Axis, horizontal: Axis, *, backend: str = "native") -> Tensor:
    """Map every channel of images linearly: vertical · image · horizontalᵀ.

    Args:
        images: float [B, C, H, W].
        vertical, horizontal: matrices with H and W columns.
        backend: "native" runs the compiled kernels for float32 on the CPU; on CUDA, and for other dtypes, plain torch
            is the implementation. "reference" runs plain torch everywhere.

    Returns:
        [B, C, rows of vertical, rows of horizontal], same dtype; the gradient is verticalᵀ · g · horizontal.

    Raises:
        ShadeFastError: the shapes do not fit, or the compiled module is missing.
    """
    shape = (vertical.matrix.columns, horizontal.matrix.columns)
    if images.ndim != 4 or tuple(images.shape[2:]) != shape or not images.is_floating_point():
        raise ShadeFastError(
            f"images is {images.dtype} {list(images.shape)}: give float [B, C, {shape[0]}, {shape[1]}]"
        )
    if backend == "reference":
        return reference(images, vertical, horizontal)
    if backend != "native" or images.device.type not in native.DEVICES:
        raise native.missing_backend(backend, images.device)
    if images.device.type != "cpu" or images.dtype != torch.float32:
        return reference(images, vertical, horizontal)
    result: Tensor = _Separable.apply(images, vertical, horizontal)  # type: ignore[no-untyped-call]
    return result


def reference(images: Tensor, vertical: Axis, horizontal: Axis) -> Tensor:
    """The specification, in plain torch; arguments as in `separable`."""
    down, across = (axis.matrix.dense().to(images) for axis in (vertical, horizontal))
    return down @ images @ across.T


class _Separable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, vertical: Axis, horizontal: Axis) -> Tensor:
        ctx.axes = vertical, horizontal
        return apply_bands(images, vertical.matrix, horizontal.matrix)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        vertical, horizontal = ctx.axes
        return apply_bands(gradient, vertical.transpose, horizontal.transpose), None, None


def apply_bands(images: Tensor, vertical: Band, horizontal: Band) -> Tensor:
    """vertical · image · horizontalᵀ by the compiled kernel: float32 [B, C, H, W] on the CPU, without a gradient."""
    module = native.cpu()
    images = images.contiguous()
    planes = images.shape[0] * images.shape[1]
    result = images.new_empty(*images.shape[:2], len(vertical.start), len(horizontal.start))
    across = horizontal.weights.t().contiguous()
    bands = [
        (matrix.start.data_ptr(), weights.data_ptr(), len(matrix.start), matrix.columns, matrix.weights.shape[1])
        for matrix, weights in ((vertical, vertical.weights), (horizontal, across))
    ]
    scratch = images.new_empty(module.resize_scratch(planes, *bands))
    pointers = [tensor.data_ptr() for tensor in (images, result, scratch)]
    native.check(module, module.resize(*pointers, planes, *bands, torch.get_num_threads()))
    return result


def banded(first: NDArray[Any], weights: NDArray[Any], columns: int) -> Band:
    """A band whose rows all end inside the matrix: those that would not begin earlier, with zeros in front.

    first: [rows], the column of each row's first weight. weights: [rows, taps].
    """
    taps = min(weights.shape[1], columns)
    start = np.minimum(first, columns - taps)
    moved = np.zeros((len(first), taps))
    shift = (first - start)[:, None] + np.arange(weights.shape[1])
    rows, used = np.nonzero(weights)
    moved[rows, shift[rows, used]] = weights[rows, used]
    return Band(torch.from_numpy(start.astype(np.int32)), torch.from_numpy(moved.astype(np.float32)), columns)


def _band_of(matrix: NDArray[Any]) -> Band:
    nonzero = matrix != 0
    columns = matrix.shape[1]
    first = np.where(nonzero.any(axis=1), nonzero.argmax(axis=1), 0)
    last = np.where(nonzero.any(axis=1), columns - nonzero[:, ::-1].argmax(axis=1), 1)
    if len(matrix) == columns:
        # Rows that all begin as far before the diagonal are read side by side: that is worth a few zeros.
        before = max(int((np.arange(columns) - first).max()), 0)
        first = np.minimum(first, np.maximum(np.arange(columns) - before, 0))
    taps = max(int((last - first).max()), 1)
    first = np.minimum(first, columns - taps)
    return banded(first, np.take_along_axis(matrix, first[:, None] + np.arange(taps), axis=1), columns)
