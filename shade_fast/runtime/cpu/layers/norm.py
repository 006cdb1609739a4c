"""Group normalisation, with the activation that is fused into it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from shade_fast.ops import group_norm
from shade_fast.runtime.cpu.arena import Buffer
from shade_fast.runtime.cpu.layers.layer import Layer
from shade_fast.runtime.cpu.values import Operand, epilogue_of, recut

if TYPE_CHECKING:
    from shade_fast.runtime.cpu.schedule import Schedule


@dataclass(eq=False)
class GroupNormLayer(Layer):
    """group normalisation (+ ReLU or SiLU)."""

    source: Operand
    gamma: Tensor
    beta: Tensor
    groups: int
    epsilon: float
    activation: str = "none"
    kind: str = field(default="group norm", kw_only=True)

    @property
    def jumps(self) -> bool:
        return self.activation == "relu" or self.output.gated

    def operands(self) -> list[Operand]:
        return [self.source]

    def forward(self, schedule: Schedule) -> None:
        source, output = schedule.buffer(self.source.value), schedule.buffer(self.output)
        statistics = schedule.keep(self, group_norm.statistics_shape(self.source.dims, self.groups))
        scratch = self._scratch(schedule)
        schedule.emit(
            self,
            lambda at: group_norm.bind(
                recut(at(source), self.source.dims),
                self.gamma,
                self.beta,
                at(statistics),
                recut(at(output), self.source.dims),
                self.groups,
                self.epsilon,
                self.activation,
                at(scratch),
                schedule.threads,
            ),
            reads=[source],
            writes=[output, statistics, scratch],
        )

    def backward(self, schedule: Schedule, gradient: Buffer) -> None:
        source, statistics = schedule.buffer(self.source.value), schedule.kept(self)
        scratch = self._scratch(schedule)
        dims = self.source.dims

        def emit(result: Buffer, residual: Buffer | None, gate: Buffer | None) -> None:
            schedule.emit(
                self,
                lambda at: group_norm.bind_gradient(
                    recut(at(gradient), dims),
                    recut(at(source), dims),
                    self.gamma,
                    self.beta,
                    at(statistics),
                    recut(at(result), dims),
                    self.groups,
                    self.activation,
                    epilogue_of(at, residual, gate, dims),
                    at(scratch),
                    schedule.threads,
                ),
                reads=[gradient, source, statistics, *(buffer for buffer in (residual, gate) if buffer)],
                writes=[result, scratch],
            )

        schedule.contribute(self.source.value, emit)

    def _scratch(self, schedule: Schedule) -> Buffer:
        return schedule.new_buffer((group_norm.scratch_size(self.source.dims, self.groups, schedule.threads),))
