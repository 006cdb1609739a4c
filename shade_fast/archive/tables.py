"""Manifests of images: parquet, CSV or JSON-lines tables with a column of paths or of the images' bytes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from shade_fast.archive.access import RowFiles
from shade_fast.archive.folders import source_text
from shade_fast.archive.index import Index
from shade_fast.archive.layout import Read, Sample, Shard
from shade_fast.archive.names import from_text, to_text, unwritable
from shade_fast.archive.parquet import REFUSED
from shade_fast.archive.reading import Reader
from shade_fast.archive.row import Row
from shade_fast.archive.storage import Facts, Storage
from shade_fast.archive.table import Table, image_of, text_of
from shade_fast.archive.tars import expand
from shade_fast.images import Output
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.limits import Limits
from shade_fast.terms.text import redacted


class Tables:
    """One or many tables of one kind, each of which is a shard.

    A column of bytes (or of Hugging Face's {bytes, path}) is written as a parquet file with the same other columns. A
    column of paths (relative to the table's folder, absolute, or URLs) is written as image files, and the table with
    their new paths beside them. Columns `target`, `concept` and `caption` are read where they are there.
    """

    def __init__(self, sources: Sequence[str | Path], out: Storage, output: Output, reader: Reader) -> None:
        self.out, self.output, self.reader = out, output, reader
        self.tables: dict[str, Table] = {}
        for source in sources:
            for url in expand(str(source)):
                table = Table(url, reader.limits)
                if table.name in self.tables:
                    raise ShadeFastError(f"{url}: another table is named {table.name} too; protect them apart")
                if Storage(url).url == out.location(table.name):
                    raise ShadeFastError(f"{out.url}: holds the source {url} itself; give another folder")
                self.tables[table.name] = table
        kinds = {table.has_bytes for table in self.tables.values()}
        if len(kinds) > 1:
            raise ShadeFastError(f"{', '.join(self.tables)}: some with bytes and some with paths; protect them apart")
        self.files = not kinds.pop()
        self.names: Index | None = None

    def shards(self, task: tuple[int, int], index: Index) -> Iterator[Shard]:
        self.names = index
        for number, table in enumerate(self.tables.values()):
            if number % task[1] == task[0] and table.name not in index.finished:
                index.check_free(self.out, table.name)
                yield Shard(table.name, table.url)

    def is_own(self, task: tuple[int, int], shard: str) -> bool:
        return shard in self.tables and list(self.tables).index(shard) % task[1] == task[0]

    def samples(self, shard: Shard) -> Iterator[Sample]:
        table = self.tables[shard.name]
        source = source_text(Storage(table.url), "", self.out)
        files = RowFiles(table.storage, self.out, self.reader)
        for place, record in enumerate(table.records()):
            target, concept = (text_of(record.get(name)) for name in ("target", "concept"))
            if REFUSED in record:
                yield Sample(place, f"row {place}", "", source, bytes, record[REFUSED], target, concept)
                continue
            if table.has_bytes:
                data, name = image_of(record.get(table.column))
                key = redacted(text_of(record.get("key")) or name or str(place))
                error = None if data is not None else f"row {place}: no bytes in column {table.column!r}"
                data = data or b""
                read = functools.partial(bytes, data)
                yield Sample(place, to_text(key), key, source, read, error, target, concept, size=len(data))
                continue
            path = text_of(record.get(table.column))
            try:
                if path is None:
                    raise ShadeFastError(f"no path in column {table.column!r}")
                file = files.resolve(path)
                output = self.output.name_of(file.name)
                refusal = unwritable(output, self.tables)
                if refusal is not None:
                    raise ShadeFastError(f"{file.key}: {refusal}; rename it")
            except Exception as problem:  # whatever a path makes a protocol raise, it ends one row, not the run
                reason = f"row {place}: {redacted(str(problem))}"
                yield Sample(place, f"row {place}", "", source, bytes, reason, target, concept)
                continue
            taken = file.source if self.names is None else self.names.claim(to_text(output), file.source)
            error = None
            if taken != file.source:
                error = f"{file.key}: its output {output} is that of {taken} too; rename one, or run them apart"
            yield Sample(place, file.key, output, file.source, file.read, error, target, concept, file.path)

    def path(self, shard: Shard) -> str | None:
        storage = self.tables[shard.name].storage
        return storage.root if storage.local else None

    def finish(
        self, shard: Shard, rows: Iterable[Row], image: Callable[[Row], bytes], out: Storage, facts: Facts | None
    ) -> None:
        table = self.tables[shard.name]
        with out.create(shard.name, facts) as file:
            if table.has_bytes:
                table.write_bytes(file, rows, image)
            else:
                table.write_paths(file, rows)

    def count(self) -> int | None:
        return sum(table.count() for table in self.tables.values())

    def vanished(self) -> str | None:
        return next((table.url for table in self.tables.values() if not Storage(table.url).exists()), None)

    def pairs(self, rows: Iterable[Row], out: Storage) -> Iterator[tuple[Row, Read, Read]]:
        following = iter(rows)
        first = next(following, None)
        if first is None:
            return
        rows = itertools.chain((first,), following)
        if self.files:
            # As the table has them: the record leaves out what a URL's secrets are.
            samples = self.samples(Shard(first.shard, None))
            for row in rows:
                sample = next((sample for sample in samples if sample.index == row.index), None)
                yield row, bytes if sample is None else sample.read, lambda row=row: self.read_output(row, out)  # type: ignore[misc]
            return
        written = self._written(first.shard, out).records()
        for row, sample in zip(rows, self.samples(Shard(first.shard, None)), strict=False):
            record = next(written)
            data = image_of(record[self.tables[first.shard].column])[0] or b""
            yield row, sample.read, lambda data=data: data  # type: ignore[misc]

    def read_output(self, row: Row, out: Storage) -> bytes:
        if self.files:
            return out.read(from_text(row.output or ""))
        table = self._written(row.shard, out)
        record = next(itertools.islice(table.records(), row.index, None))
        return image_of(record[table.column])[0] or b""

    def _written(self, name: str, out: Storage) -> Table:
        """The output's table, whose images may be longer than their sources."""
        most = max(self.reader.limits.image_bytes, Limits().image_bytes)
        return Table(out.location(name), dataclasses.replace(self.reader.limits, image_bytes=most))
