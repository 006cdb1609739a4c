"""Manifests of images: parquet, CSV or JSON-lines tables with a column of paths or of the images' bytes."""

from __future__ import annotations

import csv
import io
import itertools
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from shade_fast.archive.folders import source_path, source_text
from shade_fast.archive.index import Index
from shade_fast.archive.layout import Read, Sample, Shard
from shade_fast.archive.manifest import Row
from shade_fast.archive.names import from_text, to_text
from shade_fast.archive.storage import ArchiveStoppedError, Storage
from shade_fast.archive.tars import expand
from shade_fast.errors import ShadeFastError
from shade_fast.images import Output

TABLE_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")
#: Names of columns, in the order that they are looked for.
BYTES_COLUMNS = ("image", "bytes", "image_bytes", "jpg", "png", "webp")
PATH_COLUMNS = ("path", "file_name", "filename", "file", "image_path", "image", "url")
#: Rows that are read together, of images' bytes and of paths.
BYTES_BATCH, PATHS_BATCH = 16, 1000
#: Bytes of a row group that is written before its end.
GROUP_BYTES = 64 << 20


class Tables:
    """One or many tables of one kind, each of which is a shard.

    A column of bytes (or of Hugging Face's {bytes, path}) is written as a parquet file with the same other columns. A
    column of paths (relative to the table's folder, absolute, or URLs) is written as image files, and the table with
    their new paths beside them. Columns `target`, `concept` and `caption` are read where they are there.
    """

    def __init__(self, sources: Sequence[str | Path], out: Storage, output: Output) -> None:
        self.out, self.output = out, output
        self.tables: dict[str, _Table] = {}
        for source in sources:
            for url in expand(str(source)):
                table = _Table(url)
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
                if not index.overwrites and table.name not in index.open_shards and self.out.exists(table.name):
                    raise ShadeFastError(
                        f"{self.out.location(table.name)}: exists and is none of this run's; "
                        "give another folder, or mode overwrite"
                    )
                yield Shard(table.name, table.url)

    def is_own(self, task: tuple[int, int], shard: str) -> bool:
        return shard in self.tables and list(self.tables).index(shard) % task[1] == task[0]

    def samples(self, shard: Shard) -> Iterator[Sample]:
        table = self.tables[shard.name]
        source = source_text(Storage(table.url), "", self.out)
        for place, record in enumerate(table.records()):
            target, concept = (_text(record.get(name)) for name in ("target", "concept"))
            if table.has_bytes:
                data, name = _image_of(record.get(table.column))
                key = _text(record.get("key")) or name or str(place)
                error = None if data is not None else f"row {place}: no bytes in column {table.column!r}"
                yield Sample(place, to_text(key), key, source, lambda data=data: data or b"", error, target, concept)  # type: ignore[misc]
                continue
            path = _text(record.get(table.column))
            try:
                key, file, name = table.resolve(path)
            except Exception as problem:  # whatever a path makes a protocol raise, it ends one row, not the run
                reason = f"row {place}: {problem}"
                yield Sample(place, f"row {place}", "", source, bytes, reason, target, concept)
                continue
            output, image = self.output.name_of(name), source_text(file, "", self.out)
            taken = image if self.names is None else self.names.claim(to_text(output), image)
            error = None
            if taken != image:
                error = f"{path}: its output {output} is that of {taken} too; rename one, or run them apart"
            yield Sample(place, key, output, image, file.read_image, error, target, concept)

    def finish(self, shard: Shard, rows: Iterable[Row], image: Callable[[Row], bytes], out: Storage) -> None:
        table = self.tables[shard.name]
        with out.create(shard.name) as file:
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
            for row in rows:
                place = source_path(row, out)
                yield row, lambda place=place: Storage(place).read_image(), lambda row=row: self.read_output(row, out)  # type: ignore[misc]
            return
        written = _Table(out.location(first.shard)).records()
        for row, sample in zip(rows, self.samples(Shard(first.shard, None)), strict=False):
            record = next(written)
            data = _image_of(record[self.tables[first.shard].column])[0] or b""
            yield row, sample.read, lambda data=data: data  # type: ignore[misc]

    def read_output(self, row: Row, out: Storage) -> bytes:
        if self.files:
            return out.read(from_text(row.output or ""))
        table = _Table(out.location(row.shard))
        record = next(itertools.islice(table.records(), row.index, None))
        return _image_of(record[table.column])[0] or b""


