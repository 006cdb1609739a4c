"""The pool: batches of images go to whichever device is free; outcomes come back, even where a worker dies."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from shade_fast.images import Output
from shade_fast.protect.outcome import Protected, Work, failed
from shade_fast.terms.errors import ShadeFastError, TransientError, reason
from shade_fast.workers.worker import CannotStartError, StalledError, Worker

#: Deaths of workers over one image before it counts as their cause; on as many devices, where there are several.
DEATHS_OF_AN_IMAGE = 2
#: Deaths in a row, with no batch finished between them, before a device is given up.
DEATHS_OF_A_DEVICE = 3
#: Batches that are taken in for each device: one worked on, one sent ahead, one that waits.
BATCHES_A_DEVICE = 3

log = logging.getLogger(__name__)


class DevicesLostError(ShadeFastError):
    """No device of a run is left; results until then are kept."""


@dataclass(eq=False)
class _Batch:
    works: Sequence[Work]
    output: Output | None
    future: Future[list[Protected]] = field(default_factory=Future)
    results: dict[int, Protected] = field(default_factory=dict)
    begun: bool = False


@dataclass(eq=False)
class _Part:
    """Images of a batch that are sent together: all of them, or one by itself once a worker died over them.

    deaths: of workers that had them, on the devices `died`. sent: whether the present one has.
    """

    batch: _Batch
    places: Sequence[int]
    deaths: int = 0
    died: frozenset[int] = frozenset()
    sent: bool = False

    @property
    def works(self) -> list[Work]:
        return [self.batch.works[place] for place in self.places]


class Pool:
    """Hands batches out to devices, known by name; each has a worker, started with its first batch.

    A worker that dies, or hangs and is killed, is replaced. Its batches go back to the front of the queue, for the next
    free worker. The batch that it worked on is tried again image by image, on another device where there is one. An
    image over which `DEATHS_OF_AN_IMAGE` workers died fails. A device whose workers die `DEATHS_OF_A_DEVICE` times in a
    row, or cannot start, is given up, which is logged; deaths that an image caused do not count while others are
    finished.

    devices: names; one may be there several times. start: makes a worker for a device.
    """

    def __init__(self, devices: Sequence[str], start: Callable[[str], Worker]) -> None:
        self._start = start
        self._capacity = BATCHES_A_DEVICE * len(devices)
        self._queue: deque[_Part] = deque()
        self._unfinished: set[_Batch] = set()
        self._workers: set[Worker] = set()
        #: numbers of the devices that are left, and of each the deaths in a row
        self._left = set(range(len(devices)))
        self._deaths = [0] * len(devices)
        self._pardon = False
        self._lost: dict[str, str] = {}
        self._closed = False
        self._changed = threading.Condition()
        for number, device in enumerate(devices):
            threading.Thread(
                target=self._serve, args=(number, device), name=f"shade_fast-{device}", daemon=True
            ).start()

    def submit(self, works: Sequence[Work], output: Output | None) -> Future[list[Protected]]:
        """Protect images of one size on some device; waits while there is no room.

        The future can be cancelled until a worker is sent the batch; it raises DevicesLostError once none is left.
        """
        batch = _Batch(works, output)
        with self._changed:
            self._changed.wait_for(lambda: len(self._unfinished) < self._capacity or not self._left or self._closed)
            if self._closed or not self._left:
                batch.future.set_exception(self._error())
            else:
                self._unfinished.add(batch)
                self._queue.append(_Part(batch, range(len(works))))
                self._changed.notify_all()
        return batch.future

    def close(self) -> None:
        """End all workers; batches that are not finished never will be."""
        with self._changed:
            self._closed = True
            workers, self._workers = self._workers, set()
            self._fail_all()
            self._changed.notify_all()
        for worker in workers:
            worker.kill()

    def _serve(self, number: int, device: str) -> None:
        """A device's thread: one worker after the other, as long as there is work."""
        why = ""
        while self._deaths[number] < DEATHS_OF_A_DEVICE and (first := self._take(number)) is not None:
            sent, done = deque([first]), 0
            worker = None
            try:
                worker = self._begun(device)
                if worker is None:
                    return
                worker.start()
                while sent:
                    for part in sent:
                        if not part.sent:
                            worker.send(part.works, part.batch.output)
                            part.sent = True
                    ahead = self._take(number, ahead=True) if len(sent) == 1 else None
                    if ahead is not None:
                        sent.append(ahead)
                        continue
                    self._finish(sent[0], worker.receive(sent[0].works))
                    sent.popleft()
                    done += 1
                    self._pardon = True
                    following = None if sent else self._take(number)
                    sent.extend([] if following is None else [following])
            except CannotStartError as error:
                self._deaths[number], why = DEATHS_OF_A_DEVICE, str(error)
            except (EOFError, OSError) as error:
                self._deaths[number] = 1 if done else self._deaths[number] + 1
                if isinstance(error, StalledError):
                    why = str(error)
                else:
                    why = f"its process died: {reason(error) if worker is None else worker.ended()}"
            except Exception as error:  # not the worker's fault, but it must not end the thread unseen
                self._deaths[number], why = self._deaths[number] + 1, reason(error)
            finally:
                self._ended(worker)
            self._give_back(sent, number, device, why)
        self._give_up(number, device, why)

    def _begun(self, device: str) -> Worker | None:
        """A worker that `close` can end; None once that was called."""
        with self._changed:
            if self._closed:
                return None
            worker = self._start(device)
            self._workers.add(worker)
            return worker

    def _ended(self, worker: Worker | None) -> None:
        with self._changed:
            self._workers.discard(worker)
        if worker is not None:
            worker.kill()

    def _take(self, number: int, ahead: bool = False) -> _Part | None:
        """The next part for a device, waiting for one; None once the pool is closed.

        ahead: for a busy worker: do not wait, and leave a part for each of the other devices.
        """
        with self._changed:
            while not self._closed:
                while not ahead or len(self._queue) >= len(self._left):
                    others = self._left - {number}
                    fitting = (part for part in self._queue if number not in part.died or others <= part.died)
                    part = next(fitting, None)
                    if part is None:
                        break
                    self._queue.remove(part)
                    if part.batch.begun or part.batch.future.set_running_or_notify_cancel():
                        part.batch.begun = True
                        return part
                    self._forget(part.batch)
                if ahead:
                    break
                self._changed.wait()
        return None

    def _finish(self, part: _Part, results: Sequence[Protected]) -> None:
        batch = part.batch
        with self._changed:
            batch.results |= zip(part.places, results, strict=True)
            if len(batch.results) < len(batch.works) or batch not in self._unfinished:
                return
            self._forget(batch)
        batch.future.set_result([batch.results[place] for place in range(len(batch.works))])

    def _give_back(self, sent: Sequence[_Part], number: int, device: str, why: str) -> None:
        """Take back the parts of a worker that is gone; it worked on the first of those it was sent."""
        if self._closed or not why:
            return
        log.warning("%s: %s; its images go to the next that is free", device, why)
        culprits = [sent[0]] if sent and sent[0].sent else []
        back: list[_Part] = []
        for part in sent:
            part.sent = False
            if part not in culprits:
                back.append(part)
                continue
            for place, work in zip(part.places, part.works, strict=True):
                lone = _Part(part.batch, [place], part.deaths + 1, part.died | {number})
                if lone.deaths < DEATHS_OF_AN_IMAGE:
                    back.append(lone)
                    continue
                with self._changed:
                    if self._pardon and len(lone.died) > 1:
                        self._pardon = False
                        for blameless in lone.died:
                            self._deaths[blameless] = 0
                error = TransientError(
                    f"{lone.deaths} worker processes died over this image, the last on {device} ({why}); leave it out, "
                    "or see whether the machine has the memory for it"
                )
                self._finish(lone, [Protected(work.image, failed(error, work.image))])
        with self._changed:
            self._queue.extendleft(reversed(back))
            self._changed.notify_all()

    def _give_up(self, number: int, device: str, why: str) -> None:
        with self._changed:
            self._left.discard(number)
            if self._closed:
                return
            self._lost[device] = why
            log.warning("%s: given up, %d devices are left", device, len(self._left))
            if not self._left:
                self._fail_all()
            self._changed.notify_all()

    def _fail_all(self) -> None:
        for batch in list(self._unfinished):
            self._forget(batch)
            if batch.begun or batch.future.set_running_or_notify_cancel():
                batch.future.set_exception(self._error())
        self._queue.clear()

    def _forget(self, batch: _Batch) -> None:
        self._unfinished.discard(batch)
        self._changed.notify_all()

    def _error(self) -> ShadeFastError:
        if self._closed:
            return DevicesLostError("devices: the pool of workers is closed")
        reasons = "; ".join(f"{device}: {why}" for device, why in self._lost.items())
        return DevicesLostError(f"devices: none is left ({reasons})")
