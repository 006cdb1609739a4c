"""A program's steps in order, as its layers emit them: forward and then backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shade_fast.ops import epilogue
from shade_fast.ops.convolution import Convolution
from shade_fast.ops.epilogue import mask_shape
from shade_fast.ops.native import Call
from shade_fast.runtime.cpu import plan
from shade_fast.runtime.cpu.arena import Buffer
from shade_fast.runtime.cpu.layers import Layer
from shade_fast.runtime.cpu.lowered import LoweredNetwork
from shade_fast.runtime.cpu.values import Dims, Value, epilogue_of, recut

At = Callable[[Buffer], Tensor]


@dataclass(eq=False)
class ProgramStep:
    """One call of a program: the buffers that it reads and writes, and what binds it to them."""

    layer: str
    kind: str
    bind: Callable[..., Call]
    reads: Sequence[Buffer]
    writes: Sequence[Buffer]
    algorithm: str
    operations: float
    #: which of the network's further inputs the call takes
    extra: int | None = None


@dataclass(eq=False)
class _Gradient:
    buffer: Buffer | None
    missing: int


class Schedule:
    """Collects a program's steps while the layers emit them, forward and then backward."""

    def __init__(self, network: LoweredNetwork, differentiable: bool, threads: int, accuracy: str) -> None:
        self.differentiable = differentiable
        self.threads = threads
        self.steps: list[ProgramStep] = []
        self.buffers: list[Buffer] = []
        self._accuracy = accuracy
        self._jumps = any(layer.jumps for layer in network.layers)
        self._network = network
        self._values: dict[Value, Buffer] = {}
        self._masks: dict[Value, Buffer] = {}
        self._kept: dict[Layer, Buffer] = {}
        self._states: dict[Layer, dict[str, Any]] = {}
        self._gradients: dict[Value, _Gradient] = {}
        self.seeds: list[Buffer] = []

        #: channels-last images, the forward's inputs and, in their buffers, the backward's results
        self.images = [self.buffer(layer.output) for layer in network.images]
        self._mark("images", writes=self.images)
        for layer in network.layers:
            layer.forward(self)
        self.outputs = [self.buffer(value) for value in network.outputs]
        self._mark("outputs", reads=self.outputs)
        self.forward_steps = len(self.steps)
        if differentiable:
            self._backward()

    def buffer(self, value: Value) -> Buffer:
        """The buffer of a value."""
        if value not in self._values:
            self._values[value] = self.new_buffer(value.dims, channels_last=True)
        return self._values[value]

    def mask(self, value: Value) -> Buffer | None:
        """The buffer of a value's mask, where its gradient wants one."""
        if not (self.differentiable and value.gated):
            return None
        if value not in self._masks:
            self._masks[value] = self.new_buffer(mask_shape(value.dims), torch.int16)
        return self._masks[value]

    def new_buffer(
        self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, channels_last: bool = False
    ) -> Buffer:
        buffer = Buffer(shape, dtype, channels_last)
        self.buffers.append(buffer)
        return buffer

    def keep(self, layer: Layer, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Buffer:
        """A buffer that a layer's forward fills for its backward."""
        self._kept[layer] = self.new_buffer(shape, dtype)
        return self._kept[layer]

    def kept(self, layer: Layer) -> Buffer:
        return self._kept[layer]

    def state(self, layer: Layer) -> dict[str, Any]:
        """What a layer's forward leaves to its backward outside the buffers."""
        return self._states.setdefault(layer, {})

    def choose(self, direction: str, convolution: Convolution, source: Dims, result: Dims) -> str:
        """The algorithm of a convolution, "forward" or "backward"."""
        return plan.choose(self._accuracy_of(direction), convolution, source, result, self.threads)

    def choose_product(self, direction: str, shortest: int) -> str:
        """The algorithm of products of matrices, "forward" or "backward", whose shortest side is this long."""
        return plan.choose_product(self._accuracy_of(direction), shortest)

    def _accuracy_of(self, direction: str) -> str:
        """Rounding in the forward decides jumps of the gradient, where there are any."""
        careful = self._accuracy == "fast" and direction == "forward" and self._jumps
        return "careful" if careful else self._accuracy

    def emit(
        self,
        layer: Layer,
        bind: Callable[..., Call],
        *,
        reads: Sequence[Buffer],
        writes: Sequence[Buffer],
        algorithm: str = "",
        operations: float = 0.0,
        extra: int | None = None,
    ) -> None:
        """Append a call: `bind(at)` is given the buffers' tensors, and with `extra` that input too."""
        self._append(ProgramStep(layer.name, layer.kind, bind, reads, writes, algorithm, operations, extra))

    def contribute(self, value: Value, emit: Callable[[Buffer, Buffer | None, Buffer | None], None]) -> None:
        """A gradient in `value` that a call makes: `emit(result, residual, gate)` appends it.

        result = gate(gradient + residual): the residual is what other layers have contributed, often the result itself.
        """
        state, gate = self._take(value)
        residual = state.buffer
        if residual is not None and residual.holders == 1:
            result = residual
        else:
            result = self.new_buffer(value.dims, channels_last=True)
            self._hold(state, result)
        emit(result, residual, gate)

    def pass_on(self, value: Value, gradient: Buffer) -> None:
        """A gradient in `value` that is there already: that of a sum, in one of its terms."""
        state, gate = self._take(value)
        residual = state.buffer
        if residual is None and gate is None:
            self._hold(state, gradient)
            return
        result = residual if residual is not None and residual.holders == 1 else None
        if result is None:
            result = self.new_buffer(value.dims, channels_last=True)
            self._hold(state, result)
        dims = value.dims
        bind = _bind_sum(gradient, result, residual, gate, dims, self.threads)
        reads = [buffer for buffer in (gradient, residual, gate) if buffer]
        self._append(ProgramStep("", "gradient sum", bind, reads, [result], "", 0.0))

    def _backward(self) -> None:
        for value in self._network.outputs:
            seed = self.new_buffer(value.dims, channels_last=True)
            self.seeds.append(seed)
        # A single output is still there while its gradient is made of it.
        self._mark("seeds", reads=self.outputs if len(self.outputs) == 1 else (), writes=self.seeds)
        for value, seed in zip(self._network.outputs, self.seeds, strict=True):
            self.pass_on(value, seed)
        for layer in reversed(self._network.layers):
            state = self._gradients.get(layer.output)
            if state is None or state.buffer is None:
                continue
            layer.backward(self, state.buffer)
            # Only now may others write over it.
            state.buffer.holders -= 1
        self.image_gradients = [self._gradients[layer.output].buffer for layer in self._network.images]
        self._mark("image gradients", reads=[buffer for buffer in self.image_gradients if buffer])

    def _take(self, value: Value) -> tuple[_Gradient, Buffer | None]:
        """A value's gradient so far, and its gate where this contribution is the last."""
        state = self._gradients.setdefault(value, _Gradient(None, value.consumers))
        state.missing -= 1
        gate = self._masks.get(value) if state.missing == 0 else None
        return state, gate

    def _hold(self, state: _Gradient, buffer: Buffer) -> None:
        if state.buffer is not None:
            state.buffer.holders -= 1
        state.buffer = buffer
        buffer.holders += 1

    def _mark(self, name: str, reads: Sequence[Buffer] = (), writes: Sequence[Buffer] = ()) -> None:
        """A place in time at which the caller reads or writes buffers."""
        self._append(ProgramStep("", name, lambda at: _nothing, reads, writes, "", 0.0))

    def _append(self, step: ProgramStep) -> None:
        for buffer in (*step.reads, *step.writes):
            buffer.used_at(len(self.steps))
        self.steps.append(step)


def _bind_sum(
    gradient: Buffer,
    result: Buffer,
    residual: Buffer | None,
    gate: Buffer | None,
    dims: Dims,
    threads: int,
) -> Callable[[At], Call]:
    return lambda at: epilogue.bind(
        recut(at(gradient), dims), recut(at(result), dims), epilogue_of(at, residual, gate, dims), threads
    )


def _nothing() -> int:
    return 0