class _Table:
    """One table file. Raises ShadeFastError where it cannot be read, or has no column of images."""

    def __init__(self, url: str) -> None:
        self.url, self.name = url, url.rstrip("/").rsplit("/", 1)[-1]
        self.storage = Storage(url)
        self.kind = self.name.rsplit(".", 1)[-1].lower()
        self.schema: pa.Schema | None = None
        self.columns: list[str] = []
        try:
            if self.kind == "parquet":
                with self.storage.open() as file:
                    self.schema = pq.read_schema(file)
                self.columns = self.schema.names
            else:
                self.columns = [name for name in next(self._read(), {}) if name is not None]
        except FileNotFoundError:
            raise ShadeFastError(f"{url}: no such file or folder") from None
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ShadeFastError(
                f"{url}: not a table that can be read ({error}); give parquet, CSV or JSON lines"
            ) from error
        self.has_bytes = False
        column = None
        if self.schema is not None:
            column = next((name for name in BYTES_COLUMNS if name in self.columns and self._holds_bytes(name)), None)
            self.has_bytes = column is not None
        self.column = column or next((name for name in PATH_COLUMNS if name in self.columns), "")
        if not self.column:
            raise ShadeFastError(
                f"{url}: no column of images among {', '.join(self.columns) or 'none'}; name one of bytes "
                f"{' or '.join(BYTES_COLUMNS[:3])}, or one of paths {' or '.join(PATH_COLUMNS[:3])}"
            )

    def records(self) -> Iterator[dict[str, Any]]:
        """Raises ArchiveStoppedError for what cannot be read."""
        try:
            yield from self._read()
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or error
            raise ArchiveStoppedError(f"{self.url}: cannot be read: {reason}; mend it and run this again") from error

    def _read(self) -> Iterator[dict[str, Any]]:
        number = 0

        def lines() -> Iterator[str]:
            nonlocal number
            for line in io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline=""):
                number += 1
                yield line

        with self.storage.open() as file:
            if self.kind == "parquet":
                for batch in pq.ParquetFile(file).iter_batches(self._batch):
                    yield from batch.to_pylist()
                return
            try:
                if self.kind in ("csv", "tsv"):
                    yield from csv.DictReader(lines(), delimiter="\t" if self.kind == "tsv" else ",")
                    return
                for line in filter(str.strip, lines()):
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise ValueError("no JSON object")
                    yield record
            except (ValueError, csv.Error) as error:
                raise ValueError(f"line {number}: {getattr(error, 'msg', error)}") from error

    def count(self) -> int:
        if self.kind == "parquet":
            with self.storage.open() as file:
                return int(pq.ParquetFile(file).metadata.num_rows)
        return sum(1 for _ in self.records())

    def resolve(self, path: str | None) -> tuple[str, Storage, str]:
        """A path as rows have it, the file that it means, and its name below the output: the path without what leads
        out of a folder. Raises ShadeFastError for none, and whatever a protocol makes of a URL."""
        if not path:
            raise ShadeFastError(f"no path in column {self.column!r}")
        if "://" in path:
            file, name = Storage(path), path.partition("://")[2]
        else:
            folder = self.url.rpartition("/")[0] if "/" in self.url else "."
            file, name = Storage(path if path.startswith("/") else f"{folder}/{path}"), path
        parts = [part for part in posixpath.normpath(name).split("/") if part not in ("", ".", "..")]
        name = "/".join(parts)
        return to_text(path), file, re.sub(r"[?#].*$", "", name) if "://" in path else name

    def write_bytes(self, file: IO[bytes], rows: Iterable[Row], image: Callable[[Row], bytes]) -> None:
        following = iter(rows)

        def new(old: list[Any]) -> Iterator[Any]:
            for value in old:
                row = next(following)
                data = None if row.output is None else image(row)
                yield value | {"bytes": data} if data is not None and isinstance(value, dict) else data

        if self.schema is None:
            raise ShadeFastError(f"{self.url}: images' bytes are written to parquet alone")
        self._write_parquet(file, self.schema, new)

    def write_paths(self, file: IO[bytes], rows: Iterable[Row]) -> None:
        new = (None if row.output is None else from_text(row.output) for row in rows)
        if self.schema is not None:
            self._write_parquet(file, self.schema, lambda old: itertools.islice(new, len(old)))
            return
        # JSON has an escape for half a character, as cut texts have; CSV keeps the bytes that are no text.
        errors = "surrogateescape" if self.kind in ("csv", "tsv") else "backslashreplace"
        text = io.TextIOWrapper(file, "utf-8", errors, newline="", write_through=True)
        if self.kind in ("csv", "tsv"):
            writer = csv.writer(text, delimiter="\t" if self.kind == "tsv" else ",", lineterminator="\n")
            writer.writerow(self.columns)
            for record, name in zip(self.records(), new, strict=True):
                fields: dict[Any, Any] = record | {self.column: name}
                # A row that is longer than the header has the rest under None.
                writer.writerow([*(fields[column] for column in self.columns), *fields.get(None, ())])
        else:
            for record, name in zip(self.records(), new, strict=True):
                text.write(json.dumps(record | {self.column: name}, ensure_ascii=False) + "\n")
        text.detach()

    def _write_parquet(self, file: IO[bytes], schema: pa.Schema, new: Callable[[list[Any]], Iterator[Any]]) -> None:
        """The table with `new` values for the old ones of the images' column, in the row groups that it has."""
        place = schema.get_field_index(self.column)
        field = schema.field(place).with_nullable(True)  # an image that fails leaves a null
        schema = schema.set(place, field)
        with self.storage.open() as read, pq.ParquetWriter(file, schema) as writer:
            source = pq.ParquetFile(read)
            for group in range(source.num_row_groups):
                held: list[pa.RecordBatch] = []
                size = 0
                for batch in source.iter_batches(self._batch, [group]):
                    values = pa.array(list(new(batch.column(place).to_pylist())), field.type)
                    held.append(batch.set_column(place, field, values))
                    size += held[-1].nbytes
                    if size >= GROUP_BYTES:
                        writer.write_table(pa.Table.from_batches(held, schema))
                        held, size = [], 0
                if held:
                    writer.write_table(pa.Table.from_batches(held, schema))

    @property
    def _batch(self) -> int:
        return BYTES_BATCH if self.has_bytes else PATHS_BATCH

    def _holds_bytes(self, name: str) -> bool:
        kind = self.schema.field(name).type if self.schema is not None else pa.null()
        if pa.types.is_struct(kind):
            return bool(kind.get_field_index("bytes") >= 0)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _image_of(value: Any) -> tuple[bytes | None, str | None]:
    if isinstance(value, dict):
        return value.get("bytes"), _text(value.get("path"))
    return value, None


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)
