"""Pooling and blur: one small window for every channel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shade_fast.ops import blur, max_pool
from shade_fast.runtime.cpu.arena import Buffer
from shade_fast.runtime.cpu.layers.layer import Layer
from shade_fast.runtime.cpu.values import Operand, epilogue_of, recut

if TYPE_CHECKING:
    from shade_fast.runtime.cpu.schedule import Schedule


@dataclass(eq=False)
class MaxPoolLayer(Layer):
    """max pooling with square windows."""

    source: Operand
    kernel: int
    stride: int
    padding: int
    kind: str = field(default="max pool", kw_only=True)

    @property
    def jumps(self) -> bool:
        return True

    def operands(self) -> list[Operand]:
        return [self.source]

    def forward(self, schedule: Schedule) -> None:
        source, output = schedule.buffer(self.source.value), schedule.buffer(self.output)
        batch, channels, height, width = self.output.dims
        index = schedule.keep(self, (batch, height, width, channels), torch.uint8) if schedule.differentiable else None
        schedule.emit(
            self,
            lambda at: max_pool.bind(
                recut(at(source), self.source.dims),
                at(output),
                None if index is None else at(index),
                self.kernel,
                self.stride,
                self.padding,
                schedule.threads,
            ),
            reads=[source],
            writes=[output] if index is None else [output, index],
        )

    def backward(self, schedule: Schedule, gradient: Buffer) -> None:
        index, dims = schedule.kept(self), self.source.dims

        def emit(result: Buffer, residual: Buffer | None, gate: Buffer | None) -> None:
            schedule.emit(
                self,
                lambda at: max_pool.bind_gradient(
                    recut(at(gradient), self.output.dims),
                    at(index),
                    recut(at(result), dims),
                    self.kernel,
                    self.stride,
                    self.padding,
                    epilogue_of(at, residual, gate, dims),
                    schedule.threads,
                ),
                reads=[gradient, index, *(buffer for buffer in (residual, gate) if buffer)],
                writes=[result],
            )

        schedule.contribute(self.source.value, emit)


@dataclass(eq=False)
class BlurLayer(Layer):
    """the same small kernel for every channel, on an image continued by its mirror image."""

    source: Operand
    taps: Tensor
    stride: int
    padding: int
    kind: str = field(default="blur", kw_only=True)

    def operands(self) -> list[Operand]:
        return [self.source]

    def forward(self, schedule: Schedule) -> None:
        source, output = schedule.buffer(self.source.value), schedule.buffer(self.output)
        schedule.emit(
            self,
            lambda at: blur.bind(
                recut(at(source), self.source.dims),
                self.taps,
                at(output),
                self.stride,
                self.padding,
                schedule.threads,
            ),
            reads=[source],
            writes=[output],
        )

    def backward(self, schedule: Schedule, gradient: Buffer) -> None:
        dims = self.source.dims

        def emit(result: Buffer, residual: Buffer | None, gate: Buffer | None) -> None:
            schedule.emit(
                self,
                lambda at: blur.bind_gradient(
                    recut(at(gradient), self.output.dims),
                    self.taps,
                    recut(at(result), dims),
                    self.stride,
                    self.padding,
                    epilogue_of(at, residual, gate, dims),
                    schedule.threads,
                ),
                reads=[gradient, *(buffer for buffer in (residual, gate) if buffer)],
                writes=[result],
            )

        schedule.contribute(self.source.value, emit)
