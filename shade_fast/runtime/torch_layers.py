"""The layers that torch executes on the program's buffers: attention's matrix products, and ops without a kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shade_fast.ops.finish import Call
from shade_fast.runtime.arena import Buffer
from shade_fast.runtime.layers import Layer, Operand

if TYPE_CHECKING:
    from shade_fast.runtime.program import Schedule


@dataclass(eq=False)
class AttentionLayer(Layer):
    """softmax(q kᵀ · scale) v, by torch's matrix products on the buffers. q, k, v: [B, tokens, heads · size]."""

    query: Operand
    key: Operand
    value: Operand
    heads: int
    scale: float
    kind: str = field(default="attention", kw_only=True)

    #: Query rows at a time: their scores stay in the caches.
    ROWS = 512

    def operands(self) -> list[Operand]:
        return [self.query, self.key, self.value]

    def forward(self, schedule: Schedule) -> None:
        query, key, value = (schedule.buffer(operand.value) for operand in self.operands())
        output = schedule.buffer(self.output)
        batch, _, _, rows = self.query.dims
        columns = self.key.dims[3]
        shape = (batch, self.heads, rows, columns)
        weights = schedule.keep(self, shape) if schedule.differentiable else schedule.new_buffer(shape)

        def bind(at: Callable[[Buffer], Tensor]) -> Call:
            q, k, v, out = (self._heads(at(buffer)) for buffer in (query, key, value, output))
            p = at(weights)

            def call() -> int:
                for image in range(batch):
                    for head in range(self.heads):
                        for row in range(0, rows, self.ROWS):
                            block = slice(row, row + self.ROWS)
                            scores = p[image, head, block]
                            torch.addmm(
                                scores, q[image, head, block], k[image, head].t(), beta=0, alpha=self.scale, out=scores
                            )
                            torch._softmax(scores, 1, False, out=scores)
                            torch.mm(scores, v[image, head], out=out[image, head, block])
                return 0

            return call

        size = self.query.dims[1] // self.heads
        schedule.emit(
            self,
            bind,
            reads=[query, key, value],
            writes=[output, weights],
            algorithm="torch matrix products",
            operations=4 * batch * self.heads * rows * columns * size,
        )

    def backward(self, schedule: Schedule, gradient: Buffer) -> None:
        query, key, value = (schedule.buffer(operand.value) for operand in self.operands())
        weights = schedule.kept(self)
        batch, _, _, rows = self.query.dims
        columns, size = self.key.dims[3], self.query.dims[1] // self.heads
        results = [schedule.new_buffer(operand.value.dims, channels_last=True) for operand in self.operands()]
        scratch = schedule.new_buffer((min(rows, self.ROWS), columns))

        def bind(at: Callable[[Buffer], Tensor]) -> Call:
            q, k, v, g = (self._heads(at(buffer)) for buffer in (query, key, value, gradient))
            dq, dk, dv = (self._heads(at(buffer)) for buffer in results)
            p, temporary = at(weights), at(scratch)

            def call() -> int:
                for image in range(batch):
                    for head in range(self.heads):
                        for row in range(0, rows, self.ROWS):
                            block = slice(row, row + self.ROWS)
                            probability, upstream = p[image, head, block], g[image, head, block]
                            beta = 0 if row == 0 else 1
                            torch.addmm(dv[image, head], probability.t(), upstream, beta=beta, out=dv[image, head])
                            scores = temporary[: len(probability)]
                            torch.mm(upstream, v[image, head].t(), out=scores)
                            torch._softmax_backward_data(scores, probability, 1, torch.float32, grad_input=scores)
                            torch.addmm(
                                dq[image, head, block],
                                scores,
                                k[image, head],
                                beta=0,
                                alpha=self.scale,
                                out=dq[image, head, block],
                            )
                            torch.addmm(
                                dk[image, head],
                                scores.t(),
                                q[image, head, block],
                                beta=beta,
                                alpha=self.scale,
                                out=dk[image, head],
                            )
                return 0

            return call

        schedule.emit(
            self,
            bind,
            reads=[gradient, query, key, value, weights],
            writes=[*results, scratch],
            algorithm="torch matrix products",
            operations=8 * batch * self.heads * rows * columns * size,
        )
        for operand, result in zip(self.operands(), results, strict=True):
            schedule.pass_on(operand.value, result)

    def _heads(self, tensor: Tensor) -> Tensor:
        """[B, C, h, w] channels-last -> [B, heads, h · w, size]."""
        batch, channels, height, width = tensor.shape
        tokens = tensor.permute(0, 2, 3, 1).view(batch, height * width, self.heads, channels // self.heads)
        return tokens.transpose(1, 2)


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
                for target, made in zip(out, gradients, strict=True):
                    if made is None:
                        target.zero_()
                    else:
                        target.copy_(made)
                return 0

            return call

        schedule.emit(self, bind, reads=[gradient, *sources], writes=results, algorithm="torch")
        for operand, result in zip(self.sources, results, strict=True):
            schedule.pass_on(operand.value, result)
