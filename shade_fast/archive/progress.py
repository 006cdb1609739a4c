"""What a run reports while it goes on: a bar for people, and lines of JSON for schedulers."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from shade_fast.archive.layout import Layout
from shade_fast.archive.row import Row
from shade_fast.archive.storage import ArchiveStoppedError
from shade_fast.terms.errors import ShadeFastError


class Reporter:
    """layout: of what a bar is shown; None for no bar. recorded: images done before. task: (i, n). events: a file that
    lines are added to: `start`, `image`, `shard` and `end`, each with the time in seconds since 1970."""

    def __init__(
        self, layout: Layout | None, recorded: int, task: tuple[int, int], events: str | os.PathLike[str] | None
    ) -> None:
        self._counts: Counter[str] = Counter()
        self._layout, self._recorded, self._task, self._path = layout, recorded, task, events
        self._file: IO[str] | None = None
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Reporter:
        if self._path is not None:
            try:
                self._file = Path(self._path).open("a", encoding="utf-8")
            except OSError as error:
                raise ShadeFastError(f"{self._path}: events cannot be written: {error.strerror}") from error
        self._write_event("start", done=self._recorded, task=self._task)
        if self._layout is not None:
            self._bar = tqdm(unit="image", file=sys.stderr, dynamic_ncols=True)
            threading.Thread(target=self._count, name="shade_fast-count", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._file is not None:
            self._file.close()

    def row(self, row: Row) -> None:
        self._counts[row.status] += 1
        if self._bar is not None:
            self._bar.set_postfix_str(
                ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in sorted(self._counts.items())),
                refresh=False,
            )
            self._bar.update()
        facts = ("key", "shard", "status", "error", "linf", "lpips", "distance_before", "distance_after", "optimize_ms")
        self._write_event("image", **{name: getattr(row, name) for name in facts})

    def shard(self, name: str, finished: bool) -> None:
        self._write_event("shard", shard=name, finished=finished)

    def end(self, stats: dict[str, Any], *, interrupted: bool) -> None:
        counts = {name: stats[name] for name in ("images", "ok", "below_target", "failed")}
        self._write_event("end", interrupted=interrupted, **counts)

    def _write_event(self, event: str, **facts: Any) -> None:
        if self._file is not None:
            try:
                self._file.write(json.dumps({"event": event, "time": round(time.time(), 3), **facts}) + "\n")
                self._file.flush()
            except OSError as error:
                with contextlib.suppress(OSError):  # what had no room is tried once more
                    self._file.close()
                self._file = None
                raise ArchiveStoppedError(
                    f"{self._path}: events cannot be written: {error.strerror}; make room, and run this again"
                ) from error

    def _count(self) -> None:
        """How many images there are is counted beside the run; a source that cannot be counted has no time left."""
        with contextlib.suppress(Exception):
            count = None if self._layout is None else self._layout.count()
            if count is not None and self._bar is not None:
                index, tasks = self._task
                self._bar.total = max(0, len(range(index, count, tasks)) - (self._recorded if tasks == 1 else 0))
                self._bar.refresh()
