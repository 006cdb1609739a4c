"""The flow of a shard's samples: read and decoded ahead, optimised in buckets of one shape, encoded and written behind,
with a bound on everything that waits."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from shade_fast.api.poisoner import WAITING_BATCHES, Poisoner
from shade_fast.archive.duplicates import Duplicates
from shade_fast.archive.finish import Finisher
from shade_fast.archive.index import content
from shade_fast.archive.layout import Sample
from shade_fast.archive.prepare import Feed, Prepared, Preparer
from shade_fast.archive.row import Row
from shade_fast.archive.storage import ArchiveStoppedError
from shade_fast.archive.suspects import ALONE, APART, PASSED, Suspects
from shade_fast.codecs import Interrupted
from shade_fast.protect.buckets import Buckets
from shade_fast.protect.outcome import Protected, Work
from shade_fast.terms.errors import ShadeFastError
from shade_fast.workers import DevicesLostError

#: Images that wait for the result of another of the same content, before that is brought to its end.
WAITING_DUPLICATES = 10_000


@dataclass
class Clock:
    """Seconds of the thread that hands batches to the engine: in it, and waiting for images.

    With several devices, which work beside it, `engine` is what it waits for them.
    """

    engine: float = 0.0
    waiting: float = 0.0

    @contextlib.contextmanager
    def in_engine(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.engine += time.perf_counter() - started

    @contextlib.contextmanager
    def in_wait(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.waiting += time.perf_counter() - started


@dataclass(eq=False)
class Flow:
    """Takes the samples of one shard to rows, on so many `workers` threads besides the engine's.

    What waits in memory is at most what the preparer's bound allows, and what the threads read and decode meanwhile.
    """

    poisoner: Poisoner
    preparer: Preparer
    finisher: Finisher
    suspects: Suspects
    clock: Clock
    workers: int
    stop: threading.Event
    #: whether all samples were taken to their rows
    ended: bool = False
    _duplicates: Duplicates = field(default_factory=Duplicates, init=False)
    _running: deque[tuple[list[Prepared], Future[list[Protected]]]] = field(default_factory=deque, init=False)
    #: rows to come, and images that turn out to need the engine after all
    _finishing: deque[Future[Row | Prepared]] = field(default_factory=deque, init=False)
    _closing: bool = field(default=False, init=False)

    def run(self, samples: Iterator[Sample], on_row: Callable[[Row], None]) -> None:
        """Take all samples, or those that are on their way when `stop` is set.

        Raises what ends a run, ArchiveStoppedError and whatever `samples` raises, after finishing what was on its way.
        """
        most = self.workers + self.poisoner.window * len(self.poisoner.devices)
        self._buckets: Buckets[Prepared] = Buckets(self.poisoner.window)
        self._on_row = on_row
        with ThreadPoolExecutor(self.workers, "shade_fast-file") as pool:
            self._pool = pool
            feed = Feed(self.preparer, samples, pool, most)
            try:
                while not self.stop.is_set():
                    prepared = self._next(feed)
                    if prepared is None:
                        self.ended = not self.stop.is_set() and self._settle()
                        break
                    self._take(prepared)
                    del prepared  # its memory is to be free while the next is waited for
                    self._gather()
                    while self._finishing and (self._finishing[0].done() or len(self._finishing) > most):
                        self._collect()
                if not self.ended:
                    self._cancel()
                self._gather(wait=True)
            except Exception:
                self._cancel()
                with contextlib.suppress(ArchiveStoppedError):
                    self._gather(wait=True)
                raise
            finally:
                self._closing = True
                self._cancel()
                feed.close()
                while self._finishing:
                    self._collect()

    def _next(self, feed: Feed) -> Prepared | None:
        """The next image; None where there is none any more, and where the run is to stop."""
        with self.clock.in_wait():
            # Interrupted from outside, a run must see it while it waits for a slow source.
            while True:
                try:
                    return feed.next(timeout=0.2)
                except queue.Empty:
                    if self.stop.is_set():
                        return None
                    self._gather()
                    if self.preparer.bound.is_full:
                        self._relieve()

    def _relieve(self) -> None:
        """Bring on what waits, where no more is read until it is done."""
        while self._finishing and self._finishing[0].done():
            self._collect()
        if self._buckets and not self._running:
            self._optimize(self._buckets.oldest())
        if not (self._buckets or self._running or self._finishing):
            self.preparer.bound.admit_one()

    def _take(self, prepared: Prepared) -> None:
        """Decide what becomes of one image: a failed row, a copy, or a place in its bucket."""
        recorder, index = self.finisher.recorder, self.finisher.recorder.index
        target = prepared.row.target_sha256 or ""
        if (
            recorder.layout.files
            and prepared.error is None
            and target != index.claim_target(prepared.row.output or "", target)
        ):
            error = f"{prepared.sample.key}: another row has this image with another target; give each image one"
            prepared = replace(prepared, error=error)
        if prepared.error is not None or prepared.image is None:
            # The place may be another row's: of two that are to be written alike, or of a table that has it twice.
            if prepared.sample.error is None and not index.is_claimed(prepared.row.output or ""):
                recorder.clear(prepared.row)
            self._submit(self.finisher.fail, prepared, prepared.error)
            return
        if self._duplicates.follow(prepared):
            if len(self._duplicates) >= WAITING_DUPLICATES:
                self._flush(0)
                self._gather(wait=True)
            return
        before = index.result(content(prepared.row))
        if before is not None:
            self._submit(self._copy, prepared, before)
            return
        self._duplicates.lead(prepared)
        full = self._buckets.add(prepared.image.pixels.shape, prepared)
        if full is not None:
            self._optimize(full)
        self._flush(WAITING_BATCHES * self.poisoner.window)

    def _settle(self) -> bool:
        """Bring all that is on its way to its end, copies too that turn out to need the engine. Whether it is there."""
        while self._buckets or self._running or self._finishing:
            self._flush(0)
            if self._buckets:
                return False
            self._gather(wait=True)
            while self._finishing:
                self._collect()
        return True

    def _flush(self, most: int) -> None:
        """Run the buckets that waited longest until at most so many images wait."""
        while len(self._buckets) > most and not self.stop.is_set():
            self._optimize(self._buckets.oldest())
            self._gather()

    def _optimize(self, batch: list[Prepared]) -> None:
        """Hand a batch to the engine; an image over which a process may have been killed goes by itself."""
        suspected = [prepared for prepared in batch if self.suspects.kills(prepared.row) >= ALONE]
        others = [prepared for prepared in batch if prepared not in suspected]
        if others:
            self._run(others, self.poisoner.submit)
        for prepared in suspected:
            self._optimize_suspected(prepared)

    def _optimize_suspected(self, prepared: Prepared) -> None:
        kills = self.suspects.kills(prepared.row)
        self._gather(wait=True)
        try:
            if kills >= PASSED:
                raise ShadeFastError(f"{kills} processes were killed over this image")
            self._run([prepared], self.poisoner.submit if kills < APART else self.poisoner.submit_apart)
            self._gather(wait=True)
        except ArchiveStoppedError:
            raise
        except ShadeFastError as error:
            self.suspects.end([prepared.row])
            self.finisher.recorder.clear(prepared.row)
            message = (
                f"{prepared.sample.key}: {error}; leave it out, or see whether the machine has the memory for it "
                "and give --retry-failed"
            )
            failed = replace(prepared, row=replace(prepared.row, transient=True), image=None)
            self._submit(self.finisher.fail, failed, message)

    def _run(self, batch: list[Prepared], submit: Callable[..., Future[list[Protected]]]) -> None:
        with self.clock.in_engine():
            works = [
                Work(prepared.image, prepared.anchor)
                for prepared in batch
                if prepared.image is not None and prepared.anchor is not None
            ]
            self.suspects.begin(prepared.row for prepared in batch)
            self._running.append((batch, submit(works, self.finisher.output)))

    def _gather(self, wait: bool = False) -> None:
        """Pass on the batches that are done, waiting for all of them or not. Raises once no device is left."""
        lost = None
        for _ in range(len(self._running)):
            batch, running = self._running.popleft()
            if not (wait or running.done()):
                self._running.append((batch, running))
                continue
            try:
                with self.clock.in_engine():
                    results = running.result()
            except DevicesLostError as error:
                lost = error
                continue
            self.suspects.end(prepared.row for prepared in batch)
            for prepared, protected in zip(batch, results, strict=True):
                self._submit(self.finisher.encode, replace(prepared, image=None), protected)
        if lost is not None:
            raise ArchiveStoppedError(f"{lost}; what is done is recorded: fix that and run this again") from lost

    def _cancel(self) -> None:
        """Take back the batches that no device has begun."""
        for batch, running in list(self._running):
            if running.cancel():
                self._running.remove((batch, running))
                self.suspects.end(prepared.row for prepared in batch)

    def _submit(self, work: Callable[..., Row | Prepared], *arguments: Any) -> None:
        self._finishing.append(self._pool.submit(_named, work, *arguments))

    def _copy(self, prepared: Prepared, leader: Row) -> Row | Prepared:
        """An image with the result of another of the same content; without that, the image, read again."""
        return self.finisher.copy(prepared, leader) or self.preparer.prepare(prepared.sample)

    def _collect(self) -> None:
        """Take the next row to come, and bring on the images that waited for it."""
        try:
            with self.clock.in_wait():
                row = self._finishing.popleft().result()
        except Interrupted:  # read or decoded again, for a copy that was not there: the next run does it
            return
        if isinstance(row, Prepared):
            if not self._closing:
                self._take(row)
            return
        if row.status != "failed":
            self.finisher.recorder.index.add(row)
        for follower in self._duplicates.end(row):
            if row.status != "failed":
                self._submit(self._copy, follower, row)
            elif row.output_sha256 is not None:  # it was protected, and only its own place could not be had
                self._submit(self.preparer.prepare, follower.sample)
            else:
                self.finisher.recorder.clear(follower.row)
                follower = replace(follower, row=replace(follower.row, transient=row.transient))
                error = f"{follower.sample.key}: as {row.key}, its duplicate: {row.error}"
                self._submit(self.finisher.fail, follower, error)
        self._on_row(row)


def _named(work: Callable[..., Row | Prepared], subject: Prepared | Sample, *arguments: Any) -> Row | Prepared:
    """What a thread does with an image; an error that nobody expected names that image."""
    try:
        return work(subject, *arguments)
    except Exception as error:
        error.add_note(subject.sample.key if isinstance(subject, Prepared) else subject.key)
        raise
