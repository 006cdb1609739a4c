"""What the nodes of a traced graph stand for while it is lowered, and the memory order of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shade_fast.runtime.cpu.values import Dims, Value
from shade_fast.runtime.graph import mapped


@dataclass(frozen=True, eq=False)
class Ref:
    """What a node stands for: a view of a layer's value, or of the images before they are taken in.

    meta: its size and strides, without memory. single: nothing else in the graph looks at the value.
    affine: of the images alone, scale and shift for what the nodes so far have made of them.
    """

    value: Value | None
    meta: Tensor
    single: bool
    affine: tuple[Tensor, Tensor] | None = None
    extra: int | None = None


def channels_last(dims: Dims) -> Tensor:
    """A tensor without memory, of these dimensions."""
    return meta_of(dims, torch.channels_last)


def refs_of(structure: Any) -> list[Ref]:
    """The refs in a structure of lists, tuples and dicts."""
    refs: list[Ref] = []
    map_refs(structure, refs.append)
    return refs


def map_refs(structure: Any, function: Callable[[Ref], Any]) -> Any:
    """A structure with a function of its refs in their place."""
    return mapped(structure, Ref, function)


def metas_of(structure: Any) -> Any:
    """Refs, and constants, as tensors without memory."""
    return mapped(structure, (Ref, Tensor), lambda part: part.meta if isinstance(part, Ref) else part.to("meta"))


def meta_of(shape: Sequence[int], order: torch.memory_format = torch.contiguous_format) -> Tensor:
    """A tensor without memory, of this shape."""
    return torch.empty(shape, dtype=torch.float32, device="meta", memory_format=order)


def dims_of(meta: Tensor) -> Dims:
    """A dense tensor's memory as [B, C, h, w]: channels are what lies next to each other."""
    if meta.ndim == 4 and meta.permute(0, 2, 3, 1).is_contiguous():
        return (meta.shape[0], meta.shape[1], meta.shape[2], meta.shape[3])
    if meta.ndim < 2:
        return (meta.numel(), 1, 1, 1)
    return (meta.shape[0], meta.shape[-1], 1, count(meta.shape[1:-1]))


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors put the same element in the same place."""
    if a.shape != b.shape:
        return False
    return all(x == y for side, x, y in zip(a.shape, a.stride(), b.stride(), strict=True) if side > 1)


def count(sides: Sequence[int]) -> int:
    """Elements of a shape."""
    product = 1
    for side in sides:
        product *= side
    return product
