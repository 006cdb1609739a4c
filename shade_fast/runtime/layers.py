"""The layers of a frozen network: what each reads and writes, forward and backward, and the ops that run it.

Values lie in memory channels-last. A layer's backward makes the gradient in its input alone; what it keeps of the
forward for that is what it reads again: a convolution nothing, a normalisation its input, a ReLU one bit a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from shade_fast.ops import convolution as conv
from shade_fast.ops import epilogue, group_norm, native, silu
from shade_fast.ops.epilogue import Epilogue, mask_shape
from shade_fast.ops.native import Call
from shade_fast.runtime.arena import Buffer

if TYPE_CHECKING:
    from shade_fast.runtime.program import Schedule

Dims = tuple[int, int, int, int]


@dataclass(eq=False)
class Value:
    """What a layer makes: [B, C, h, w], in memory [B, h, w, C]. `gated`: by a ReLU, whose mask gates its gradient."""

    dims: Dims
    gated: bool = False
    consumers: int = 0


@dataclass(frozen=True)
class Operand:
    """A value as one layer takes it: the same memory, cut into images, channels, height and width in its own way."""

    value: Value
    dims: Dims


@dataclass(eq=False)
class Layer:
    """One op of the network, with what was fused into it. `name` is the module's, `kind` what it does."""

    name: str
    output: Value
    kind: str = field(default="", kw_only=True)

    @property
    def jumps(self) -> bool:
        """Whether its gradient is not continuous in its input, so that rounding may decide what it is."""
        return self.output.gated

    def operands(self) -> list[Operand]:
        raise NotImplementedError

    def forward(self, schedule: Schedule) -> None:
        raise NotImplementedError

    def backward(self, schedule: Schedule, gradient: Buffer) -> None:
        raise NotImplementedError


@dataclass(eq=False)
class ConvolutionLayer(Layer):
    """convolution + bias (+ residual) (+ ReLU); a linear layer is one of 1x1."""

    source: Operand
    weight: Tensor
    bias: Tensor | None
    convolution: conv.Convolution
    out_dims: Dims
    residual: Operand | None = None
    #: where packed weights are kept, the network's or the layer's own, and what this layer's weight is known by there
    packs: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    identity: tuple[Any, ...] = ()
    kind: str = field(default="convolution", kw_only=True)

    def operands(self) -> list[Operand]:
        return [self.source] if self.residual is None else [self.source, self.residual]

    def pack(self, direction: str, algorithm: str) -> Tensor:
        key = (self.identity, self.convolution, direction, algorithm, native.cpu().selected_isa())
        if key not in self.packs:
            if direction == "forward":
                self.packs[key] = conv.pack(algorithm, self.convolution, self.weight)
            else:
                self.packs[key] = conv.pack(algorithm, self.convolution.gradient(), conv.rotated(self.weight))
        return self.packs[key]

    def forward(self, schedule: Schedule) -> None:
        source, output = schedule.buffer(self.source.value), schedule.buffer(self.output)
        residual = None if self.residual is None else schedule.buffer(self.residual.value)
        positive = schedule.mask(self.output)
        bias, relu = self.bias, self.output.gated

        def finish(at: Callable[[Buffer], Tensor]) -> Epilogue:
            return Epilogue(
                bias,
                None if residual is None else recut(at(residual), self.out_dims),
                None if positive is None else at(positive).view(mask_shape(self.out_dims)),
                relu,
            )

        self._convolve(
            schedule,
            "forward",
            self.convolution,
            (source, self.source.dims),
            (output, self.out_dims),
            finish,
            [buffer for buffer in (residual,) if buffer],
            [buffer for buffer in (positive,) if buffer],
        )

    def backward(self, schedule: Schedule, gradient: Buffer) -> None:
        def emit(result: Buffer, residual: Buffer | None, gate: Buffer | None) -> None:
            dims = self.source.dims
            self._convolve(
                schedule,
                "backward",
                self.convolution.gradient(),
                (gradient, self.out_dims),
                (result, dims),
                lambda at: finish_of(at, residual, gate, dims),
                [buffer for buffer in (residual, gate) if buffer],
                [],
            )

        # First, so that what the convolution adds can be added to it on the way.
        if self.residual is not None:
            schedule.pass_on(self.residual.value, gradient)
        schedule.contribute(self.source.value, emit)

    def _convolve(
        self,
        schedule: Schedule,
        direction: str,
        convolution: conv.Convolution,
        source: tuple[Buffer, Dims],
        result: tuple[Buffer, Dims],
        finish: Callable[[Callable[[Buffer], Tensor]], Epilogue],
        reads: list[Buffer],
        writes: list[Buffer],
    ) -> None:
        threads = schedule.threads
        algorithm = schedule.choose(direction, convolution, source[1], result[1])
        packed = self.pack(direction, algorithm)
        size = conv.scratch_size(algorithm, convolution, source[1], result[1], threads)
        scratch = schedule.new_buffer((size,))

        def bind(at: Callable[[Buffer], Tensor]) -> Call:
            return conv.bind(
                algorithm,
                convolution,
                packed,
                recut(at(source[0]), source[1]),
                recut(at(result[0]), result[1]),
                finish(at),
                at(scratch),
                threads,
            )

        batch, channels, height, width = result[1]
        taps = math.prod(convolution.kernel) / convolution.up**2
        schedule.emit(
            self,
            bind,
            reads=[source[0], *reads],
            writes=[result[0], scratch, *writes],
            algorithm=algorithm,
            operations=2 * batch * channels * height * width * convolution.channels * taps,
        )


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
                    finish_of(at, residual, gate, dims),
                    at(scratch),
                    schedule.threads,
                ),
                reads=[gradient, source, statistics, *(buffer for buffer in (residual, gate) if buffer)],
                writes=[result, scratch],
            )

        schedule.contribute(self.source.value, emit)

    def _scratch(self, schedule: Schedule) -> Buffer:
        return schedule.new_buffer((group_norm.scratch_size(self.source.dims, self.groups, schedule.threads),))


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
                    finish_of(at, residual, gate, dims),
                    schedule.threads,
                ),
                reads=[gradient, source, *(buffer for buffer in (residual, gate) if buffer)],
                writes=[result],
            )

        schedule.contribute(self.source.value, emit)


def recut(tensor: Tensor, dims: Dims) -> Tensor:
    """The same channels-last memory as [B, C, h, w] of other sides."""
    if tuple(tensor.shape) == dims:
        return tensor
    batch, channels, height, width = dims
    return tensor.permute(0, 2, 3, 1).view(batch, height, width, channels).permute(0, 3, 1, 2)


def finish_of(at: Callable[[Buffer], Tensor], residual: Buffer | None, gate: Buffer | None, dims: Dims) -> Epilogue:
    """The finish of a gradient: what others have contributed, and the gate of the value it belongs to."""
    return Epilogue(
        residual=None if residual is None else recut(at(residual), dims),
        gate=None if gate is None else at(gate).view(mask_shape(dims)),
    )
