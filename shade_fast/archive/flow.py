"""The flow of samples through a run: read and decoded ahead, optimised in buckets of one shape, encoded and written
behind, with a bound on everything that waits."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from shade_fast.anchors import Anchor
from shade_fast.api.poisoner import WAITING_BATCHES, Poisoner
from shade_fast.archive.index import Index, content
from shade_fast.archive.layout import Sample
from shade_fast.archive.manifest import Row, finite
from shade_fast.archive.names import to_text
from shade_fast.archive.reading import is_passing
from shade_fast.archive.storage import ArchiveStoppedError
from shade_fast.archive.suspects import ALONE, APART, PASSED, Suspects
from shade_fast.codecs import Codecs, Interrupted
from shade_fast.images import DecodedImage, Output
from shade_fast.protect.buckets import Buckets
from shade_fast.protect.outcome import Protected, Work, failed
from shade_fast.terms.errors import ShadeFastError, TransientError
from shade_fast.terms.limits import Limits
from shade_fast.workers import DevicesLostError

#: Images that wait for the result of another of the same content, before that is brought to its end.
WAITING_DUPLICATES = 10_000


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


class Room:
    """Counts the bytes of images that are in memory, until the objects that hold them are gone."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._changed = threading.Condition()
        self._passes = 0
        self._waits = self._open = False

    def hold(self, holder: object, size: int) -> None:
        """Count bytes as long as an object lives."""
        if size:
            with self._changed:
                self._held += size
            weakref.finalize(holder, self._free, size).atexit = False

    def wait(self, stop: threading.Event) -> None:
        """Wait until no more are held than may be, or until one is let in all the same."""
        with self._changed:
            self._waits = True
            while self._held > self._most and not (self._open or self._passes or stop.is_set()):
                self._changed.wait(0.2)
            self._passes, self._waits = 0, False

    @property
    def is_full(self) -> bool:
        """Whether somebody waits."""
        return self._waits

    def let_one_in(self) -> None:
        """Nothing is left that could make room."""
        with self._changed:
            self._passes = 1
            self._changed.notify_all()

    def open(self) -> None:
        """Nobody is to wait any more."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def _free(self, size: int) -> None:
        with self._changed:
            self._held -= size
            self._changed.notify_all()


@dataclass(eq=False)
class Flow:
    """Takes samples to rows.

    blank: a sample's row with all that is the run's. store: writes a row with its image's bytes (None: nothing), given
    the path of its source's file, and returns the row as it came to be. clear: empties the place of an image that
    fails, where a run overwrites. load: the bytes of a row's image. vanished: what of the source is gone. files:
    whether each image is a file of its own. codecs: what decodes and encodes. suspects: which images a killed process
    worked on.

    What waits in memory is at most `limits.waiting_bytes`, and what `workers` threads read and decode meanwhile.
    """

    poisoner: Poisoner
    output: Output
    anchor: Callable[[str | None], Anchor]
    index: Index
    blank: Callable[[Sample], Row]
    store: Callable[[Row, bytes | None, str | None], Row]
    clear: Callable[[Row], None]
    load: Callable[[Row], bytes]
    vanished: Callable[[], str | None]
    files: bool
    workers: int
    stop: threading.Event
    codecs: Codecs
    limits: Limits
    suspects: Suspects
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
        self._waiting = 0
        self._on_row = on_row
        self._closing = False
        self._room = Room(self.limits.waiting_bytes)
        coming: queue.Queue[Future[Prepared] | BaseException | None] = queue.Queue(self._bound)
        closed = threading.Event()
        with ThreadPoolExecutor(self.workers, "shade_fast-file") as pool:
            self._pool = pool
            feeder = threading.Thread(
                target=self._feed, args=(samples, coming, pool, closed), name="shade_fast-feed", daemon=True
            )
            feeder.start()
            try:
                while not self.stop.is_set():
                    prepared = self._next(coming)
                    if prepared is None:
                        self.ended = not self.stop.is_set() and self._settle()
                        break
                    self._take(prepared)
                    del prepared  # its memory is to be free while the next is waited for
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
                self._room.open()
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
                self._room.hold(sample, sample.size)
                coming.put(pool.submit(self._prepare, sample))
                del sample
                self._room.wait(self.stop)
        except Interrupted:
            pass
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
                    if self._room.is_full:
                        self._relieve()
            if isinstance(item, BaseException):
                raise item
            try:
                return None if item is None else item.result()
            except Interrupted:
                return None
        finally:
            self.clock.waiting += time.perf_counter() - started

    def _relieve(self) -> None:
        """Bring on what waits, where no more is read until it is done."""
        while self._finishing and self._finishing[0].done():
            self._collect()
        if self._buckets and not self._running:
            self._optimize(self._buckets.oldest())
        if not (self._buckets or self._running or self._finishing):
            self._room.let_one_in()

    def _prepare(self, sample: Sample) -> Prepared:
        started = time.perf_counter()
        row, image, anchor, failure, transient = self.blank(sample), None, None, None, False
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
                kind = TransientError if is_passing(error) else ShadeFastError
                raise kind(f"{sample.key}: cannot be read: {reason}") from error
            row = replace(row, source_bytes=len(data), source_sha256=hashlib.sha256(data).hexdigest())
            image = self.codecs.decode(data, sample.key, self.stop)
            self._room.hold(image.pixels, image.pixels.nbytes + (0 if image.alpha is None else image.alpha.nbytes))
            height, width = image.pixels.shape[:2]
            row = replace(row, width=width, height=height, previews=image.previews, source_format=image.format)
            self.output.check(image)
            anchor = self.anchor(sample.target)
            row = replace(row, target_sha256=anchor.sha256)
        except (ArchiveStoppedError, Interrupted):
            raise
        except Exception as problem:  # whatever a file makes a decoder raise, it ends one image, not the run
            failure, image, transient = str(problem) or "out of memory", None, isinstance(problem, TransientError)
        took = 1000 * (time.perf_counter() - started)
        return Prepared(sample, replace(row, decode_ms=round(took, 3), transient=transient), image, anchor, failure)

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
            self._waiting += 1
            if self._waiting >= WAITING_DUPLICATES:
                self._flush(0)
                self._gather(wait=True)
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
        """Hand a batch to the engine; an image over which a process may have been killed goes by itself."""
        suspected = [prepared for prepared in batch if self.suspects.kills(prepared.row) >= ALONE]
        others = [prepared for prepared in batch if prepared not in suspected]
        if others:
            self._run(others, self.poisoner.submit)
        for prepared in suspected:
            kills = self.suspects.kills(prepared.row)
            self._gather(wait=True)
            try:
                if kills >= PASSED:
                    raise ShadeFastError(f"{kills} processes were killed over this image")
                self._run([prepared], self.poisoner.submit if kills < APART else self.poisoner.submit_apart)
                self._gather(wait=True)
            except ShadeFastError as error:
                if isinstance(error, ArchiveStoppedError):
                    raise
                self.suspects.end([prepared.row])
                self.clear(prepared.row)
                message = (
                    f"{prepared.sample.key}: {error}; leave it out, or see whether the machine has the memory for it "
                    "and give --retry-failed"
                )
                failed_row = replace(prepared, row=replace(prepared.row, transient=True), image=None)
                self._submit(self._fail, failed_row, message)

    def _run(self, batch: list[Prepared], submit: Callable[..., Future[list[Protected]]]) -> None:
        started = time.perf_counter()
        works = [
            Work(prepared.image, prepared.anchor)
            for prepared in batch
            if prepared.image is not None and prepared.anchor is not None
        ]
        self.suspects.begin(prepared.row for prepared in batch)
        self._running.append((batch, submit(works, self.output)))
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
            self.suspects.end(prepared.row for prepared in batch)
            for prepared, protected in zip(batch, results, strict=True):
                self._submit(self._encode, replace(prepared, image=None), protected)
        if lost is not None:
            raise ArchiveStoppedError(f"{lost}; what is done is recorded: mend that and run this again") from lost

    def _cancel(self) -> None:
        """Take back the batches that no device has begun."""
        for batch, running in list(self._running):
            if running.cancel():
                self._running.remove((batch, running))
                self.suspects.end(prepared.row for prepared in batch)

    def _submit(self, work: Callable[..., Row | Prepared], *arguments: Any) -> None:
        self._finishing.append(self._pool.submit(_named, work, *arguments))

    def _collect(self) -> None:
        started = time.perf_counter()
        try:
            row = self._finishing.popleft().result()
        except Interrupted:  # read or decoded again, for a copy that was not there: the next run does it
            return
        finally:
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
        followers = self._followers.pop(content(row)) if leads else []
        self._waiting -= len(followers)
        for follower in followers:
            if row.status != "failed":
                self._submit(self._copy, follower, row)
            elif row.output_sha256 is not None:  # it was made, and only its own place could not be had
                self._submit(self._prepare, follower.sample)
            else:
                self.clear(follower.row)
                follower = replace(follower, row=replace(follower.row, transient=row.transient))
                self._submit(self._fail, follower, f"{follower.sample.key}: as {row.key}, its duplicate: {row.error}")
        self._on_row(row)

    def _encode(self, prepared: Prepared, protected: Protected) -> Row:
        started = time.perf_counter()
        outcome, left = protected.outcome, protected.outcome.survival
        row = replace(
            prepared.row,
            status=outcome.status,
            error=outcome.error,
            transient=outcome.transient,
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
            return self.store(replace(row, output=None), None, None)
        try:
            data = protected.encode(self.output, self.codecs.encode, self.codecs.decode)
        except Exception as error:  # an encoder raises whatever it stumbles over
            message = failed(error, prepared.sample.key).error
            self.clear(row)
            transient = isinstance(error, TransientError)
            return self.store(
                replace(row, status="failed", error=message, output=None, transient=transient), None, None
            )
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
            prepared.sample.path,
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
        return self.store(copied, data, prepared.sample.path)

    def _fail(self, prepared: Prepared, error: str | None) -> Row:
        return self.store(replace(prepared.row, status="failed", error=error, output=None), None, None)


def _named(work: Callable[..., Row | Prepared], subject: Prepared | Sample, *arguments: Any) -> Row | Prepared:
    """What a thread does with an image; an error that nobody expected names that image."""
    try:
        return work(subject, *arguments)
    except Exception as error:
        error.add_note(subject.sample.key if isinstance(subject, Prepared) else subject.key)
        raise


def _drain(coming: queue.Queue[Any]) -> None:
    """Let a feeder that waits for room find it."""
    while True:
        try:
            item = coming.get_nowait()
        except queue.Empty:
            return
        if isinstance(item, Future):
            item.cancel()
