"""The ops on the CPU, each against its plain-torch body: at 512 × 512, and at 12 megapixels."""

from __future__ import annotations

import functools
from collections.abc import Callable

from benchmarks.inputs import Pixels
from benchmarks.ops import OPS, SIZES, PixelOp
from benchmarks.registry import Case, Side, register
from shade_fast.ops import native

BACKENDS = ("reference", "native")


def ran(backend: str) -> str:
    """What executes an op on the CPU, and with which instruction set; an error where it is not built."""
    return f"native {native.cpu().selected_isa()}" if backend == "native" else "torch"


def prepare(op: PixelOp, height: int, width: int) -> Callable[[str], Side]:
    """Sides of one call of an op, from the same inputs."""
    first = Pixels.random((1, 3, height, width))
    pixels = first.copied(op.changes)
    right = op.results(first.copied(op.changes), "reference")

    def reset() -> None:
        for name in op.changes:
            getattr(pixels, name).copy_(getattr(first, name))

    def side(backend: str) -> Side:
        return Side(ran(backend), lambda: op.results(pixels, backend), lambda results: op.wrong(results, right), reset)

    return side


def _register(op: PixelOp) -> None:
    for size, (height, width) in SIZES.items():
        register(
            Case(
                name=f"ops.{op.name}.{size}",
                purpose=op.purpose,
                shape=f"1x3x{height}x{width}",
                backends=BACKENDS,
                prepare=functools.partial(prepare, op, height, width),
                bytes_moved=op.bytes * 3 * height * width,
            )
        )


for _op in OPS:
    if isinstance(_op, PixelOp) and _op.purpose:
        _register(_op)
