"""What a run has to know of all images at once, on disk so that memory does not grow with the archive: which are done,
whose a name in the output is, and where a content's result is."""

from __future__ import annotations

import sqlite3
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shade_fast.archive.manifest import Manifest
from shade_fast.archive.row import Row
from shade_fast.archive.storage import Storage
from shade_fast.system.files import scratch_folder
from shade_fast.terms.errors import ShadeFastError


class Index:
    """A temporary database, filled from the manifests of an output; gone when it is closed.

    open_shards: name -> how many rows an open shard has, and the next free place in it. overwrites: whether what an
    earlier run has written in an image's or a shard's place is replaced; what no run's record names never is.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(dir=scratch_folder())
        self._lock = threading.Lock()
        self._database = sqlite3.connect(
            Path(self._folder.name) / "index.sqlite", check_same_thread=False, isolation_level=None
        )
        self._database.executescript(
            "pragma journal_mode = off; pragma synchronous = off; begin;"
            "create table done (source text primary key) without rowid;"
            "create table names (name text primary key, owner text) without rowid;"
            "create table replaced (name text primary key) without rowid;"
            "create table contents (content text primary key, row blob) without rowid;"
        )
        #: rows taken in
        self.count = 0
        self.finished: set[str] = set()
        self.open_shards: dict[str, tuple[int, int]] = {}
        self.overwrites = False

    def close(self) -> None:
        self._database.close()
        self._folder.cleanup()

    def load(
        self, manifest: Manifest, there: Callable[[Row], bool], own: Callable[[str], bool], *, drop: bool = True
    ) -> None:
        """Take in what is recorded. there: whether a row's image is; rows of `own` open shards without are dropped.

        drop: from the shards' manifests too.
        """
        self.finished = set(manifest.finished())
        for shard in sorted(self.finished):
            for row in manifest.rows(shard):
                self.add(row)
        for shard in filter(own, manifest.open_shards()):
            rows = list(manifest.rows(shard))
            kept = [row for row in rows if there(row)]
            if drop and len(kept) < len(rows):
                # Now: once its image is protected again, in another place of the shard, such a row would count twice.
                manifest.write(shard, kept, whole=False)
            for row in kept:
                self.add(row)
            self.open_shards[shard] = (len(kept), max((row.index + 1 for row in rows), default=0))

    def add(self, row: Row) -> None:
        with self._lock:
            self.count += 1
            self._database.execute("insert or replace into done values (?)", (row.source,))
            if row.output is not None:
                self._claim(row.output, row.source)
                self._claim(_target_of(row.output), row.target_sha256 or "")
            if row.duplicate_of is None and row.status != "failed":
                self._database.execute("insert or ignore into contents values (?, ?)", (content(row), row.to_json()))

    def load_replaced(self, manifest: Manifest) -> None:
        """Take in which files an earlier run has written, that this one replaces."""
        for row in manifest.all_rows():
            for name in (row.output, row.shard):
                if name is not None:
                    self._database.execute("insert or ignore into replaced values (?)", (name,))

    def may_replace(self, name: str) -> bool:
        """Whether what stands under a name in the output is an earlier run's, and this one is to replace it."""
        return self.overwrites and self._first("select name from replaced where name = ?", name) is not None

    def check_free(self, out: Storage, shard: str) -> None:
        """Raise ShadeFastError where something stands in the place of a shard that is not to be replaced."""
        if shard in self.open_shards or self.may_replace(shard) or not out.exists(shard):
            return
        reason = "is none of this run's; give another folder, or mode overwrite"
        if self.overwrites:
            reason = "no run's record names it; move it away, or give another folder"
        raise ShadeFastError(f"{out.location(shard)}: exists and {reason}")

    def is_nobodys(self, name: str) -> bool:
        """Whether no row names this as its output, and no shard is named so."""
        claimed = self._first("select owner from names where name = ?", name) is not None
        return not claimed and name not in self.finished and name not in self.open_shards

    def is_done(self, source: str) -> bool:
        """Whether the image in a file of its own is recorded."""
        return self._first("select source from done where source = ?", source) is not None

    def claim(self, name: str, source: str) -> str:
        """Whose a name in the output is: this source's from now on, where it was nobody's."""
        with self._lock:
            self._claim(name, source)
        return str(self._first("select owner from names where name = ?", name))

    def claim_target(self, name: str, target: str) -> str:
        """Which target, by its hash, a name in the output is for: this one from now on, where it was for none."""
        return self.claim(_target_of(name), target)

    def is_claimed(self, name: str) -> bool:
        """Whether a name in the output is for some target already: that of a row that came before."""
        return self._first("select owner from names where name = ?", _target_of(name)) is not None

    def result(self, key: str) -> Row | None:
        """The row of an image with the same content (see `content`) that has a result."""
        row = self._first("select row from contents where content = ?", key)
        return None if row is None else Row.from_json(bytes(row))

    def forget_result(self, row: Row) -> None:
        """Give no more images the result of this one: it is not there any more."""
        with self._lock:
            self._database.execute("delete from contents where content = ? and row = ?", (content(row), row.to_json()))

    def _claim(self, name: str, value: str) -> None:
        self._database.execute("insert or ignore into names values (?, ?)", (name, value))

    def _first(self, query: str, value: str) -> Any:
        with self._lock:
            answer = self._database.execute(query, (value,)).fetchone()
        return None if answer is None else answer[0]


def _target_of(name: str) -> str:
    return f"target\0{name}"


def content(row: Row) -> str:
    """What decides a result besides the options: the source's bytes and the target's images."""
    return f"{row.source_sha256} {row.target_sha256}"
