"""Sums and activations that stand alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shade_fast.ops import epilogue, silu
from shade_fast.ops.epilogue import Epilogue
from shade_fast.runtime.cpu.arena import Buffer
from shade_fast.runtime.cpu.layers.layer import Layer
from shade_fast.runtime.cpu.values import Operand, epilogue_of, recut

if TYPE_CHECKING:
    from shade_fast.runtime.cpu.schedule import Schedule


@dataclass(eq=False)
class PointwiseLayer(Layer):
    """a sum of two values, a ReLU, or both."""

    source: Operand
    residual: Operand | None = None
    kind: str = field(default="pointwise", kw_only=True)

    def operands(self) -> list[Operand]:
        return [self.source] if self.residual is None else [self.source, self.residual]

    def forward(self, schedule: Schedule) -> None:
        source, output, positive = (
            schedule.buffer(self.source.value),
            schedule.buffer(self.output),
            schedule.mask(self.output),
        )
        residual = None if self.residual is None else schedule.buffer(self.residual.value)
        dims = self.output.dims
        schedule.emit(
            self,
            lambda at: epilogue.bind(
                recut(at(source), dims),
                at(output),
                Epilogue(
                    residual=None if residual is None else recut(at(residual), dims),
                    positive=None if positive is None else at(positive),
                    relu=self.output.gated,
                ),
                schedule.threads,
            ),
            reads=[buffer for buffer in (source, residual) if buffer],
            writes=[buffer for buffer in (output, positive) if buffer],
        )

    def backward(self, schedule: Schedule, gradient: Buffer) -> None:
        for operand in self.operands():
            schedule.pass_on(operand.value, gradient)


@dataclass(eq=False)
class SiluLayer(Layer):
    """a SiLU that stands alone."""

    source: Operand
    kind: str = field(default="silu", kw_only=True)

    def operands(self) -> list[Operand]:
        return [self.source]

    def forward(self, schedule: Schedule) -> None:
        source, output = schedule.buffer(self.source.value), schedule.buffer(self.output)
        dims = self.output.dims
        schedule.emit(
            self,
            lambda at: silu.bind(recut(at(source), dims), at(output), schedule.threads),
            reads=[source],
            writes=[output],
        )

    def backward(self, schedule: Schedule, gradient: Buffer) -> None:
        source, dims = schedule.buffer(self.source.value), self.output.dims

        def emit(result: Buffer, residual: Buffer | None, gate: Buffer | None) -> None:
            schedule.emit(
                self,
                lambda at: silu.bind_gradient(
                    recut(at(gradient), dims),
                    recut(at(source), dims),
                    recut(at(result), dims),
                    epilogue_of(at, residual, gate, dims),
                    schedule.threads,
                ),
                reads=[gradient, source, *(buffer for buffer in (residual, gate) if buffer)],
                writes=[result],
            )

        schedule.contribute(self.source.value, emit)
