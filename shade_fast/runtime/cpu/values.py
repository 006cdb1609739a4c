"""The values that layers pass on, and the memory they are, channels-last, as each layer cuts it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from shade_fast.ops.epilogue import Epilogue, mask_shape

if TYPE_CHECKING:
    from shade_fast.runtime.cpu.arena import Buffer

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


def recut(tensor: Tensor, dims: Dims) -> Tensor:
    """The same channels-last memory as [B, C, h, w] of other sides."""
    if tuple(tensor.shape) == dims:
        return tensor
    batch, channels, height, width = dims
    return tensor.permute(0, 2, 3, 1).view(batch, height, width, channels).permute(0, 3, 1, 2)


def epilogue_of(at: Callable[[Buffer], Tensor], residual: Buffer | None, gate: Buffer | None, dims: Dims) -> Epilogue:
    """The epilogue of a gradient: what others have contributed, and the gate of the value it belongs to."""
    return Epilogue(
        residual=None if residual is None else recut(at(residual), dims),
        gate=None if gate is None else at(gate).view(mask_shape(dims)),
    )
