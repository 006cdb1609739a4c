"""Buffers' places: none overlaps another that lives at the same time, and blocks are lent again."""

from __future__ import annotations

import random
import threading

import pytest
import torch

from shade_fast.runtime.cpu import arena
from shade_fast.runtime.cpu.arena import ALIGNMENT, Block, Blocks, Buffer, lay_out


def random_buffers(seed: int) -> list[Buffer]:
    choice = random.Random(seed)
    buffers = []
    for _ in range(60):
        first = choice.randrange(100)
        buffers.append(Buffer((choice.randrange(1, 5000),), first=first, last=first + choice.randrange(30)))
    return buffers


@pytest.mark.parametrize("seed", range(8))
def test_buffers_that_live_together_do_not_overlap(seed: int) -> None:
    buffers = random_buffers(seed)
    total = lay_out(buffers)
    for number, one in enumerate(buffers):
        assert one.offset % ALIGNMENT == 0
        assert one.offset + one.bytes <= total
        for other in buffers[:number]:
            apart = one.last < other.first or other.last < one.first
            assert apart or one.offset + one.bytes <= other.offset or other.offset + other.bytes <= one.offset


@pytest.mark.parametrize("seed", range(8))
def test_memory_stays_near_the_most_that_lives_at_once(seed: int) -> None:
    buffers = random_buffers(seed)
    most = max(sum(one.bytes for one in buffers if one.first <= step <= one.last) for step in range(130))
    assert most <= lay_out(buffers) <= 1.35 * most


def test_a_buffer_is_a_tensor_of_its_shape_in_the_block() -> None:
    plain, last = (
        Buffer((3, 5), torch.int16, first=0, last=0),
        Buffer((2, 3, 4, 5), channels_last=True, first=0, last=0),
    )
    memory = torch.zeros(lay_out([plain, last]), dtype=torch.uint8)
    plain.within(memory).fill_(7)
    last.within(memory).fill_(1.5)
    assert plain.within(memory).shape == (3, 5)
    assert bool((plain.within(memory) == 7).all())
    assert last.within(memory).is_contiguous(memory_format=torch.channels_last)
    assert bool((last.within(memory) == 1.5).all())


def test_a_block_that_was_given_back_is_lent_next_and_others_are_made_meanwhile() -> None:
    blocks = Blocks()
    first = blocks.borrow(1000)
    second = blocks.borrow(10)
    assert first is not second
    blocks.give_back(second)
    blocks.give_back(first)
    assert blocks.borrow(500) is first
    serial = first.serial
    first.grow(1000)
    assert first.serial == serial
    first.grow(1001)
    assert first.serial != serial


def test_a_step_that_is_collected_while_a_block_is_made_gives_its_own_back(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Blocks()
    held = blocks.borrow(10)

    class Collecting(Block):
        def __init__(self) -> None:
            blocks.give_back(held)
            super().__init__()

    monkeypatch.setattr(arena, "Block", Collecting)
    borrower = threading.Thread(target=blocks.borrow, args=(10,), daemon=True)
    borrower.start()
    borrower.join(timeout=10)
    assert not borrower.is_alive(), "it waits for the lock that it holds"
    assert blocks.borrow(0) is held


def test_released_blocks_give_their_memory_back_whoever_holds_their_tensors() -> None:
    blocks = Blocks()
    block = blocks.borrow(1 << 20)
    held = block.memory[:100]
    blocks.give_back(block)
    blocks.release()
    assert isinstance(block, Block)
    assert held.untyped_storage().nbytes() == 0
    other = blocks.borrow(1)
    assert other is not block
    held = other.memory
    other.grow(1 << 20)
    assert held.untyped_storage().nbytes() == 0
