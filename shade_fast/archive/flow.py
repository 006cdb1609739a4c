"""The flow of samples through a run: read and decoded ahead, optimised in buckets of one shape, encoded and written
behind, with a bound on everything that waits."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from shade_fast.anchors import Anchor
from shade_fast.archive.index import Index, content
from shade_fast.archive.layout import Sample
from shade_fast.archive.manifest import Row, finite
from shade_fast.archive.names import to_text
from shade_fast.archive.storage import ArchiveStoppedError
from shade_fast.buckets import Buckets
from shade_fast.errors import ShadeFastError
from shade_fast.images import DecodedImage, Output, decode
from shade_fast.poisoner import WAITING_BATCHES, Poisoner
from shade_fast.work import Protected, Work, failed
from shade_fast.workers import DevicesLostError


@dataclass
class Clock:
    """Seconds of the thread that hands batches to the engine: in it, waiting for images, and in all.

    With several devices, which work beside it, `engine` is what it waits for them.
    """

    engine: float = 0.0
    waiting: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, eq=False)
class Prepared:
    """A sample, read and decoded (image None: `error` says why not), with the row as far as it is known."""

    sample: Sample
    row: Row
    image: DecodedImage | None = None
    anchor: Anchor | None = None
    error: str | None = None


@dataclass(eq=False)
class Flow:
    """Takes samples to rows.

    blank: a sample's row with all that is the run's. store: writes a row with its image's bytes (None: nothing) and
    returns the row as it came to be. clear: empties the place of an image that fails, where a run overwrites. load: the
    bytes of a row's image. vanished: what of the source is gone. files: whether each image is a file of its own.
    """

    poisoner: Poisoner
    output: Output
    anchor: Callable[[str | None], Anchor]
    index: Index
    blank: Callable[[Sample], Row]
    store: Callable[[Row, bytes | None], Row]
    clear: Callable[[Row], None]
    load: Callable[[Row], bytes]
    vanished: Callable[[], str | None]
    files: bool
    workers: int
    stop: threading.Event
    clock: Clock = field(default_factory=Clock)
    ended: bool = False

    def run(self, samples: Iterator[Sample], on_row: Callable[[Row], None]) -> None:
        """Take all samples, or those that are on their way when `stop` is set.

        Raises what ends a run, ArchiveStoppedError and whatever `samples` raises, after finishing what was on its way.
        """
        started = time.perf_counter()
        self._bound = self.workers + self.poisoner.window * len(self.poisoner.devices)
        self._buckets: Buckets[Prepared] = Buckets(self.poisoner.window)
        self._running: deque[tuple[list[Prepared], Future[list[Protected]]]] = deque()
        self._finishing: deque[Future[Row | Prepared]] = deque()
        #: by content: the images that wait for the result of the first, which is named
        self._followers: dict[str, list[Prepared]] = {}
        self._leaders: dict[str, str] = {}
        self._on_row = on_row
        self._closing = False
        coming: queue.Queue[Future[Prepared] | BaseException | None] = queue.Queue(self._bound)
        closed = threading.Event()
        with ThreadPoolExecutor(self.workers, "shade_fast-file") as pool:
            self._pool = pool
            feeder = threading.Thread(target=self._feed, args=(samples, coming, pool, closed), name="shade_fast-feed")
            feeder.start()
            try:
                while not self.stop.is_set():
                    prepared = self._next(coming)
                    if prepared is None:
                        self.ended = not self.stop.is_set() and self._settle()
                        break
                    self._take(prepared)
                    self._gather()
                    while self._finishing and (self._finishing[0].done() or len(self._finishing) > self._bound):
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
                closed.set()
                _drain(coming)
                feeder.join()
                _drain(coming)
                try:
                    while self._finishing:
                        self._collect()
                finally:
                    self.clock.total += time.perf_counter() - started

    def _feed(
        self, samples: Iterator[Sample], coming: queue.Queue[Any], pool: ThreadPoolExecutor, closed: threading.Event
    ) -> None:
        end: BaseException | None = None
        try:
            for sample in samples:
                if closed.is_set() or self.stop.is_set():
                    break
                coming.put(pool.submit(self._prepare, sample))
        except BaseException as error:
            end = error
        if not closed.is_set():
            coming.put(end)

    def _next(self, coming: queue.Queue[Future[Prepared] | BaseException | None]) -> Prepared | None:
        started = time.perf_counter()
        try:
            # Interrupted from outside, a run must see it while it waits for a slow source.
            while True:
                try:
                    item = coming.get(timeout=0.2)
                    break
                except queue.Empty:
                    if self.stop.is_set():
                        return None
                    self._gather()
            if isinstance(item, BaseException):
                raise item
            return None if item is None else item.result()
        finally:
            self.clock.waiting += time.perf_counter() - started

    def _prepare(self, sample: Sample) -> Prepared:
        started = time.perf_counter()
        row, image, anchor, failure = self.blank(sample), None, None, None
        try:
            if sample.error is not None:
                raise ShadeFastError(sample.error)
            try:
                data = sample.read()
            except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
                gone = self.vanished()
                if gone is not None:
                    raise ArchiveStoppedError(
                        f"{gone}: is not there any more; bring it back and run this again"
                    ) from error
                reason = getattr(error, "strerror", None) or error
                raise ShadeFastError(f"{sample.key}: cannot be read: {reason}") from error
            row = replace(row, source_bytes=len(data), source_sha256=hashlib.sha256(data).hexdigest())
            image = decode(data, sample.key)
            height, width = image.pixels.shape[:2]
            row = replace(row, width=width, height=height, source_format=image.format)
            self.output.check(image)
            anchor = self.anchor(sample.target)
            row = replace(row, target_sha256=anchor.sha256)
        except ArchiveStoppedError:
            raise
        except Exception as problem:  # whatever a file makes a decoder raise, it ends one image, not the run
            failure, image = str(problem) or "out of memory", None
        took = 1000 * (time.perf_counter() - started)
        return Prepared(sample, replace(row, decode_ms=round(took, 3)), image, anchor, failure)

    def _take(self, prepared: Prepared) -> None:
        """Decide what becomes of one image: a failed row, a copy, or a place in its bucket."""
        target = prepared.row.target_sha256 or ""
        if (
            self.files
            and prepared.error is None
            and target != self.index.claim_target(prepared.row.output or "", target)
        ):
            error = f"{prepared.sample.key}: another row has this image with another target; give each image one"
            prepared = replace(prepared, error=error)
        if prepared.error is not None or prepared.image is None:
            # The place may be another row's: of two that are to be written alike, or of a table that has it twice.
            if prepared.sample.error is None and not self.index.is_claimed(prepared.row.output or ""):
                self.clear(prepared.row)
            self._submit(self._fail, prepared, prepared.error)
            return
        key = content(prepared.row)
        if key in self._followers:
            self._followers[key].append(replace(prepared, image=None))
            return
        before = self.index.result(key)
        if before is not None:
            self._submit(self._copy, prepared, before)
            return
        self._followers[key], self._leaders[key] = [], prepared.row.key
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
        started = time.perf_counter()
        works = [Work(one.image, one.anchor) for one in batch if one.image is not None and one.anchor is not None]
        self._running.append((batch, self.poisoner.submit(works, self.output)))
        self.clock.engine += time.perf_counter() - started

    def _gather(self, wait: bool = False) -> None:
        """Pass on the batches that are done, waiting for all of them or not. Raises once no device is left."""
        lost = None
        for _ in range(len(self._running)):
            batch, running = self._running.popleft()
            if not (wait or running.done()):
                self._running.append((batch, running))
                continue
            started = time.perf_counter()
            try:
                results = running.result()
            except DevicesLostError as error:
                lost = error
                continue
            finally:
                self.clock.engine += time.perf_counter() - started
            for prepared, protected in zip(batch, results, strict=True):
                self._submit(self._encode, replace(prepared, image=None), protected)
        if lost is not None:
            raise ArchiveStoppedError(f"{lost}; what is done is recorded: mend that and run this again") from lost

    def _cancel(self) -> None:
        """Take back the batches that no device has begun."""
        self._running = deque(one for one in self._running if not one[1].cancel())

    def _submit(self, work: Callable[..., Row | Prepared], *arguments: Any) -> None:
        self._finishing.append(self._pool.submit(work, *arguments))

    def _collect(self) -> None:
        started = time.perf_counter()
        row = self._finishing.popleft().result()
        self.clock.waiting += time.perf_counter() - started
        if isinstance(row, Prepared):
            if not self._closing:
                self._take(row)
            return
        if row.status != "failed":
            self.index.add(row)
        leads = self._leaders.get(content(row)) == row.key
        if leads:
            del self._leaders[content(row)]
        for follower in self._followers.pop(content(row)) if leads else ():
            if row.status != "failed":
                self._submit(self._copy, follower, row)
            elif row.output_sha256 is not None:  # it was made, and only its own place could not be had
                self._submit(self._prepare, follower.sample)
            else:
                self.clear(follower.row)
                self._submit(self._fail, follower, f"{follower.sample.key}: as {row.key}, its duplicate: {row.error}")
        self._on_row(row)

    def _encode(self, prepared: Prepared, protected: Protected) -> Row:
        started = time.perf_counter()
        outcome, left = protected.outcome, protected.outcome.survival
        row = replace(
            prepared.row,
            status=outcome.status,
            error=outcome.error,
            anchor=outcome.anchor and to_text(outcome.anchor),
            linf=finite(outcome.linf),
            lpips=finite(outcome.lpips),
            distance_before=finite(outcome.distance_before),
            distance_after=finite(outcome.distance_after),
            encoder_distances=outcome.encoder_distances,
            steps=outcome.steps,
            history=outcome.history,
            survival=None if left is None else tuple((name, finite(share)) for name, share in left.items()),
            optimize_ms=round(1000 * outcome.seconds, 3),
        )
        if row.status == "failed":
            self.clear(row)
            return self.store(replace(row, output=None), None)
        try:
            data = protected.encode(self.output)
        except Exception as error:  # an encoder raises whatever it stumbles over
            message = failed(error, prepared.sample.key).error
            self.clear(row)
            return self.store(replace(row, status="failed", error=message, output=None), None)
        return self.store(
            replace(
                row,
                output_format=self.output.format_of(row.source_format).upper(),
                output_bytes=len(data),
                output_sha256=hashlib.sha256(data).hexdigest(),
                quality=None if protected.jpeg is None else protected.jpeg.quality,
                subsampling=None if protected.jpeg is None else protected.jpeg.subsampling,
                encode_ms=round(1000 * (time.perf_counter() - started), 3),
            ),
            data,
        )

    def _copy(self, prepared: Prepared, leader: Row) -> Row | Prepared:
        """The result of another image of the same content; where it is not there any more, the image, read again."""
        try:
            data = self.load(leader)
            there = leader.output is None or hashlib.sha256(data).hexdigest() == leader.output_sha256
        except Exception:  # a tar or a table that is damaged raises whatever its reader stumbles over
            there = False
        if not there:
            self.index.forget_result(leader)
            return self._prepare(prepared.sample)
        own = prepared.row
        names = ("key", "shard", "index", "source", "concept", "target", "output", "decode_ms")
        kept = {name: getattr(own, name) for name in names}
        copied = replace(leader, **kept, duplicate_of=leader.key, optimize_ms=0.0, encode_ms=0.0)
        return self.store(copied, data)

    def _fail(self, prepared: Prepared, error: str | None) -> Row:
        return self.store(replace(prepared.row, status="failed", error=error, output=None), None)


def _drain(coming: queue.Queue[Any]) -> None:
    """Let a feeder that waits for room find it."""
    while True:
        try:
            item = coming.get_nowait()
        except queue.Empty:
            return
        if isinstance(item, Future):
            item.cancel()
