"""The layers without a kernel here, which torch executes on the program's buffers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shade_fast.ops.native import Call
from shade_fast.runtime.cpu.arena import Buffer
from shade_fast.runtime.cpu.layers.layer import Layer
from shade_fast.runtime.cpu.values import Operand

if TYPE_CHECKING:
    from shade_fast.runtime.cpu.schedule import Schedule


@dataclass(eq=False)
class TorchLayer(Layer):
    """An op that has no kernel here: torch runs it on the buffers, and makes its gradient by autograd."""

    #: from the operands' tensors to the result
    function: Callable[..., Tensor]
    sources: list[Operand]
    #: size and strides of each operand and of the result
    views: list[tuple[tuple[int, ...], tuple[int, ...]]]
    output_view: tuple[tuple[int, ...], tuple[int, ...]]
    kind: str = field(default="torch", kw_only=True)

    @property
    def jumps(self) -> bool:
        return True  # for all that is known

    @property
    def mixes_images(self) -> bool:
        return True  # for all that is known

    def operands(self) -> list[Operand]:
        return self.sources

    def forward(self, schedule: Schedule) -> None:
        sources = [schedule.buffer(operand.value) for operand in self.sources]
        output = schedule.buffer(self.output)
        graph: dict[str, Any] = schedule.state(self)

        def bind(at: Callable[[Buffer], Tensor]) -> Call:
            inputs = [at(buffer).as_strided(*view) for buffer, view in zip(sources, self.views, strict=True)]
            out = at(output).as_strided(*self.output_view)

            def call() -> int:
                with torch.set_grad_enabled(schedule.differentiable):
                    # .data: autograd would take what others write elsewhere in the block for a change.
                    leaves = [tensor.data.requires_grad_(schedule.differentiable) for tensor in inputs]
                    result = self.function(*leaves)
                out.copy_(result.detach())
                graph.update(leaves=leaves, result=result)
                return 0

            return call

        # A function may keep its inputs for its gradient.
        schedule.emit(self, bind, reads=sources, writes=[output], algorithm="torch")

    def backward(self, schedule: Schedule, gradient: Buffer) -> None:
        sources = [schedule.buffer(operand.value) for operand in self.sources]
        results = [schedule.new_buffer(operand.value.dims, channels_last=True) for operand in self.sources]
        graph: dict[str, Any] = schedule.state(self)

        def bind(at: Callable[[Buffer], Tensor]) -> Call:
            upstream = at(gradient).as_strided(*self.output_view)
            out = [at(buffer).as_strided(*view) for buffer, view in zip(results, self.views, strict=True)]

            def call() -> int:
                gradients = torch.autograd.grad(graph["result"], graph["leaves"], upstream, allow_unused=True)
                graph.clear()
                for target, result in zip(out, gradients, strict=True):
                    if result is None:
                        target.zero_()
                    else:
                        target.copy_(result)
                return 0

            return call

        schedule.emit(self, bind, reads=[gradient, *sources], writes=results, algorithm="torch")
        for operand, result in zip(self.sources, results, strict=True):
            schedule.pass_on(operand.value, result)
