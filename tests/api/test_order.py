from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from shade_fast import ShadeFastError
from shade_fast.anchors import Anchor
from shade_fast.api.order import in_order
from shade_fast.images import DecodedImage
from shade_fast.protect.buckets import Buckets
from shade_fast.protect.outcome import PoisonedImage, Protected
from shade_fast.workers import DevicesLostError

ANCHOR = Anchor("grey", [np.full((8, 8, 3), 128, np.uint8)])
Waiting = list[tuple[list[str], Any]]


def image(name: str) -> DecodedImage:
    """Its first letter stands for its size."""
    return DecodedImage(name, np.zeros((8, ord(name[0]), 3), np.uint8))


def finish(waiting: Waiting, index: int) -> list[str]:
    works, future = waiting.pop(index)
    future.set_result([Protected(work.image, PoisonedImage(None, "ok", name=work.image.name)) for work in works])
    return [work.image.name for work in works]


def test_outcomes_come_in_order_though_the_last_is_ready_first() -> None:
    waiting: Waiting = []
    batches: list[list[str]] = []
    taken: list[str] = []

    def submit(works: Any, output: Any) -> Future[list[Protected]]:
        waiting.append((works, Future()))
        future: Future[list[Protected]] = waiting[-1][1]
        if len(waiting) == 3:
            while waiting:
                batches.append(finish(waiting, -1))
        return future

    def source() -> Any:
        for name in ("a1", "b1", "a2", "c1", "b2", "c2", "a3", "b3", "a4", "b4", "c3", "c4"):
            taken.append(name)
            yield image(name), ANCHOR

    order = [protected.outcome.name for protected in in_order(source(), None, submit, 2, 100)]
    assert order == taken
    assert sorted(batches) == [["a1", "a2"], ["a3", "a4"], ["b1", "b2"], ["b3", "b4"], ["c1", "c2"], ["c3", "c4"]]


def test_an_odd_size_does_not_hold_up_more_than_is_said() -> None:
    taken = 0

    def submit(works: Any, output: Any) -> Future[list[Protected]]:
        waiting: Waiting = [(works, Future())]
        future: Future[list[Protected]] = waiting[0][1]
        finish(waiting, 0)
        return future

    def source() -> Any:
        nonlocal taken
        for name in ["z", *(f"a{index}" for index in range(50))]:
            taken += 1
            yield image(name), ANCHOR

    outcomes = in_order(source(), None, submit, 4, 10)
    assert next(outcomes).outcome.name == "z"
    assert taken == 11
    assert len(list(outcomes)) == 50


def test_once_the_devices_are_lost_the_rest_fails_with_the_reason() -> None:
    def submit(works: Any, output: Any) -> Future[list[Protected]]:
        waiting: Waiting = [(works, Future())]
        future: Future[list[Protected]] = waiting[0][1]
        if works[0].image.name in lost:
            future.set_exception(DevicesLostError("devices: none is left (cuda:0: why)"))
        else:
            finish(waiting, 0)
        return future

    def protect(*names: str) -> list[str]:
        images = [ShadeFastError("gone: cannot be read") if name == "gone" else image(name) for name in names]
        outcomes = in_order(((source, ANCHOR) for source in images), None, submit, 1, 10)
        return [f"{protected.outcome.status} {protected.outcome.error}" for protected in outcomes]

    lost = {"c.png", "d.png"}
    assert protect("a.png", "gone", "c.png", "d.png") == [
        "ok None",
        "failed gone: cannot be read",
        "failed c.png: devices: none is left (cuda:0: why)",
        "failed d.png: devices: none is left (cuda:0: why)",
    ]
    with pytest.raises(DevicesLostError, match="cuda:0: why"):
        protect("c.png", "a.png")
    with pytest.raises(DevicesLostError, match="cuda:0: why"):
        protect("gone", "c.png", "a.png")


def test_buckets_give_the_full_one_then_the_oldest() -> None:
    buckets: Buckets[int] = Buckets(2)
    assert [buckets.add(key, item) for item, key in enumerate("abcb")] == [None, None, None, [1, 3]]
    assert (len(buckets), buckets.oldest(), buckets.oldest(), len(buckets)) == (2, [0], [2], 0)
