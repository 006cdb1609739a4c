"""Memory of a step: buffers laid out by their lifetimes in one block, and the blocks that steps borrow."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: Buffers begin on cache lines, which is what streaming stores ask for.
ALIGNMENT = 64


@dataclass(eq=False)
class Buffer:
    """A tensor that lives from step `first` to step `last` of a program, both included."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    #: the order of a channels-last tensor [B, C, h, w]; else the shape's own
    channels_last: bool = False
    first: int = -1
    last: int = -1
    offset: int = -1
    #: how many values' gradients it holds at the moment, while a program is being laid out
    holders: int = field(default=0, repr=False)

    @property
    def bytes(self) -> int:
        size = self.dtype.itemsize
        for side in self.shape:
            size *= side
        return -(-size // ALIGNMENT) * ALIGNMENT

    def used_at(self, step: int) -> None:
        self.first = step if self.first < 0 else min(self.first, step)
        self.last = max(self.last, step)

    def within(self, block: Tensor) -> Tensor:
        """This buffer's tensor in a block of bytes."""
        elements = 1
        for side in self.shape:
            elements *= side
        values = block[self.offset : self.offset + elements * self.dtype.itemsize].view(self.dtype)
        if not self.channels_last:
            return values.view(self.shape)
        batch, channels, height, width = self.shape
        return values.view(batch, height, width, channels).permute(0, 3, 1, 2)


def lay_out(buffers: Iterable[Buffer]) -> int:
    """Give each buffer its offset, none overlapping another that lives at the same time; the bytes that all take.

    Largest first, each in the smallest gap that it fits: deterministic, and near the least for networks' lifetimes.
    """
    placed: list[Buffer] = []
    total = 0
    for buffer in sorted(buffers, key=lambda other: (-other.bytes, other.first)):
        neighbours = sorted(
            (other for other in placed if other.first <= buffer.last and buffer.first <= other.last),
            key=lambda other: other.offset,
        )
        best, best_gap, end = -1, -1, 0
        for other in neighbours:
            gap = other.offset - end
            if gap >= buffer.bytes and (best < 0 or gap < best_gap):
                best, best_gap = end, gap
            end = max(end, other.offset + other.bytes)
        buffer.offset = end if best < 0 else best
        total = max(total, buffer.offset + buffer.bytes)
        placed.append(buffer)
    return total


class Block:
    """A block of bytes that one step at a time works in; `serial` changes whenever the memory moves."""

    _serials = itertools.count()

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        self.serial = next(self._serials)

    def grow(self, size: int) -> None:
        """Make it at least `size` bytes; what it held is lost where it moves."""
        if self.memory.numel() < size:
            self.release()  # the old memory is given back before the new one is had
            self.memory = torch.empty(size, dtype=torch.uint8, device="cpu")
            self.serial = next(self._serials)

    def release(self) -> None:
        """Give the memory back, though programs that were bound to it still hold its tensors."""
        self.memory.untyped_storage().resize_(0)
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")


class Blocks:
    """The process' blocks: as many as there have been steps at the same time, since each returns what it borrowed."""

    def __init__(self) -> None:
        # Reentrant: a collector that runs while it is held may give back the block of a step that nobody waits for.
        self._lock = threading.RLock()
        self._free: list[Block] = []

    def borrow(self, size: int) -> Block:
        """A block of at least `size` bytes: the one used last, so that a step finds its own again."""
        with self._lock:
            block = self._free.pop() if self._free else Block()
        block.grow(size)
        return block

    def give_back(self, block: Block) -> None:
        with self._lock:
            self._free.append(block)

    def release(self) -> None:
        """Give the memory of all blocks that are not at work back to the system."""
        with self._lock:
            for block in self._free:
                block.release()
            self._free.clear()


BLOCKS = Blocks()
