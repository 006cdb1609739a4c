"""A network's run, forward and input gradient, as one node of autograd's graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class DifferentiableRun(Protocol):
    """One run of a network on inputs, the images first; the images alone get a gradient."""

    def forward(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The outputs, new tensors. inputs: without autograd's graph."""

    def backward(self, upstream: Sequence[Tensor]) -> Tensor:
        """The gradient in the images, from those in the outputs."""


def differentiable(run: DifferentiableRun, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The outputs of a run, which autograd can differentiate, once, in the images."""
    outputs: tuple[Tensor, ...] = _Run.apply(run, *inputs)  # type: ignore[no-untyped-call]
    return outputs


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: DifferentiableRun, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.run, ctx.extras = run, len(inputs) - 1
        return tuple(run.forward([tensor.detach() for tensor in inputs]))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, ctx.run.backward(upstream), *([None] * ctx.extras)
