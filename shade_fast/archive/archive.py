"""An archive under work: each sample of a shard protected, recorded and written so that a crash loses nothing."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from shade_fast.api.poisoner import Poisoner
from shade_fast.archive.bound import MemoryBound
from shade_fast.archive.finish import Finisher
from shade_fast.archive.flow import Clock, Flow
from shade_fast.archive.folders import source_text
from shade_fast.archive.index import Index
from shade_fast.archive.kinds import open_layout, target_roots
from shade_fast.archive.layout import Sample, Shard
from shade_fast.archive.manifest import Manifest
from shade_fast.archive.names import from_text
from shade_fast.archive.options import RunOptions, Source
from shade_fast.archive.prepare import Preparer
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
from shade_fast.archive.recorder import Recorder, shared_columns
from shade_fast.archive.report import ArchiveReport
from shade_fast.archive.row import Row
from shade_fast.archive.storage import RECORD_FOLDER, ArchiveStoppedError, Storage, is_hidden
from shade_fast.archive.suspects import BEGUN, Suspects
from shade_fast.archive.tables import Tables
from shade_fast.archive.targets import Targets
from shade_fast.codecs import Codecs
from shade_fast.images import Output
from shade_fast.protect.options import Options
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.version import __version__


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
        self.retry_failed = run.retry_failed
        self.reader = Reader(self.limits, self.access)
        self.layout = open_layout(self.sources, self.out, self.output, run.shard_size, self.reader)
        self.workers = run.workers or min(4, os.cpu_count() or 1)
        self.codecs = Codecs(self.limits, self.workers)
        with fixed_plan():
            self.poisoner = Poisoner(options)
        if target is None and not isinstance(self.layout, Tables):
            raise ShadeFastError("target: none was given; name an anchor, an image or a folder")
        roots = target_roots(self.layout, self.access)
        self.targets = Targets(self.poisoner, target, roots, self.reader, self.codecs)
        anchor = None if target is None else self.targets(None)
        places = [source_text(Storage(source), "", self.out) for source in self.sources]
        self.options = describe(self.poisoner, places, target, anchor, self.output, run.shard[1])
        self.options["output"] = run.output
        self.options_sha256 = digest(self.options)
        self.manifest = Manifest(self.out)
        self.index = Index()
        self.index.overwrites = run.mode == "overwrite"
        self.recorder = Recorder(
            self.layout,
            self.manifest,
            self.index,
            target=target,
            shared=shared_columns(self.poisoner, self.options_sha256),
            writes=self.writes,
            keep_times=run.keep_times,
        )
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
            self.index.load(self.manifest, self.recorder.is_there, functools.partial(self.layout.is_own, self.task))
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
            self.index.load(
                self.manifest, self.recorder.is_there, functools.partial(self.layout.is_own, self.task), drop=False
            )

    def join(self, name: str) -> None:
        """Take part in a run that another process has begun, and that hands out the shards. name: this process's."""
        self.index.overwrites = bool((read_run(self.out) or {}).get("overwrites"))
        self._keep_temporary_files(name)
        self.index.load(self.manifest, self.recorder.is_there, lambda _: False)

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
        preparer = Preparer(
            shard.name,
            self.layout,
            self.recorder,
            self.targets,
            self.codecs,
            self.output,
            MemoryBound(self.limits.waiting_bytes),
            stop,
        )
        finisher = Finisher(self.recorder, self.codecs, self.output)
        flow = Flow(self.poisoner, preparer, finisher, self.suspects, self.clock, self.workers, stop)
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
                facts = self.recorder.facts(self.layout.path(shard), shard.name)
                self.layout.finish(shard, self.manifest.rows(shard.name), self.recorder.load, self.out, facts)
            self._write_manifest(shard, whole=True)
        except OSError as error:
            gone = self.layout.vanished()
            place = gone or self.out.location(shard.name)
            advice = "bring it back" if gone else "make room or fix the disk,"
            raise ArchiveStoppedError(f"{place}: {error.strerror or error}; {advice} and run this again") from error
        return True

    def missing(self, shard: Shard) -> Iterator[Sample]:
        """What a shard lacks."""
        done = {row.index for row in self.manifest.rows(shard.name) if self.recorder.is_there(row)}
        return (sample for sample in self.layout.samples(shard) if sample.index not in done)

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
                raise ShadeFastError("mode 'overwrite': tasks cannot know each other's work; remove the output first")
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
                        self.out.write(self.recorder.place(row), self.recorder.load(row))
                self.index.finished.discard(shard)
            self.manifest.reopen(shard, kept)

    def _keep_temporary_files(self, name: str) -> None:
        temporary = f"{RECORD_FOLDER}/temporary"
        if self.task[1] == 1 and not name.startswith("actor-"):
            self.out.remove_record(temporary)
        self.out.keep_temporary_files(f"{temporary}/{name}")
        if self.out.local:  # what waits there for its tar or table is for nobody else
            os.makedirs(self.out.path(self.manifest.work), mode=0o700, exist_ok=True)
        self._end.callback(self.out.remove_record, f"{temporary}/{name}")
        self.suspects = Suspects(self.out, name)

    def _write_manifest(self, shard: Shard, *, whole: bool) -> None:
        rows = (row for row in self.manifest.rows(shard.name) if self.recorder.is_there(row))
        self.manifest.write(shard.name, rows, whole=whole)
        if whole:
            self.index.finished.add(shard.name)


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
