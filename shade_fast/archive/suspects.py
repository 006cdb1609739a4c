"""Which images a run worked on when its process was killed: over one that was there each time, it may have been."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable

from shade_fast.archive.row import Row
from shade_fast.archive.storage import RECORD_FOLDER, ArchiveStoppedError, Storage

BEGUN = f"{RECORD_FOLDER}/begun"
#: Kills that an image was worked on at before it goes by itself, before it has a process to itself, and before it is
#: passed by.
ALONE, APART, PASSED = 1, 2, 3


class Suspects:
    """The images that the engine has, kept in the output's record while it has them. name: the task's."""

    def __init__(self, out: Storage, name: str) -> None:
        self._out, self._name = out, f"{BEGUN}/{name}.json"
        self._kills: dict[str, int] = {}
        self._begun: dict[str, int] = {}

    def load(self) -> None:
        """Take in what processes that are gone had begun, also of other tasks, whose shards this may go on with."""
        for name in self._out.names(BEGUN):
            # One that was cut off, or is no such file, accuses nobody.
            with contextlib.suppress(OSError, ValueError, AttributeError, TypeError, RecursionError):
                for key, count in json.loads(self._out.read(f"{BEGUN}/{name}")).items():
                    self._kills[key] = max(int(count), self._kills.get(key, 0))

    def acquit(self) -> None:
        """Forget what is begun: the process ends itself."""
        self._begun = {}
        with contextlib.suppress(ArchiveStoppedError):
            self._write()

    def kills(self, row: Row) -> int:
        """How many processes were killed while they worked on an image."""
        return self._kills.get(_identity(row), 0)

    def begin(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._begun[_identity(row)] = self.kills(row) + 1
        self._write()

    def end(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._begun.pop(_identity(row), None)
            self._kills.pop(_identity(row), None)
        self._write()

    def _write(self) -> None:
        data = json.dumps(self._kills | self._begun).encode()
        try:
            if not self._out.local:
                self._out.write(self._name, data)
                return
            # Not synced: a killed process leaves what it has written, and only its kill is looked for.
            path = self._out.path(self._name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(f"{path}.new", "wb") as file:
                file.write(data)
            os.replace(f"{path}.new", path)
        except OSError as error:
            raise ArchiveStoppedError.unwritable(self._out.url, error) from error


def _identity(row: Row) -> str:
    return hashlib.sha256(f"{row.source}\0{row.key}".encode(errors="surrogateescape")).hexdigest()[:24]
