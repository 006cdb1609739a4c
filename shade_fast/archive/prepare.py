"""Samples made images: read and decoded on a pool's threads ahead of the engine, as far as memory has room."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace

from shade_fast.anchors import Anchor
from shade_fast.archive.bound import MemoryBound
from shade_fast.archive.layout import Layout, Sample
from shade_fast.archive.reading import is_passing
from shade_fast.archive.recorder import Recorder
from shade_fast.archive.row import Row
from shade_fast.archive.storage import ArchiveStoppedError
from shade_fast.archive.targets import Targets
from shade_fast.codecs import Codecs, Interrupted
from shade_fast.images import DecodedImage, Output
from shade_fast.terms.errors import ShadeFastError, TransientError


@dataclass(frozen=True, eq=False)
class Prepared:
    """A sample, read and decoded (image None: `error` says why not), with the row as far as it is known."""

    sample: Sample
    row: Row
    image: DecodedImage | None = None
    anchor: Anchor | None = None
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Preparer:
    """Makes the samples of one shard images. output: what their files have to hold. bound: on what waits in memory."""

    shard: str
    layout: Layout
    recorder: Recorder
    targets: Targets
    codecs: Codecs
    output: Output
    bound: MemoryBound
    stop: threading.Event

    def prepare(self, sample: Sample) -> Prepared:
        """Read and decode one sample. Raises ArchiveStoppedError where its source is gone, Interrupted on `stop`."""
        started = time.perf_counter()
        row, image, anchor, failure, transient = self.recorder.blank(self.shard, sample), None, None, None, False
        try:
            data = self._read(sample)
            row = replace(row, source_bytes=len(data), source_sha256=hashlib.sha256(data).hexdigest())
            image = self.codecs.decode(data, sample.key, self.stop)
            self.bound.hold(image.pixels, image.pixels.nbytes + (0 if image.alpha is None else image.alpha.nbytes))
            height, width = image.pixels.shape[:2]
            row = replace(row, width=width, height=height, previews=image.previews, source_format=image.format)
            self.output.check(image)
            anchor = self.targets(sample.target)
            row = replace(row, target_sha256=anchor.sha256)
        except (ArchiveStoppedError, Interrupted):
            raise
        except Exception as problem:  # whatever a file makes a decoder raise, it ends one image, not the run
            failure, image, transient = str(problem) or "out of memory", None, isinstance(problem, TransientError)
        milliseconds = 1000 * (time.perf_counter() - started)
        row = replace(row, decode_ms=round(milliseconds, 3), transient=transient)
        return Prepared(sample, row, image, anchor, failure)

    def _read(self, sample: Sample) -> bytes:
        if sample.error is not None:
            raise ShadeFastError(sample.error)
        try:
            return sample.read()
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
            gone = self.layout.vanished()
            if gone is not None:
                raise ArchiveStoppedError(f"{gone}: is not there any more; bring it back and run this again") from error
            reason = getattr(error, "strerror", None) or error
            kind = TransientError if is_passing(error) else ShadeFastError
            raise kind(f"{sample.key}: cannot be read: {reason}") from error


class Feed:
    """Prepares samples ahead, at most `depth` of them and what the preparer's bound allows; gives them in order."""

    def __init__(self, preparer: Preparer, samples: Iterator[Sample], pool: Executor, depth: int) -> None:
        self._preparer, self._pool = preparer, pool
        #: samples on their way, then what ended them: an error, or None for their end
        self._coming: queue.Queue[Future[Prepared] | BaseException | None] = queue.Queue(depth)
        self._closed = threading.Event()
        self._feeder = threading.Thread(target=self._run, args=(samples,), name="shade_fast-feed", daemon=True)
        self._feeder.start()

    def next(self, timeout: float) -> Prepared | None:
        """The next image; None after the last one, and where it was interrupted.

        Raises queue.Empty where none is on its way within the timeout, and whatever the samples raise.
        """
        item = self._coming.get(timeout=timeout)
        if isinstance(item, BaseException):
            raise item
        try:
            return None if item is None else item.result()
        except Interrupted:
            return None

    def close(self) -> None:
        """Read no more, and drop what was on its way."""
        self._closed.set()
        self._preparer.bound.lift()
        self._drain()
        self._feeder.join()
        self._drain()

    def _run(self, samples: Iterator[Sample]) -> None:
        preparer = self._preparer
        end: BaseException | None = None
        try:
            for sample in samples:
                if self._closed.is_set() or preparer.stop.is_set():
                    break
                preparer.bound.hold(sample, sample.size)
                self._coming.put(self._pool.submit(preparer.prepare, sample))
                del sample
                preparer.bound.wait(preparer.stop)
        except Interrupted:
            pass
        except BaseException as error:
            end = error
        if not self._closed.is_set():
            self._coming.put(end)

    def _drain(self) -> None:
        """Empty the queue: the feeder may wait for room in it."""
        while True:
            try:
                item = self._coming.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, Future):
                item.cancel()
