"""Products of matrices that both change from call to call, into memory that is there."""

from __future__ import annotations

import torch
from torch import Tensor

from shade_fast.ops import native
from shade_fast.ops.binding import bound, check_device, check_scratch
from shade_fast.ops.convolution import NUMBERS
from shade_fast.ops.native import Call
from shade_fast.terms.errors import ShadeFastError


def reference(left: Tensor, right: Tensor, out: Tensor, factor: float, accumulate: bool) -> None:
    """The specification, in plain torch: out = factor · left · right, added to what is there with `accumulate`."""
    product = factor * (left @ right)
    out.copy_(out + product if accumulate else product)


def bind(
    left: Tensor,
    right: Tensor,
    out: Tensor,
    scratch: Tensor,
    threads: int,
    *,
    algorithm: str = "direct",
    factor: float = 1.0,
    accumulate: bool = False,
) -> Call:
    """The product of float32 matrices, as a call.

    left: [n, k], right: [k, m], either of them with neighbouring values along one of its axes; out: [n, m], its rows
    dense, none of it in the others' memory. algorithm: one that `supports` names. scratch: `scratch_size(k, m, threads,
    algorithm)` float32 values. Raises ShadeFastError for other shapes, layouts and algorithms.
    """
    (rows, depth), columns = left.shape, right.shape[1]
    if right.shape[0] != depth or tuple(out.shape) != (rows, columns) or not depth:
        raise ShadeFastError(f"{list(left.shape)} by {list(right.shape)} into {list(out.shape)}: the sides do not fit")
    for name, matrix in (("left", left), ("right", right), ("out", out)):
        check_device(name, matrix)
        if matrix.dtype != torch.float32 or 1 not in (matrix.stride(1), matrix.stride(0) if name != "out" else 1):
            raise ShadeFastError(f"{name} is {matrix.dtype} with strides {matrix.stride()}: give dense float32 rows")
    if out.stride(1) != 1 and columns > 1:
        raise ShadeFastError(f"out has strides {out.stride()}: its rows are dense")
    check_scratch(scratch, scratch_size(depth, columns, threads, algorithm))
    matrices = ((left, *left.stride()), (right, *right.stride()), out, out.stride(0))
    product = (*matrices, rows, depth, columns, factor, accumulate)
    return bound(native.cpu().matrix_product, NUMBERS[algorithm], product, scratch, threads)


def supports(algorithm: str) -> bool:
    """Whether an algorithm multiplies matrices here; "direct", in float32, always does.

    tiles: bfloat16 products, three for each of float32 and as exact to about 2^-17; with the instruction set "amx".
    """
    return algorithm in NUMBERS and bool(native.cpu().matrix_product_supports(NUMBERS[algorithm]))


def scratch_size(depth: int, columns: int, threads: int, algorithm: str = "direct") -> int:
    """How many float32 values of scratch memory a product with a right operand [depth, columns] takes.

    Raises:
        ShadeFastError: no such algorithm here.
    """
    if not supports(algorithm):
        raise ShadeFastError(f"algorithm={algorithm!r}: direct, or tiles where the instruction set is amx")
    size: int = native.cpu().matrix_product_scratch(NUMBERS[algorithm], depth, columns, threads)
    return size
