"""One manifest of images: a parquet, CSV or JSON-lines file, read as records and written again with new images."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from shade_fast.archive.names import from_text
from shade_fast.archive.parquet import COLUMNS, REFUSED, Parquet
from shade_fast.archive.row import Row
from shade_fast.archive.storage import ArchiveStoppedError, Storage
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.limits import Limits

#: Names of columns, in the order that they are looked for.
BYTES_COLUMNS = ("image", "bytes", "image_bytes", "jpg", "png", "webp")
PATH_COLUMNS = ("path", "file_name", "filename", "file", "image_path", "image", "url")
#: Rows that are read together, of images' bytes and of paths.
BYTES_BATCH, PATHS_BATCH = 16, 1000
#: Bytes of a row group that is written before its end.
GROUP_BYTES = 64 << 20
#: Lists within lists of a line of JSON.
JSON_DEPTH = 100


class Table:
    """One table file. Raises ShadeFastError where it cannot be read, or has no column of images."""

    def __init__(self, url: str, limits: Limits) -> None:
        self.url, self.name, self.limits = url, url.rstrip("/").rsplit("/", 1)[-1], limits
        self.storage = Storage(url)
        self.kind = self.name.rsplit(".", 1)[-1].lower()
        self.schema: pa.Schema | None = None
        self.parquet: Parquet | None = None
        self.columns: list[str] = []
        try:
            if self.kind == "parquet":
                self.parquet = Parquet(self.storage, limits)
                self.schema = self.parquet.schema
                self.columns = self.schema.names
            else:
                self.columns = [name for name in next(self._read(), {}) if name is not None]
        except FileNotFoundError:
            raise ShadeFastError(f"{url}: no such file or folder") from None
        except ShadeFastError:
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ShadeFastError(
                f"{url}: not a table that can be read ({error}); give parquet, CSV or JSON lines"
            ) from error
        if len(self.columns) > COLUMNS:
            raise ShadeFastError(f"{url}: {len(self.columns)} columns; at most {COLUMNS} are read")
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
        if self.columns.count(self.column) > 1:
            raise ShadeFastError(f"{url}: two columns {self.column}; rename one")

    def records(self) -> Iterator[dict[str, Any]]:
        """The rows' values that are asked for here; REFUSED says of one that is too long why it is None.

        Raises ArchiveStoppedError for what cannot be read, ShadeFastError for a table that is beyond the limits.
        """
        records = self._read()
        if self.parquet is not None:
            images = self.column if self.has_bytes else ""
            columns = self._image_columns(("bytes", "path"))
            columns += [name for name in ("target", "concept", "key") if name in self.columns and name != self.column]
            records = self.parquet.records(columns, images, self._batch)
        places = itertools.count()
        for record in self._counted(records):
            yield self._bounded(next(places), record)
            del record

    def _counted(self, records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        try:
            places = itertools.count()
            for record in records:
                if (place := next(places)) == self.limits.files:
                    raise ShadeFastError(f"{self.url}: more than {place} rows; more are read with --max files=NUMBER")
                yield record
                del record
        except ShadeFastError:
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or error
            raise ArchiveStoppedError(f"{self.url}: cannot be read: {reason}; fix it and run this again") from error

    def _bounded(self, place: int, record: dict[str, Any]) -> dict[str, Any]:
        """A record whose texts are no longer than they may be."""
        most = self.limits.header_bytes
        image = record.get(self.column)
        texts = {name: record.get(name) for name in ("target", "concept", "key")}
        texts[self.column] = image.get("path") if isinstance(image, dict) and self.has_bytes else image
        if self.has_bytes and not isinstance(image, dict):
            del texts[self.column]
        for name, text in texts.items():
            size = len(text if isinstance(text, str | bytes) else str(text))
            if size > most:
                reason = f"row {place}: its {name} has {size} bytes; at most {most} are read: "
                record = record | {name: None, REFUSED: f"{reason}--max header-bytes={size}"}
        return record

    def _image_columns(self, fields: Sequence[str]) -> list[str]:
        """The images' column, or those of its fields that are there."""
        kind = self.schema.field(self.column).type if self.schema is not None else pa.null()
        if not self.has_bytes or not pa.types.is_struct(kind):
            return [self.column] if "bytes" in fields else []
        return [f"{self.column}.{name}" for name in fields if kind.get_field_index(name) >= 0]

    def _read(self) -> Iterator[dict[str, Any]]:
        number = size = 0
        most = self.limits.image_bytes

        def lines() -> Iterator[str]:
            nonlocal number, size
            text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
            while line := text.readline(most + 1):
                number += 1
                size += len(line)
                if size > most:
                    raise ValueError(f"more than {most} characters; more are read with --max image-bytes=NUMBER")
                yield line

        with self.storage.open() as file:
            try:
                if self.kind in ("csv", "tsv"):
                    reader = csv.DictReader(lines(), delimiter="\t" if self.kind == "tsv" else ",")
                    if len(reader.fieldnames or ()) > COLUMNS:
                        raise ValueError(f"{len(reader.fieldnames or ())} columns; at most {COLUMNS} are read")
                    for row in reader:
                        size = 0
                        yield row
                    return
                for line in filter(str.strip, lines()):
                    size = 0
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise ValueError("no JSON object")
                    if _nests(record, JSON_DEPTH):
                        raise RecursionError
                    yield record
            except RecursionError:
                raise ValueError(f"line {number}: nested more than {JSON_DEPTH} deep") from None
            except (ValueError, csv.Error) as error:
                raise ValueError(f"line {number}: {getattr(error, 'msg', error)}") from error

    def count(self) -> int:
        return self.parquet.rows if self.parquet is not None else sum(1 for _ in self._counted(self._read()))

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
            for record, name in zip(self._counted(self._read()), new, strict=True):
                fields: dict[Any, Any] = record | {self.column: name}
                # A row that is longer than the header has the rest under None.
                writer.writerow([*(fields[column] for column in self.columns), *fields.get(None, ())])
        else:
            for record, name in zip(self._counted(self._read()), new, strict=True):
                text.write(json.dumps(record | {self.column: name}, ensure_ascii=False) + "\n")
        text.detach()

    def _write_parquet(self, file: IO[bytes], schema: pa.Schema, new: Callable[[list[Any]], Iterator[Any]]) -> None:
        """The table with `new` values for the old ones of the images' column, in the row groups that it has."""
        place = schema.get_field_index(self.column)
        field = schema.field(place).with_nullable(True)  # an image that fails leaves a null
        schema = schema.set(place, field)
        if self.parquet is None:
            raise ShadeFastError(f"{self.url}: no parquet table")
        others = [name for name in dict.fromkeys(self.columns) if name != self.column]
        kept = [part.name for part in field.type if part.name != "bytes"] if pa.types.is_struct(field.type) else []
        columns = [*others, *self._image_columns(kept)]
        held: list[pa.RecordBatch] = []
        given = size = last = 0
        most = self.limits.stream_bytes
        with pq.ParquetWriter(file, schema) as writer:
            for group, batch in self.parquet.batches(columns, self._batch):
                if held and (group != last or size >= GROUP_BYTES):
                    writer.write_table(pa.Table.from_batches(held, schema))
                    held, size = [], 0
                last = group
                for part in self._renewed(batch, new, schema):
                    held.append(part)
                    size, given = size + part.nbytes, given + part.nbytes
                    if given > most:
                        raise ShadeFastError(
                            f"{self.url}: its rows have more than {most} bytes; "
                            "more are written with --max stream-bytes=BYTES"
                        )
                    del part
                del batch
            if held:
                writer.write_table(pa.Table.from_batches(held, schema))

    def _renewed(
        self, batch: pa.RecordBatch, new: Callable[[list[Any]], Iterator[Any]], schema: pa.Schema
    ) -> Iterator[pa.RecordBatch]:
        """A batch with its new images, in parts where those are large."""
        place = schema.get_field_index(self.column)
        names = batch.schema.names
        struct = self.has_bytes and pa.types.is_struct(schema.field(place).type)
        old: list[Any] = [{} if struct else None] * batch.num_rows
        if self.column in names:
            old = batch.column(names.index(self.column)).to_pylist()
        values: list[Any] = []
        start = size = 0

        def part() -> pa.RecordBatch:
            rest = batch.slice(start, len(values))
            arrays = [array for name, array in zip(names, rest.columns, strict=True) if name != self.column]
            arrays.insert(place, pa.array(values, schema.field(place).type))
            return pa.RecordBatch.from_arrays(arrays, schema=schema)

        for value in new(old):
            values.append(value)
            size += len(image_of(value)[0] or "")
            if size >= self.limits.image_bytes:
                yield part()
                start, size, values = start + len(values), 0, []
        if values:
            yield part()

    @property
    def _batch(self) -> int:
        return BYTES_BATCH if self.has_bytes else PATHS_BATCH

    def _holds_bytes(self, name: str) -> bool:
        kind = self.schema.field(name).type if self.schema is not None else pa.null()
        if pa.types.is_struct(kind):
            return bool(kind.get_field_index("bytes") >= 0)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def image_of(value: Any) -> tuple[bytes | None, str | None]:
    """An image's bytes and its path, of a column of bytes or of {bytes, path}."""
    if isinstance(value, dict):
        return value.get("bytes"), text_of(value.get("path"))
    return value, None


def _nests(value: Any, most: int) -> bool:
    """Whether lists and objects are more than so many within one another."""
    level = [value]
    for _ in range(most):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def text_of(value: Any) -> str | None:
    """A value as text; None where it is missing or empty."""
    return None if value is None or value == "" else str(value)
