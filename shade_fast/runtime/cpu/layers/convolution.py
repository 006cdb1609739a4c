"""Convolutions and linear layers, with the bias, the sum and the ReLU that are fused into them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from shade_fast.ops import convolution as conv
from shade_fast.ops import native
from shade_fast.ops.epilogue import Epilogue, mask_shape
from shade_fast.ops.native import Call
from shade_fast.runtime.cpu.arena import Buffer
from shade_fast.runtime.cpu.layers.layer import Layer
from shade_fast.runtime.cpu.values import Dims, Operand, epilogue_of, recut

if TYPE_CHECKING:
    from shade_fast.runtime.cpu.schedule import Schedule


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

        def epilogue(at: Callable[[Buffer], Tensor]) -> Epilogue:
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
            epilogue,
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
                lambda at: epilogue_of(at, residual, gate, dims),
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
        epilogue: Callable[[Callable[[Buffer], Tensor]], Epilogue],
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
                epilogue(at),
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
