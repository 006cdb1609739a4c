"""A lowered network at one image size, laid out as calls on buffers: forward alone, or forward and input gradient."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from shade_fast.ops import memory_format, native
from shade_fast.ops.native import Call
from shade_fast.runtime.cpu.arena import Block, Buffer, lay_out
from shade_fast.runtime.cpu.lowered import LoweredNetwork
from shade_fast.runtime.cpu.schedule import Schedule


class Program:
    """A schedule with its buffers' places: `forward`, then where it is differentiable `backward`, in a block."""

    def __init__(self, network: LoweredNetwork, differentiable: bool, threads: int, accuracy: str) -> None:
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


def _check(status: int) -> None:
    native.check(native.cpu(), status)
