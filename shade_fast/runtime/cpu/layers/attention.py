"""Attention over an image's pixels, as products of matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shade_fast.ops import matrix_product
from shade_fast.ops.native import Call
from shade_fast.runtime.cpu.arena import Buffer
from shade_fast.runtime.cpu.layers.layer import Layer
from shade_fast.runtime.cpu.values import Operand

if TYPE_CHECKING:
    from shade_fast.runtime.cpu.schedule import Schedule


@dataclass(eq=False)
class AttentionLayer(Layer):
    """softmax(q kᵀ · scale) v, q, k, v: [B, tokens, heads · size]."""

    query: Operand
    key: Operand
    value: Operand
    heads: int
    scale: float
    kind: str = field(default="attention", kw_only=True)

    #: Query rows at a time in the backward: the scores' gradient is not there as a whole.
    ROWS = 1024

    def operands(self) -> list[Operand]:
        return [self.query, self.key, self.value]

    def forward(self, schedule: Schedule) -> None:
        query, key, value = (schedule.buffer(operand.value) for operand in self.operands())
        output = schedule.buffer(self.output)
        batch, rows, columns, size = self._sizes()
        shape = (batch, self.heads, rows, columns)
        weights = schedule.keep(self, shape) if schedule.differentiable else schedule.new_buffer(shape)
        algorithm = schedule.choose_product("forward", min(rows, columns, size))
        scratch = self._scratch(schedule, (algorithm, columns, size), ("direct", size, columns))

        def bind(at: Callable[[Buffer], Tensor]) -> Call:
            q, k, v, out = (self._heads(at(buffer)) for buffer in (query, key, value, output))
            product = partial(matrix_product.bind, scratch=at(scratch), threads=schedule.threads)
            calls: list[Call] = []
            for image in range(batch):
                for head in range(self.heads):
                    scores = at(weights)[image, head]
                    # Softmax makes a score's error, which grows with the score, a relative one of a weight.
                    calls += [
                        product(q[image, head], k[image, head].t(), scores, factor=self.scale),
                        partial(_softmax, scores),
                        product(scores, v[image, head], out[image, head], algorithm=algorithm),
                    ]
            return partial(_all, calls)

        schedule.emit(
            self,
            bind,
            reads=[query, key, value],
            writes=[output, weights, scratch],
            algorithm=algorithm,
            operations=4 * batch * self.heads * rows * columns * size,
        )

    def backward(self, schedule: Schedule, gradient: Buffer) -> None:
        query, key, value = (schedule.buffer(operand.value) for operand in self.operands())
        weights = schedule.kept(self)
        batch, rows, columns, size = self._sizes()
        results = [schedule.new_buffer(operand.value.dims, channels_last=True) for operand in self.operands()]
        slopes = schedule.new_buffer((min(rows, self.ROWS), columns))
        algorithm = schedule.choose_product("backward", min(rows, columns, size))
        rights = (size, columns), (columns, size), (self.ROWS, size)
        scratch = self._scratch(schedule, *((algorithm, *right) for right in rights))

        def bind(at: Callable[[Buffer], Tensor]) -> Call:
            q, k, v, g = (self._heads(at(buffer)) for buffer in (query, key, value, gradient))
            dq, dk, dv = (self._heads(at(buffer)) for buffer in results)
            product = partial(matrix_product.bind, scratch=at(scratch), threads=schedule.threads, algorithm=algorithm)
            calls: list[Call] = []
            for image in range(batch):
                for head in range(self.heads):
                    at_once = image, head
                    for row in range(0, rows, self.ROWS):
                        some = image, head, slice(row, row + self.ROWS)
                        probability, later = at(weights)[some], row > 0
                        slope = at(slopes)[: len(probability)]
                        calls += [
                            product(probability.t(), g[some], dv[at_once], accumulate=later),
                            product(g[some], v[at_once].t(), slope),
                            partial(_softmax_gradient, slope, probability),
                            product(slope, k[at_once], dq[some], factor=self.scale),
                            product(slope.t(), q[some], dk[at_once], factor=self.scale, accumulate=later),
                        ]
            return partial(_all, calls)

        schedule.emit(
            self,
            bind,
            reads=[gradient, query, key, value, weights],
            writes=[*results, slopes, scratch],
            algorithm=algorithm,
            operations=8 * batch * self.heads * rows * columns * size,
        )
        for operand, result in zip(self.operands(), results, strict=True):
            schedule.pass_on(operand.value, result)

    def _sizes(self) -> tuple[int, int, int, int]:
        """Images, queries, keys, and the channels of a head."""
        batch, channels, height, width = self.query.dims
        return batch, height * width, self.key.dims[2] * self.key.dims[3], channels // self.heads

    def _scratch(self, schedule: Schedule, *products: tuple[str, int, int]) -> Buffer:
        """For products by these algorithms with right operands [depth, columns]."""
        sizes = (
            matrix_product.scratch_size(depth, columns, schedule.threads, algorithm)
            for algorithm, depth, columns in products
        )
        return schedule.new_buffer((max(sizes),))

    def _heads(self, tensor: Tensor) -> Tensor:
        """[B, C, h, w] channels-last -> [B, heads, h * w, size]."""
        batch, channels, height, width = tensor.shape
        tokens = tensor.permute(0, 2, 3, 1).view(batch, height * width, self.heads, channels // self.heads)
        return tokens.transpose(1, 2)


def _softmax(scores: Tensor) -> int:
    torch._softmax(scores, 1, False, out=scores)
    return 0


def _softmax_gradient(slope: Tensor, probability: Tensor) -> int:
    torch._softmax_backward_data(slope, probability, 1, torch.float32, grad_input=slope)
    return 0


def _all(calls: list[Call]) -> int:
    return next((status for call in calls if (status := call())), 0)
