"""`poison_archive`: a run over an archive, shard by shard; and `plan_archive`, what it would do."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from shade_fast.archive.archive import Archive
from shade_fast.archive.names import to_text
from shade_fast.archive.options import RunOptions, Source
from shade_fast.archive.progress import Reporter
from shade_fast.archive.report import ArchiveReport
from shade_fast.archive.row import Row
from shade_fast.archive.storage import ArchiveStoppedError
from shade_fast.protect.options import Options
from shade_fast.terms.options import divided, takes
from shade_fast.terms.text import redacted


@takes(RunOptions, Options)
def poison_archive(
    source: Source | Sequence[Source],
    out: Source,
    target: str | None = None,
    *,
    progress: bool = False,
    on_row: Callable[[Row], None] | None = None,
    stop: threading.Event | None = None,
    **options: Any,
) -> ArchiveReport:
    """Protect an archive of any size into the same shape, with a row for every image; go on where a run ended.

    source: a folder or image file, tar files (WebDataset shards, `{000..127}` in braces), or parquet, CSV or JSON-lines
        tables with a column of paths or bytes; paths or fsspec URLs; one, or a list of one kind.
    out: a folder or URL: the same relative paths, shard names and keys, or tables; records below `_shade_fast`.
    target: the target concept, as of `poison_batch`; a table's own `target` column goes before it.
    mode: `resume` goes on with what is there, and refuses other options; `overwrite` begins anew; `fail` refuses both.
    shard: (i, n): only the i-th of n parts, for n independent tasks that share one output. limit: images to take now.
    on_error: `continue`, or `stop` at the first image that fails.
    output, quality: as of `Output`; `dummy` measures and writes no images.
    workers: threads that read, decode, encode and write; default as many as cores, at most 4. shard_size: images of a
        manifest of a folder. events: a file that gets a JSON line for every image and shard.
    on_row: given each row. stop: set from elsewhere, it ends the run: what is read or decoded is left to the next one,
        what the engine has is finished. grace: seconds after which the process then ends itself, whatever hangs.
    access: what a table's rows may name, and how remote files are read. limits: what an image, a member or a source may
        cost; over it, an image is a failed row.
    retry_failed: try again what failed for a reason that may have passed. keep_times: give files the time of their
        sources; permissions are always theirs.
    options: those of `poison_batch` (encoder, budget, view, steps, ...).

    Raises ShadeFastError for what concerns the run as a whole; what was done by then is recorded.
    """
    run, protection = divided(options, RunOptions, Options)
    stop = stop or threading.Event()
    with Archive(source, out, target, run, protection) as archive:
        archive.begin()
        if run.grace is not None:
            archive.end_at_last(stop, run.grace)
        with Reporter(archive.layout if progress else None, archive.recorded, run.shard, run.events) as reporter:
            started = time.perf_counter()
            new = 0

            def on_each(row: Row) -> None:
                nonlocal new
                new += 1
                reporter.row(row)
                if on_row is not None:
                    on_row(row)
                if row.status == "failed" and run.on_error == "stop":
                    raise ArchiveStoppedError(f"stopped at the first image that failed: {row.error}")

            finished = True
            for shard in archive.layout.shards(run.shard, archive.index):
                finished = archive.run_shard(shard, stop, on_each, None if run.limit is None else run.limit - new)
                reporter.shard(shard.name, finished)
                if not finished:
                    break
            seconds = time.perf_counter() - started
            report = archive.report(new, seconds, interrupted=not finished)
            reporter.end(report.stats, interrupted=not finished)
    return report


@takes(RunOptions, Options)
def plan_archive(
    source: Source | Sequence[Source], out: Source, target: str | None = None, **options: Any
) -> Iterator[dict[str, Any]]:
    """What `poison_archive` would do with each image, undone: its output, its sizes, the error that it would meet.

    Raises ShadeFastError where it would refuse the output.
    """
    run, protection = divided(options, RunOptions, Options)
    with Archive(source, out, target, run, protection) as archive:
        archive.look()
        samples = (
            sample
            for shard in archive.layout.shards(run.shard, archive.index)
            for sample in (archive.layout.samples(shard) if run.mode == "overwrite" else archive.missing(shard))
        )
        poisoner = archive.poisoner
        for sample in itertools.islice(samples, run.limit):
            row: dict[str, Any] = {"key": sample.key, "output": to_text(sample.output), "error": sample.error}
            try:
                if sample.error is None:
                    image = archive.codecs.decode(sample.read(), sample.key)
                    height, width = image.pixels.shape[:2]
                    row |= {"width": width, "height": height}
                    archive.output.check(image)
                    row["view"] = list(poisoner.view.plan(height, width, poisoner.factor).crop)
            except Exception as error:  # whatever a file makes a decoder or a store raise
                row["error"] = redacted(str(error))
            yield row
