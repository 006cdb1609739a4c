"""The table of ops: its rows name ops that are there, and a wrong result of a timed op is seen."""

from __future__ import annotations

import pytest
import torch

from benchmarks import ops
from benchmarks.inputs import Inputs, Pixels

PIXEL_OPS = [op for op in ops.OPS if isinstance(op, ops.PixelOp)]


def test_rows_are_told_apart_by_their_names() -> None:
    inputs = Inputs(16, 8, 8, torch.device("cpu"))
    assert len({op.name for op in ops.OPS}) == len(ops.OPS)
    checks = [check.name for op in ops.OPS for check in op.checks(inputs)]
    assert len(set(checks)) == len(checks) >= len(ops.OPS)


def test_launches_are_of_ops_that_torch_dispatches() -> None:
    for op in ops.OPS:
        for launches in op.launches:
            namespace, _, name = launches.name.partition("::")
            assert hasattr(getattr(torch.ops, namespace), name), launches.name
            assert ops.launches_of(launches.name) is launches
    assert ops.launches_of("silu").kernels == 1


@pytest.mark.parametrize("op", PIXEL_OPS, ids=lambda op: op.name)
def test_a_wrong_result_is_seen(op: ops.PixelOp) -> None:
    pixels = Pixels.random((1, 3, 16, 24))
    right, again = (op.results(pixels.copied(op.changes), "reference") for _ in range(2))
    assert op.wrong(again, right) is None
    for place, result in enumerate(again):
        result[(0,) * result.ndim] += 1
        assert op.wrong(again, right) == f"1 values of result {place + 1} differ from the reference"
        result.copy_(right[place])


def test_every_op_has_triton_kernels_or_cuda_ones() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    for op in ops.OPS:
        names = [(kernel.function.__name__, kernel.note) for kernel in op.kernels("bf16")]
        assert len(set(names)) == len(names)
        assert bool(names) != isinstance(op, ops.PixelOp), op.name
