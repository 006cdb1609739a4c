"""An archive under work: each sample of a shard protected, recorded and written so that a crash loses nothing."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shade_fast.api.poisoner import Poisoner
from shade_fast.archive.flow import Clock, Flow
from shade_fast.archive.folders import Folder, source_text
from shade_fast.archive.index import Index
from shade_fast.archive.layout import Layout, Sample, Shard
from shade_fast.archive.manifest import Manifest, Row
from shade_fast.archive.names import from_text, to_text
from shade_fast.archive.options import RunOptions, Source
from shade_fast.archive.reading import Reader
from shade_fast.archive.record import (
    REPLACED,
    adopt,
    check_record,
    check_same,
    describe,
    digest,
    locked,
    read_run,
    url_key,
    write_run,
)
from shade_fast.archive.storage import (
    RECORD_FOLDER,
    STOPPING,
    TABLE_SUFFIXES,
    ArchiveStoppedError,
    Facts,
    Storage,
    is_hidden,
)
from shade_fast.archive.suspects import BEGUN, Suspects
from shade_fast.archive.tables import Tables
from shade_fast.archive.targets import Targets
from shade_fast.archive.tars import TAR_SUFFIXES, Tars
from shade_fast.codecs import Codecs
from shade_fast.images import Output
from shade_fast.protect.options import Options
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.limits import Access
from shade_fast.terms.version import __version__


@dataclass(frozen=True)
class ArchiveReport:
    """What a run did, and what its output holds now.

    images, ok, below_target, failed, duplicates: rows of the output, earlier runs' included. new: those of this run.
    interrupted: whether it was told to stop, or reached its limit, before the end. seconds: of this run, networks'
    loading excluded; engine_seconds: optimising; waiting_seconds: with nothing to optimise.
    """

    out: str
    images: int
    ok: int
    below_target: int
    failed: int
    duplicates: int
    new: int
    interrupted: bool
    seconds: float
    engine_seconds: float
    waiting_seconds: float
    stats: dict[str, Any]

    @property
    def images_per_second(self) -> float:
        return self.new / self.seconds if self.seconds > 0 else 0.0

    def rows(self) -> Iterator[Row]:
        """The rows of all images of the output."""
        return Manifest(Storage(self.out)).all_rows()

    def summary(self) -> str:
        """A few lines of text."""
        lines = [
            f"{self.images} images: {self.ok} ok, {self.below_target} below target, {self.failed} failed"
            + (f" ({self.duplicates} duplicates)" if self.duplicates else "")
        ]
        if self.stats["mean_ratio"] is not None:
            line = f"latent distance left: mean {self.stats['mean_ratio']:.1%}; "
            line += f"largest linf {round(255 * (self.stats['largest_linf'] or 0))}/255"
            lpips = self.stats["largest_lpips"]
            lines.append(line + ("" if lpips is None else f", largest lpips {lpips:.4f}"))
        if self.stats["survival"]:
            means = ", ".join(f"{name} {share:.0%}" for name, share in self.stats["survival"].items())
            lines.append(f"shift left after {means}")
        lines.append(f"{self.new} of them now, in {self.seconds:.1f} s, {self.images_per_second:.3f} images/s")
        if self.interrupted:
            lines.append("not finished: run the same again, in mode resume, to go on")
        return "\n".join(lines)


class Archive:
    """A source, an output and a loaded engine: it protects shard after shard. run, options: see `poison_archive`."""

    def __init__(
        self,
        source: Source | Sequence[Source],
        out: Source,
        target: str | None,
        run: RunOptions,
        options: Options,
    ) -> None:
        self.run = run
        self.task, self.mode = run.shard, run.mode
        self.writes = run.output != "dummy"
        self.output = Output(run.output if self.writes else "same", run.quality)
        self.sources = [source] if isinstance(source, str | os.PathLike) else list(source)
        self.out = Storage(out)
        if self.out.local and os.path.isfile(self.out.root):
            raise ShadeFastError(f"{out}: is a file; give a folder")
        check_record(self.out)
        self.out.key = url_key(self.out)
        self.access, self.limits = run.access, options.limits
        self.retry_failed, self.keep_times = run.retry_failed, run.keep_times
        self.reader = Reader(self.limits, self.access)
        self.layout = open_layout(self.sources, self.out, self.output, run.shard_size, self.reader)
        self.target = target
        self.workers = run.workers or min(4, os.cpu_count() or 1)
        self.codecs = Codecs(self.limits, self.workers)
        with fixed_plan():
            self.poisoner = Poisoner(options)
        if target is None and not isinstance(self.layout, Tables):
            raise ShadeFastError("target: none was given; name an anchor, an image or a folder")
        self.anchor = Targets(self.poisoner, target, target_roots(self.layout, self.access), self.reader, self.codecs)
        anchor = None if target is None else self.anchor(None)
        places = [source_text(Storage(source), "", self.out) for source in self.sources]
        self.options = describe(self.poisoner, places, target, anchor, self.output, run.shard[1])
        self.options["output"] = run.output
        self.options_sha256 = digest(self.options)
        self.manifest = Manifest(self.out)
        self.index = Index()
        self.index.overwrites = run.mode == "overwrite"
        self.recorded = 0
        self.clock = Clock()
        self._end = contextlib.ExitStack()

    def __enter__(self) -> Archive:
        self._end.callback(self.index.close)
        self._end.callback(self.poisoner.close)
        self._end.callback(self.codecs.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def begin(self) -> None:
        """Take the output's lock, hold its record against the options, and take in what is done."""
        try:
            self._make_root()
            self._end.enter_context(locked(self.out, f"{self.task[0]}-of-{self.task[1]}"))
            self._end.enter_context(fixed_plan())
            resumed = self._resumes()
            self._keep_key()
            if not resumed:
                self._begin_record()
            else:
                record = read_run(self.out) or {}
                if not record.get("cleared", True):
                    self._begin_record()
                adopt(self.out, record, self.access)
            if self.index.overwrites:
                for replaced in self._replaced():
                    self.index.load_replaced(replaced)
            if self.retry_failed:
                self._reopen_failed()
            self._keep_temporary_files(f"{self.task[0]}-of-{self.task[1]}")
            self.index.load(self.manifest, self.is_there, functools.partial(self.layout.is_own, self.task))
            self.recorded = self.index.count
        except OSError as error:
            raise ShadeFastError(f"{self.out.url}: cannot be written: {error.strerror}; give another output") from error

    def end_at_last(self, stop: threading.Event, grace: float) -> None:
        """End the process so many seconds after `stop` is set, unless this is closed by then: what hangs in a driver or
        a file system cannot be ended otherwise, and a crash loses nothing."""
        closed = threading.Event()

        def watch() -> None:
            while not closed.wait(0.2):
                if stop.is_set() and not closed.wait(grace):
                    # What hangs may be the output itself.
                    acquit = threading.Thread(target=self.suspects.acquit, daemon=True)
                    acquit.start()
                    acquit.join(1)
                    number = getattr(stop, "received", None) or signal.SIGTERM
                    print(
                        f"shade-fast: ended after {grace:g} s with an image unfinished; run the same again to go on",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(128 + number)

        watcher = threading.Thread(target=watch, name="shade_fast-end", daemon=True)
        watcher.start()
        self._end.callback(watcher.join)
        self._end.callback(closed.set)

    def look(self) -> None:
        """Take in what is done as `begin` does, and change nothing."""
        if self._resumes() and (read_run(self.out) or {}).get("cleared", True):
            self.index.load(self.manifest, self.is_there, functools.partial(self.layout.is_own, self.task), mend=False)

    def join(self, name: str) -> None:
        """Take part in a run that another process has begun, and that hands out the shards. name: this process's."""
        self.index.overwrites = bool((read_run(self.out) or {}).get("overwrites"))
        self._keep_temporary_files(name)
        self.index.load(self.manifest, self.is_there, lambda _: False)

    def run_shard(
        self, shard: Shard, stop: threading.Event, on_row: Callable[[Row], None], limit: int | None = None
    ) -> bool:
        """Protect what a shard lacks and finish it; False where it was stopped before its end."""
        cut = False

        def samples() -> Iterator[Sample]:
            nonlocal cut
            for taken, sample in enumerate(self.missing(shard)):
                if taken == limit:
                    cut = True
                    return
                yield sample

        self.reader.stop = stop
        self.suspects.load()
        flow = Flow(
            self.poisoner,
            self.output,
            self.anchor,
            self.index,
            functools.partial(self._blank, shard.name),
            self._store,
            self._clear,
            self._load,
            self.layout.vanished,
            self.layout.files,
            self.workers,
            stop,
            self.codecs,
            self.limits,
            self.suspects,
            self.clock,
        )
        try:
            flow.run(samples(), on_row)
        except BaseException as error:
            error.add_note(shard.name)
            self.suspects.acquit()  # the process lives
            # What is recorded already stays so where this cannot be written: a full disk, a second interruption.
            with contextlib.suppress(OSError):
                self._write_manifest(shard, whole=False)
            raise
        if cut or not flow.ended:
            self._write_manifest(shard, whole=False)
            return False
        try:
            if self.writes:
                facts = self._facts(self.layout.path(shard), shard.name)
                self.layout.finish(shard, self.manifest.rows(shard.name), self._load, self.out, facts)
            self._write_manifest(shard, whole=True)
        except OSError as error:
            gone = self.layout.vanished()
            place = gone or self.out.location(shard.name)
            mend = "bring it back" if gone else "make room or mend the disk,"
            raise ArchiveStoppedError(f"{place}: {error.strerror or error}; {mend} and run this again") from error
        return True

    def missing(self, shard: Shard) -> Iterator[Sample]:
        """What a shard lacks."""
        done = {row.index for row in self.manifest.rows(shard.name) if self.is_there(row)}
        return (sample for sample in self.layout.samples(shard) if sample.index not in done)

    def is_there(self, row: Row) -> bool:
        """Whether a row's image is where it was to be written."""
        return row.output is None or not self.writes or self.out.size(self._place(row)) == row.output_bytes

    def report(self, new: int, seconds: float, *, interrupted: bool) -> ArchiveReport:
        if not interrupted:
            self._forget_replaced()
            if self.task[1] == 1:
                self.out.remove_record(BEGUN)
        stats = self.manifest.write_stats(
            {
                "version": __version__,
                "options_sha256": self.options_sha256,
                "last_run": {
                    "images": new,
                    "seconds": round(seconds, 3),
                    "engine_seconds": round(self.clock.engine, 3),
                    "waiting_seconds": round(self.clock.waiting, 3),
                },
            }
        )
        counts = {name: stats[name] for name in ("images", "ok", "below_target", "failed", "duplicates")}
        return ArchiveReport(
            out=self.out.url,
            **counts,
            new=new,
            interrupted=interrupted,
            seconds=seconds,
            engine_seconds=self.clock.engine,
            waiting_seconds=self.clock.waiting,
            stats=stats,
        )

    def _resumes(self) -> bool:
        """Whether this goes on with an earlier run's output. Raises ShadeFastError where it may not."""
        record = read_run(self.out)
        if record is None:
            return False
        if self.mode == "fail":
            raise ShadeFastError(f"{self.out.url}: holds an earlier run; give another output, or mode resume")
        if self.mode == "overwrite":
            if self.task[1] > 1:
                raise ShadeFastError("mode 'overwrite': tasks cannot tell each other's work; remove the output first")
            return False
        check_same(self.out, record, self.options)
        self.index.overwrites = bool(record.get("overwrites"))
        return True

    def _make_root(self) -> None:
        """Make the output's folder as open to others as the source's is, and no more."""
        source = Storage(self.sources[0])
        if self.out.local and source.local and not os.path.exists(self.out.root):
            folder = source.root if os.path.isdir(source.root) else os.path.dirname(source.root)
            os.makedirs(os.path.dirname(self.out.root), exist_ok=True)
            with contextlib.suppress(FileExistsError):  # another task's
                os.mkdir(self.out.root, 0o700)
                os.chmod(self.out.root, stat.S_IMODE(os.stat(folder).st_mode) & 0o777 | 0o700)

    def _begin_record(self) -> None:
        """Write this run's record, then put those that it replaces out of the way; cut off, it is done again."""
        self.index.overwrites = overwrites = self.index.overwrites or self.mode == "overwrite"
        write_run(self.out, self.options, self.access, overwrites=overwrites, cleared=not overwrites)
        if overwrites:
            self.manifest.set_aside(
                f"{REPLACED}/{1 + max(map(int, filter(str.isdecimal, self.out.folders(REPLACED))), default=0)}"
            )
            write_run(self.out, self.options, self.access, overwrites=True)

    def _keep_key(self) -> None:
        key = url_key(self.out, make=True)
        if key != self.out.key and any(map(is_hidden, self.options["source"])):
            raise ArchiveStoppedError(f"{self.out.url}: another task began at the same moment; run this again")
        self.out.key = key

    def _replaced(self) -> Iterator[Manifest]:
        """The records of the runs that this one replaces."""
        for number in filter(str.isdecimal, self.out.folders(REPLACED)):
            yield Manifest(self.out, f"{REPLACED}/{number}")

    def _forget_replaced(self) -> None:
        """Remove the records of replaced runs of which no file is left that is not this run's now."""
        for manifest in self._replaced() if self.task[1] == 1 and self.index.overwrites else ():
            names = {name for row in manifest.all_rows() for name in (row.output, row.shard) if name is not None}
            if not any(self.index.is_nobodys(name) and self.out.exists(from_text(name)) for name in names):
                self.out.remove_record(manifest.manifests.rpartition("/")[0])

    def _reopen_failed(self) -> None:
        """Make open again what finished shards of this task failed in for reasons that may have passed."""
        for shard in self.manifest.finished():
            if not self.layout.is_own(self.task, shard):
                continue
            rows = list(self.manifest.rows(shard))
            kept = [row for row in rows if not (row.status == "failed" and row.transient)]
            if len(kept) == len(rows):
                continue
            if self.writes and not self.layout.files:
                self.index.finished.add(shard)
                for row in kept:
                    if row.output is not None:
                        self.out.write(self._place(row), self._load(row))
                self.index.finished.discard(shard)
            self.manifest.reopen(shard, kept)

    def _facts(self, path: str | None, name: str) -> Facts | None:
        """What a file of the output gets of the local file that it is made of."""
        return None if path is None else Facts.of(path, name.count("/") + 1, times=self.keep_times)

    def _keep_temporary_files(self, name: str) -> None:
        temporary = f"{RECORD_FOLDER}/temporary"
        if self.task[1] == 1 and not name.startswith("actor-"):
            self.out.remove_record(temporary)
        self.out.keep_temporary_files(f"{temporary}/{name}")
        if self.out.local:  # what waits there for its tar or table is for nobody else
            os.makedirs(self.out.path(self.manifest.work), mode=0o700, exist_ok=True)
        self._end.callback(self.out.remove_record, f"{temporary}/{name}")
        self.suspects = Suspects(self.out, name)

    def _blank(self, shard: str, sample: Sample) -> Row:
        poisoner, target = self.poisoner, sample.target or self.target
        hashes = [encoder.sha256 for encoder in poisoner.encoders]
        return Row(
            key=sample.key,
            shard=shard,
            index=sample.index,
            source=sample.source,
            status="failed",
            output=to_text(sample.output),
            concept=sample.concept,
            target=None if target is None else to_text(target),
            seed=poisoner.options.seed,
            encoder=poisoner.encoder_name,
            encoder_sha256=" + ".join(hashes) if all(hashes) else None,  # type: ignore[arg-type]
            perceptual=None if poisoner.perceptual is None else poisoner.perceptual.name,
            perceptual_sha256=None if poisoner.perceptual is None else poisoner.perceptual.sha256,
            backend=poisoner.backend,
            version=__version__,
            options_sha256=self.options_sha256,
        )

    def _place(self, row: Row) -> str:
        """Where a row's image is until its shard is finished; for good where images are files."""
        if self.layout.files:
            return from_text(row.output or "")
        return self.manifest.work_name(row.shard, row.index, "bin")

    def _store(self, row: Row, data: bytes | None, path: str | None) -> Row:
        """Write a row, then its image: a crash between the two leaves a row that is known to be undone. path: of the
        source's file, where it is one on this machine."""
        with self._stopping():
            refusal = None if data is None or not self.writes else self._make_room(row)
            if refusal is not None:
                row, data = replace(row, status="failed", error=refusal, output=None), None
            if not self.writes:
                row, data = replace(row, output=None), None
            self.manifest.write_row(row)
            if data is not None:
                try:
                    self.out.write(self._place(row), data, self._facts(path, self._place(row)))
                except OSError as error:
                    if error.errno in STOPPING:
                        raise
                    message = f"{row.key}: its output {row.output} cannot be written: {error.strerror}"
                    row = replace(row, status="failed", error=message, output=None)
                    self.manifest.write_row(row)
        return row

    def _clear(self, row: Row) -> None:
        """Where this run overwrites, remove what an earlier one left in the place of an image that has failed."""
        replaces = row.output is not None and self.index.may_replace(row.output)
        if replaces and self.writes and self.layout.files and self._barrier(row) is None:
            with self._stopping():
                self.out.remove_file(self._place(row))

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        """Raise ArchiveStoppedError where the output cannot be written."""
        try:
            yield
        except OSError as error:
            raise ArchiveStoppedError(
                f"{self.out.url}: cannot be written: {error.strerror}; make room or mend the disk, and run this again"
            ) from error

    def _make_room(self, row: Row) -> str | None:
        """Where this run overwrites, empty an image's place. Why it may not be written there; None where it may."""
        place = self._place(row)
        if not self.layout.files:
            return None
        barrier = self._barrier(row)
        if barrier is not None or not self.out.exists(place):
            return barrier
        if row.duplicate_of is not None and hashlib.sha256(self.out.read(place)).hexdigest() == row.output_sha256:
            return None
        if not self.index.may_replace(row.output or ""):
            path = self.out.path(place)
            if self.index.overwrites:
                return f"{row.key}: its output {path} exists and no run's record names it; move it away"
            return (
                f"{row.key}: its output {path} exists and is none of this run's; give another output, or mode overwrite"
            )
        self.out.remove_file(place)
        return None

    def _barrier(self, row: Row) -> str | None:
        """What is in the way of an image's file and may never be replaced; None where nothing is."""
        path = self.out.path(self._place(row))
        if self._place(row).startswith(f"{RECORD_FOLDER}/"):
            return f"{row.key}: its output {row.output} would be among the record's files; rename it"
        if self.out.local:
            folder, root = os.path.realpath(os.path.dirname(path)), os.path.realpath(self.out.root)
            if os.path.commonpath([folder, root]) != root:
                return f"{row.key}: its output {row.output} leads out of {self.out.url} through a link; remove the link"
        if self.out.is_folder(self._place(row)):
            return f"{row.key}: its output {path} is a folder; give another output"
        return None

    def _load(self, row: Row) -> bytes:
        if not self.writes:
            return b""
        if self.layout.files or row.shard not in self.index.finished:
            return self.out.read(self._place(row))
        return self.layout.read_output(row, self.out)

    def _write_manifest(self, shard: Shard, *, whole: bool) -> None:
        rows = (row for row in self.manifest.rows(shard.name) if self.is_there(row))
        self.manifest.write(shard.name, rows, whole=whole)
        if whole:
            self.index.finished.add(shard.name)


def open_layout(sources: Sequence[Source], out: Storage, output: Output, shard_size: int, reader: Reader) -> Layout:
    """What the sources are, by their names. Raises ShadeFastError for none, and for kinds that are mixed."""
    if not sources:
        raise ShadeFastError("source: none was given")
    texts = [os.fspath(source) for source in sources]
    kinds = {
        "tars"
        if text.lower().endswith(TAR_SUFFIXES)
        else "tables"
        if text.lower().endswith(TABLE_SUFFIXES)
        else "folders"
        for text in texts
    }
    if len(kinds) > 1:
        raise ShadeFastError(f"source: {', '.join(sorted(kinds))} together; protect them into outputs of their own")
    if "tars" in kinds:
        return Tars(texts, out, output, reader.limits)
    if "tables" in kinds:
        return Tables(texts, out, output, reader)
    return Folder(sources, out, output, shard_size, reader)


def target_roots(layout: Layout, access: Access) -> list[str]:
    """Folders that a row's target may lie in: its table's, and those that the run allows."""
    tables = layout.tables.values() if isinstance(layout, Tables) else ()
    return [*(os.path.dirname(table.storage.root) for table in tables if table.storage.local), *access.paths]


@contextlib.contextmanager
def fixed_plan() -> Iterator[None]:
    """Choose the CPU's algorithms by rules, so that machines with the same instruction set give the same bytes."""
    if "SHADE_FAST_PLAN" in os.environ:
        yield
        return
    os.environ["SHADE_FAST_PLAN"] = "fixed"
    try:
        yield
    finally:
        del os.environ["SHADE_FAST_PLAN"]
