"""The rows of an archive's record: one parquet file for every shard, and a file for each row of what is open."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shade_fast.archive.row import SCHEMA, Row
from shade_fast.archive.storage import RECORD_FOLDER, Storage
from shade_fast.archive.totals import totals
from shade_fast.terms.errors import ShadeFastError, reason

STATS_NAME = "_stats.json"
PARTIAL = ".partial.parquet"
#: Rows of a parquet row group, and files of a folder of open work.
GROUP = 1000
#: What reading a manifest that is damaged, or that something else wrote, may end in.
_DAMAGE = (
    *(pa.ArrowException, OSError, ArithmeticError, AttributeError, LookupError),
    *(RecursionError, TypeError, ValueError),
)


class Manifest:
    """The rows below an output: those of finished shards, and those of shards that are open.

    An open shard's rows are files of their own, each written before the image that it describes, so that a row whose
    image is there, in its recorded size, is done. An interruption gathers them in one `.partial.parquet` file.
    """

    def __init__(self, out: Storage, record: str = RECORD_FOLDER) -> None:
        """record: the folder below `out` that holds the rows."""
        self.out = out
        self.manifests, self.work = f"{record}/manifest", f"{record}/work"

    def finished(self) -> list[str]:
        """Names of finished shards."""
        names = self.out.names(self.manifests)
        return [name.removesuffix(".parquet") for name in names if not name.endswith(PARTIAL)]

    def open_shards(self) -> list[str]:
        """Names of shards that have rows and are not finished."""
        partial = {name.removesuffix(PARTIAL) for name in self.out.names(self.manifests) if name.endswith(PARTIAL)}
        return sorted((partial | set(self.out.folders(self.work))) - set(self.finished()))

    def rows(self, shard: str) -> Iterator[Row]:
        """A shard's rows, in order; those of an open one whether their images are there or not."""
        if self.out.size(f"{self.manifests}/{shard}.parquet") is not None:
            yield from self._read(f"{self.manifests}/{shard}.parquet")
            return
        rows: dict[int, Row] = {}
        if self.out.size(f"{self.manifests}/{shard}{PARTIAL}") is not None:
            rows = {row.index: row for row in self._read(f"{self.manifests}/{shard}{PARTIAL}")}
        for name in self._work(shard):
            row = Row.from_json(self.out.read(name))
            rows[row.index] = row
        yield from (rows[index] for index in sorted(rows))

    def all_rows(self) -> Iterator[Row]:
        for shard in sorted({*self.finished(), *self.open_shards()}):
            yield from self.rows(shard)

    def checked_rows(self) -> Iterator[Row]:
        """All rows, whoever wrote them. Raises ShadeFastError where they cannot be read, and for what no run writes."""
        with _damage_named(self.out):
            for row in self.all_rows():
                yield row.checked()

    def work_name(self, shard: str, index: int, ending: str = "json") -> str:
        return f"{self.work}/{shard}/{index // GROUP:06d}/{index:09d}.{ending}"

    def write_row(self, row: Row) -> None:
        self.out.write(self.work_name(row.shard, row.index), row.to_json())

    def write(self, shard: str, rows: Iterable[Row], *, whole: bool) -> None:
        """Write a shard's manifest: a finished one's, after which its open work is gone, or an open one's."""
        name = f"{self.manifests}/{shard}{'.parquet' if whole else PARTIAL}"
        with self.out.create(name) as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
            group: list[Row] = []
            for row in rows:
                group.append(row)
                if len(group) == GROUP:
                    writer.write_table(_table(group))
                    group = []
            writer.write_table(_table(group))
        if whole:
            self.out.remove_record(f"{self.work}/{shard}")
            self.out.remove_record(f"{self.manifests}/{shard}{PARTIAL}")
        else:
            for row_file in self._work(shard):
                self.out.remove_record(row_file)

    def reopen(self, shard: str, rows: Iterable[Row]) -> None:
        """Make a finished shard an open one that has these rows."""
        self.write(shard, rows, whole=False)
        self.out.remove_record(f"{self.manifests}/{shard}.parquet")

    def set_aside(self, folder: str) -> None:
        """Move all rows to another folder of the record, and forget their totals."""
        self.out.move_record(self.manifests, f"{folder}/manifest")
        self.out.move_record(self.work, f"{folder}/work")
        self.out.remove_file(STATS_NAME)

    def write_stats(self, record: dict[str, Any]) -> dict[str, Any]:
        """Write and return the totals over all rows. Tasks that end at the same time find each other's rows."""
        while True:
            before = self.out.names(self.manifests)
            stats = record | totals(self.all_rows()) | {"open_shards": self.open_shards()}
            self.out.write(STATS_NAME, (json.dumps(stats, indent=1) + "\n").encode())
            if self.out.names(self.manifests) == before:
                return stats

    def _read(self, name: str) -> Iterator[Row]:
        with self.out.open(name) as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=GROUP):
                yield from map(Row.of, batch.to_pylist())

    def _work(self, shard: str) -> list[str]:
        folders = [f"{self.work}/{shard}/{group}" for group in self.out.folders(f"{self.work}/{shard}")]
        return [f"{folder}/{name}" for folder in folders for name in self.out.names(folder) if name.endswith(".json")]


def read_stats(out: Storage) -> dict[str, Any]:
    """The totals that the last run has written; empty where none has. Raises ShadeFastError for a damaged file."""
    with _damage_named(out):
        stats = {} if out.size(STATS_NAME) is None else json.loads(out.read(STATS_NAME))
    return stats if isinstance(stats, dict) else {}


@contextlib.contextmanager
def _damage_named(out: Storage) -> Iterator[None]:
    try:
        yield
    except ShadeFastError:
        raise
    except _DAMAGE as problem:
        raise ShadeFastError(f"{out.url}: its manifest cannot be read ({reason(problem)}); run it again") from problem


def _table(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=SCHEMA)
