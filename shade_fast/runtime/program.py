"""A network's layers at one image size, laid out as calls on buffers: forward alone, or forward and input gradient."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shade_fast.ops import epilogue, memory_format, native
from shade_fast.ops.convolution import Convolution
from shade_fast.ops.epilogue import mask_shape
from shade_fast.ops.native import Call
from shade_fast.runtime import plan
from shade_fast.runtime.arena import Block, Buffer, lay_out
from shade_fast.runtime.layers import Dims, Layer, Value, finish_of, recut
from shade_fast.runtime.torch_layers import TorchLayer

At = Callable[[Buffer], Tensor]


@dataclass(eq=False)
class Network:
    """Layers in the order of the forward, from images to outputs. The images' affine map is the first layer's."""

    layers: list[Layer]
    images: list[ImagesLayer]
    outputs: list[Value]
    #: size and strides of each output
    views: list[tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def separable(self) -> bool:
        """Whether each image's results are known to be of that image alone: nothing here mixes images but torch's ops
        may, and memory that is cut into other images than there are."""
        batch = self.images[0].output.dims[0] if self.images else 0
        cuts = [operand.dims for layer in self.layers for operand in layer.operands()]
        cuts += [layer.output.dims for layer in self.layers]
        return (
            not any(isinstance(layer, TorchLayer) for layer in self.layers)
            and all(dims[0] == batch for dims in cuts)
            and all(size[:1] == (batch,) and strides[0] == math.prod(size[1:]) for size, strides in self.views)
        )

    @property
    def largest(self) -> int:
        """Bytes of the largest value of one image."""
        return max((4 * math.prod(layer.output.dims[1:]) for layer in self.layers), default=0)


@dataclass(eq=False)
class ImagesLayer:
    """The images as the first layers take them: scale · images + shift, per channel, channels-last."""

    output: Value
    scale: Tensor | None
    shift: Tensor | None


@dataclass(eq=False)
class Step:
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

    def __init__(self, network: Network, differentiable: bool, threads: int, accuracy: str) -> None:
        self.differentiable = differentiable
        self.threads = threads
        self.steps: list[Step] = []
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
        self._append(Step(layer.name, layer.kind, bind, reads, writes, algorithm, operations, extra))

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
        self._append(Step("", "gradient sum", bind, reads, [result], "", 0.0))

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
        self._append(Step("", name, lambda at: _nothing, reads, writes, "", 0.0))

    def _append(self, step: Step) -> None:
        for buffer in (*step.reads, *step.writes):
            buffer.used_at(len(self.steps))
        self.steps.append(step)


class Program:
    """A schedule with its buffers' places: `forward`, then where it is differentiable `backward`, in a block."""

    def __init__(self, network: Network, differentiable: bool, threads: int, accuracy: str) -> None:
        schedule = Schedule(network, differentiable, threads, accuracy)
        self.steps = schedule.steps
        self.bytes = lay_out(buffer for buffer in schedule.buffers if buffer.first >= 0)
        #: bytes that torch keeps where it runs an op, from its forward to its backward: about a copy of the buffers
        self.beside = sum(
            buffer.bytes for step in self.steps if step.algorithm == "torch" for buffer in (*step.reads, *step.writes)
        )
        self.views = network.views
        self.forward_steps = schedule.forward_steps
        self._network = network
        self._schedule = schedule
        self._bound_to = -1
        self._calls: list[Call] = []
        self._extras: list[tuple[int, ...]] = []
        #: a value for each image, for who makes the gradients in the outputs
        self.scratch = torch.empty(network.images[0].output.dims[0], dtype=torch.float32, device="cpu")
        #: seconds of each step's last run while profiling, else None
        self.seconds: list[float] | None = None

    def forward(self, block: Block, images: Tensor, extras: Sequence[Tensor] = ()) -> list[Tensor]:
        """The outputs, views of the block: copy what is to outlive the block's next use. images: [B, 3, h, w]."""
        self._bind(block, extras)
        threads = self._schedule.threads
        images = images.contiguous()
        for layer, buffer in zip(self._network.images, self._schedule.images, strict=True):
            _check(memory_format.bind_channels_last(images, layer.scale, layer.shift, self._at(buffer), threads)())
        self._run(0, self.forward_steps)
        return [
            self._at(buffer).as_strided(*view)
            for buffer, view in zip(self._schedule.outputs, self._network.views, strict=True)
        ]

    @property
    def seeds(self) -> list[Tensor]:
        """Where `backward` reads the gradients in the outputs; of a single output, memory that it does not share."""
        return [
            self._at(buffer).as_strided(*view)
            for buffer, view in zip(self._schedule.seeds, self._network.views, strict=True)
        ]

    def backward(self, result: Tensor) -> None:
        """The gradient in the images, into result [B, 3, h, w], from those in `seeds`; after one `forward`."""
        self._run(self.forward_steps, len(self.steps))
        threads = self._schedule.threads
        pairs = [
            (layer, buffer)
            for layer, buffer in zip(self._network.images, self._schedule.image_gradients, strict=True)
            if buffer is not None
        ]
        if not pairs:
            result.zero_()
        for number, (layer, buffer) in enumerate(pairs):
            target = result if number == 0 else torch.empty_like(result)
            _check(memory_format.bind_channels_first(self._at(buffer), layer.scale, None, target, threads)())
            if number:
                result += target

    def let_go(self) -> None:
        """Forget the further inputs of the last `forward`: they may be large, and nobody else's."""
        if self._extras:
            self._calls, self._extras, self._bound_to = [], [], -1

    def _bind(self, block: Block, extras: Sequence[Tensor]) -> None:
        block.grow(self.bytes)
        pointers = [(extra.data_ptr(), *extra.shape) for extra in extras]
        if self._bound_to == block.serial and self._extras == pointers:
            return
        tensors: dict[Buffer, Tensor] = {}

        def at(buffer: Buffer) -> Tensor:
            if buffer not in tensors:
                tensors[buffer] = buffer.within(block.memory)
            return tensors[buffer]

        self._at = at
        self._calls = [
            step.bind(at) if step.extra is None else step.bind(at, extras[step.extra]) for step in self.steps
        ]
        self._bound_to, self._extras = block.serial, pointers

    def _run(self, first: int, last: int) -> None:
        if self.seconds is not None:
            for number in range(first, last):
                start = time.perf_counter()
                _check(self._calls[number]())
                self.seconds[number] = time.perf_counter() - start
            return
        for call in self._calls[first:last]:
            status = call()
            if status:
                _check(status)


def _bind_sum(
    gradient: Buffer,
    result: Buffer,
    residual: Buffer | None,
    gate: Buffer | None,
    dims: Dims,
    threads: int,
) -> Callable[[At], Call]:
    return lambda at: epilogue.bind(
        recut(at(gradient), dims), recut(at(result), dims), finish_of(at, residual, gate, dims), threads
    )


def _nothing() -> int:
    return 0


def _check(status: int) -> None:
    native.check(native.cpu(), status)
