"""The pool by itself: its workers are stand-ins that do as each test says, so that everything happens in order."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from shade_fast.anchors import Anchor
from shade_fast.images import DecodedImage, Output
from shade_fast.protect.outcome import PoisonedImage, Protected, Work
from shade_fast.workers import DevicesLostError, Pool
from shade_fast.workers.worker import CannotStartError, StalledError

ANCHOR = Anchor("grey", [np.full((8, 8, 3), 128, np.uint8)])
Behaviour = Callable[["StandIn", list[str]], None]


def work(name: str) -> Work:
    return Work(DecodedImage(name, np.zeros((8, 8, 3), np.uint8)), ANCHOR)


def batch(names: str) -> list[Work]:
    return [work(name) for name in names.split()]


def names(protected: Sequence[Protected]) -> list[str]:
    return [f"{image.outcome.name}:{image.outcome.status}" for image in protected]


class StandIn:
    """A worker without a process. behave: called with the names of each batch; raises EOFError to die."""

    def __init__(self, device: str, behave: Behaviour, started: Counter[str]) -> None:
        self.device, self.behave, self.started = device, behave, started
        self.dead = threading.Event()

    def start(self) -> None:
        self.started[self.device] += 1
        self.behave(self, [])

    def send(self, works: Sequence[Work], output: Output | None) -> None:
        pass

    def receive(self, works: Sequence[Work]) -> list[Protected]:
        self.behave(self, [work.image.name for work in works])
        return [Protected(work.image, PoisonedImage(None, "ok", name=work.image.name)) for work in works]

    def kill(self) -> None:
        self.dead.set()

    def ended(self) -> str:
        return "it was ended by SIGKILL"


@pytest.fixture
def pool() -> Iterator[Any]:
    """`pool(devices, behave)`: with `.started`, how many workers each device had."""
    pools: list[Pool] = []

    def make(devices: Sequence[str], behave: Behaviour) -> Pool:
        started: Counter[str] = Counter()
        opened = Pool(devices, lambda device: StandIn(device, behave, started))  # type: ignore[arg-type,return-value]
        opened.started = started  # type: ignore[attr-defined]
        pools.append(opened)
        return opened

    yield make
    for opened in pools:
        opened.close()


def test_all_devices_work_at_once_and_each_batch_gets_its_own_results(pool: Any) -> None:
    together = threading.Barrier(3, timeout=20)

    def behave(worker: StandIn, images: list[str]) -> None:
        if images:
            together.wait()

    workers = pool(["a", "b", "c"], behave)
    futures = [workers.submit(batch(f"{index}.0 {index}.1"), None) for index in range(6)]
    for index, future in enumerate(futures):
        assert names(future.result(20)) == [f"{index}.0:ok", f"{index}.1:ok"]
    assert workers.started == {"a": 1, "b": 1, "c": 1}


def test_no_worker_is_started_without_work(pool: Any) -> None:
    workers = pool(["a", "b", "c"], lambda worker, images: None)
    assert names(workers.submit(batch("x"), None).result(20)) == ["x:ok"]
    assert sum(workers.started.values()) == 1


def test_what_a_dead_worker_had_is_done_by_the_next(pool: Any) -> None:
    deaths = iter([True])

    def behave(worker: StandIn, images: list[str]) -> None:
        if "3" in images and next(deaths, False):
            raise EOFError

    workers = pool(["a", "b"], behave)
    futures = [workers.submit(batch(str(index)), None) for index in range(6)]
    assert [names(future.result(20)) for future in futures] == [[f"{index}:ok"] for index in range(6)]
    assert sum(workers.started.values()) in (2, 3)  # the last batch may be done before there is a new one


def test_an_image_that_workers_die_of_fails_alone(pool: Any, caplog: pytest.LogCaptureFixture) -> None:
    sizes: list[int] = []

    def behave(worker: StandIn, images: list[str]) -> None:
        sizes.append(len(images))
        if "bad" in images:
            raise ConnectionResetError

    workers = pool(["a"], behave)
    first, second = workers.submit(batch("1 bad 2 3"), None), workers.submit(batch("4 5"), None)
    protected = first.result(20)
    assert names(protected) == ["1:ok", "bad:failed", "2:ok", "3:ok"]
    assert protected[1].outcome.error == (
        "bad: 2 worker processes died over this image, the last on a (its process died: it was ended by SIGKILL); "
        "leave it out, or see whether the machine has the memory for it"
    )
    assert names(second.result(20)) == ["4:ok", "5:ok"]
    assert 2 in sizes
    assert "its images go to the next that is free" in caplog.text


def test_a_worker_that_hangs_is_ended_and_its_images_are_done_by_the_next(
    pool: Any, caplog: pytest.LogCaptureFixture
) -> None:
    hangs = iter([True])
    hung: list[StandIn] = []

    def behave(worker: StandIn, images: list[str]) -> None:
        if "2" in images and next(hangs, False):
            hung.append(worker)
            raise StalledError("no step for 7 s; it counts as hung")

    workers = pool(["a"], behave)
    assert names(workers.submit(batch("1 2 3"), None).result(20)) == ["1:ok", "2:ok", "3:ok"]
    assert hung[0].dead.is_set()
    assert "a: no step for 7 s; it counts as hung; its images go to the next that is free" in caplog.text


@pytest.mark.parametrize("count", [1, 3])
def test_without_a_device_left_every_batch_says_why(pool: Any, count: int) -> None:
    def behave(worker: StandIn, images: list[str]) -> None:
        if not images:
            raise EOFError

    devices = [f"cuda:{index}" for index in range(count)]
    workers = pool(devices, behave)
    futures = [workers.submit(batch(str(index)), None) for index in range(5)]
    for future in [*futures, workers.submit(batch("late"), None)]:
        with pytest.raises(DevicesLostError, match=r"none is left \(.*cuda:0: its process died: it was ended by SIGK"):
            future.result(20)
    assert workers.started == dict.fromkeys(devices, 3)


def test_a_device_that_cannot_start_leaves_its_work_to_the_others(pool: Any, caplog: pytest.LogCaptureFixture) -> None:
    tried = threading.Event()

    def behave(worker: StandIn, images: list[str]) -> None:
        if worker.device == "broken":
            tried.set()
            raise CannotStartError("no memory for the networks")
        assert tried.wait(20)

    workers = pool(["broken", "sound"], behave)
    futures = [workers.submit(batch(str(index)), None) for index in range(6)]
    assert [names(future.result(20)) for future in futures] == [[f"{index}:ok"] for index in range(6)]
    assert "broken: no memory for the networks" in caplog.text
    assert "broken: given up, 1 devices are left" in caplog.text
    assert workers.started["broken"] == 1


def test_what_no_worker_has_begun_can_be_taken_back(pool: Any) -> None:
    begun, go_on = threading.Event(), threading.Event()
    seen: list[str] = []

    def behave(worker: StandIn, images: list[str]) -> None:
        seen.extend(images)
        if images == ["first"]:
            begun.set()
            assert go_on.wait(20)

    workers = pool(["a"], behave)
    first = workers.submit(batch("first"), None)
    assert begun.wait(20)
    waiting = [workers.submit(batch(name), None) for name in ("second", "third")]
    assert [future.cancel() for future in (first, *waiting)] == [False, True, True]
    last = threading.Thread(target=lambda: workers.submit(batch("fourth"), None).result(20))
    last.start()  # there are three already, two of them taken back: it waits for room
    go_on.set()
    last.join(20)
    assert not last.is_alive()
    assert names(first.result(20)) == ["first:ok"]
    assert seen == ["first", "fourth"]


def test_a_closed_pool_ends_its_workers_and_what_waits(pool: Any) -> None:
    begun = threading.Event()
    workers: list[StandIn] = []

    def behave(worker: StandIn, images: list[str]) -> None:
        if images:
            workers.append(worker)
            begun.set()
            assert worker.dead.wait(20)
            raise EOFError

    opened = pool(["a"], behave)
    futures = [opened.submit(batch(name), None) for name in ("1", "2")]
    assert begun.wait(20)
    opened.close()
    for future in (*futures, opened.submit(batch("3"), None)):
        with pytest.raises(DevicesLostError, match="is closed"):
            future.result(20)
    assert len(workers) == 1


def test_a_broken_device_fails_no_image(pool: Any, caplog: pytest.LogCaptureFixture) -> None:
    died = threading.Event()

    def behave(worker: StandIn, images: list[str]) -> None:
        if not images:
            return
        if worker.device == "broken":
            died.set()
            raise EOFError
        assert died.wait(20)

    workers = pool(["broken", "sound"], behave)
    futures = [workers.submit(batch(f"{index}.0 {index}.1 {index}.2"), None) for index in range(12)]
    for index, future in enumerate(futures):
        assert names(future.result(20)) == [f"{index}.{place}:ok" for place in range(3)]
    assert workers.started["broken"] <= 3


def test_images_that_workers_die_of_cost_no_device(pool: Any, caplog: pytest.LogCaptureFixture) -> None:
    def behave(worker: StandIn, images: list[str]) -> None:
        if any(name.startswith("bad") for name in images):
            raise EOFError

    workers = pool(["a", "b"], behave)
    for index in range(8):
        assert names(workers.submit(batch(f"bad{index}"), None).result(20)) == [f"bad{index}:failed"]
        assert names(workers.submit(batch(f"good{index}"), None).result(20)) == [f"good{index}:ok"]
    assert "given up" not in caplog.text


def test_a_closed_pool_leaves_no_thread(pool: Any) -> None:
    before = set(threading.enumerate())
    workers = pool(["a", "b"], lambda worker, images: None)
    assert names(workers.submit(batch("1"), None).result(20)) == ["1:ok"]
    threads = set(threading.enumerate()) - before
    assert len(threads) == 2
    workers.close()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
