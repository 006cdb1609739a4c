"""The LPIPS distance itself: a layer's share of it, and the clean image's features."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from shade_fast.ops import lpips_layer
from shade_fast.runtime.cpu.arena import Buffer
from shade_fast.runtime.cpu.layers.layer import Layer
from shade_fast.runtime.cpu.values import Operand, epilogue_of, recut

if TYPE_CHECKING:
    from shade_fast.runtime.cpu.schedule import Schedule


@dataclass(eq=False)
class LpipsLayer(Layer):
    """one layer's share of the LPIPS distance, [B]; the clean image's features are the network's `clean`-th input."""

    source: Operand
    clean: int
    head: Tensor
    kind: str = field(default="lpips", kw_only=True)

    def operands(self) -> list[Operand]:
        return [self.source]

    def forward(self, schedule: Schedule) -> None:
        source, output = schedule.buffer(self.source.value), schedule.buffer(self.output)
        scratch = schedule.new_buffer((lpips_layer.scratch_size(self.source.dims),))
        schedule.emit(
            self,
            lambda at, clean: lpips_layer.bind(
                recut(at(source), self.source.dims),
                clean,
                self.head,
                at(output).view(-1),
                at(scratch),
                schedule.threads,
            ),
            reads=[source],
            writes=[output, scratch],
            extra=self.clean,
        )

    def backward(self, schedule: Schedule, gradient: Buffer) -> None:
        source, dims = schedule.buffer(self.source.value), self.source.dims

        def emit(result: Buffer, residual: Buffer | None, gate: Buffer | None) -> None:
            schedule.emit(
                self,
                lambda at, clean: lpips_layer.bind_gradient(
                    recut(at(source), dims),
                    clean,
                    self.head,
                    at(gradient).view(-1),
                    recut(at(result), dims),
                    epilogue_of(at, residual, gate, dims),
                    schedule.threads,
                ),
                reads=[gradient, source, *(buffer for buffer in (residual, gate) if buffer)],
                writes=[result],
                extra=self.clean,
            )

        schedule.contribute(self.source.value, emit)


@dataclass(eq=False)
class UnitLengthLayer(Layer):
    """each pixel's channels over their length: the clean image's features. Not differentiated."""

    source: Operand
    kind: str = field(default="lpips", kw_only=True)

    def operands(self) -> list[Operand]:
        return [self.source]

    def forward(self, schedule: Schedule) -> None:
        source, output = schedule.buffer(self.source.value), schedule.buffer(self.output)
        schedule.emit(
            self,
            lambda at: lpips_layer.bind_unit(recut(at(source), self.output.dims), at(output), schedule.threads),
            reads=[source],
            writes=[output],
        )
