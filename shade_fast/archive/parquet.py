"""Parquet files of other people, looked at before they are decoded, and decoded a few rows at a time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shade_fast.archive.storage import Storage
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.limits import Limits

#: Key of why a record is refused, among its columns.
REFUSED = "\0refused"
#: Bytes of a file's own description, levels of columns within columns, columns, and bytes of a page's header.
FOOTER, DEPTH, COLUMNS, HEADER = 64 << 20, 64, 10_000, 16 << 20
#: Parts of a file's description: rows' groups times columns, several times.
_PARTS = 1_000_000
#: Bytes of a page beyond the image that it may hold: other values' pages are as large, whatever the limit.
_PAGE = 2 << 20
#: Bytes of a local file that are read at once; elsewhere each column of a row group is read whole.
_BUFFER = 1 << 20
#: Bytes after a column's end that some old writers' columns go on for.
_PADDING = 100
#: Kinds of pages, and the encoding of texts (DELTA_BYTE_ARRAY) in which each can repeat all of the one before.
_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3
_REPEATING = 7
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12, "BYTE_ARRAY": 8}
#: What of a file's description is kept (a struct's fields by their numbers), and of which kind its lists' items are.
_I32, _I64, _BINARY, _STRUCT = 5, 6, 8, 12
_ELEMENT: dict[int, Any] = {}
_CHUNK_FACTS: dict[int, Any] = {2: _I32, 3: _BINARY, 8: {}, 13: {}, 16: {2: _I64, 3: _I64}, 17: {2: _I32}}
_DESCRIPTION: dict[int, Any] = {2: _ELEMENT, 4: {1: {3: _CHUNK_FACTS, 8: {2: {1: _BINARY}}}, 4: {}}, 5: {}, 7: {}}


@dataclass
class _Chunk:
    """What the pages of one column of a row group may take. dictionary, largest: bytes of its dictionary and of its
    largest other page, unpacked. fewest: values of the smallest page but the last. total: bytes of all pages."""

    path: str
    #: bytes of one value of a fixed width
    width: int
    repeated: bool
    text: bool
    dictionary: int = 0
    largest: int = 0
    fewest: int | None = None
    values: int = 0
    total: int = 0

    @property
    def held(self) -> int:
        """Bytes that are in memory as soon as one value is read."""
        return self.dictionary + self.largest + self.width + (self.total if self.repeated else 0)

    def cost(self, rows: int) -> int:
        """The most bytes that so many rows take; 0 for a column of lists, any of which may be all that there is."""
        if self.repeated:
            return 0
        pages = 1 if self.fewest is None else rows // max(self.fewest, 1) + 2
        expanded = self.dictionary * rows if self.text else 0
        return self.largest * pages + expanded + self.width * rows


class Parquet:
    """A parquet file. Raises ShadeFastError for what is beyond the limits, ValueError, OSError and pyarrow's errors for
    what is no parquet file or a damaged one."""

    def __init__(self, storage: Storage, limits: Limits) -> None:
        self.storage, self.limits = storage, limits
        self._chunks: list[list[_Chunk]] | None = None
        with storage.open() as file:
            source = self._opened(file)
            self.schema: pa.Schema = source.schema_arrow
            self.rows = int(source.metadata.num_rows)

    def records(self, columns: Sequence[str], images: str, most: int) -> Iterator[dict[str, Any]]:
        """The rows' values in some columns, up to `most` rows read together. A value that is too long is None, and
        the record's REFUSED says why. images: the column that may hold images' bytes."""
        given = place = 0
        for _, batch in self.batches(columns, most):
            arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
            sizes = {
                name: _sizes(array.field("bytes") if name == images and pa.types.is_struct(array.type) else array)
                for name, array in arrays.items()
            }
            for row in range(batch.num_rows):
                record: dict[str, Any] = {}
                for name in arrays:
                    size = sizes[name][row].as_py()
                    refusal = self._refusal(place, name, name == images, size, given)
                    record[name] = None if refusal is not None else arrays[name][row].as_py()
                    if refusal is None:
                        given += size
                    else:
                        record[REFUSED] = refusal
                yield record
                place += 1
            # Each is let go of before the next is read.
            del batch, arrays, sizes, record

    def batches(self, columns: Sequence[str], most: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The number of a row group and some of its rows, up to `most` of them and fewer where they may be long."""
        with self.storage.open() as file:
            source = self._opened(file)
            if self._chunks is None:
                self._chunks = self._looked_at(source, file)
            for group, chunks in enumerate(self._chunks):
                chosen = [chunk for chunk in chunks if _among(chunk.path, columns)]
                rows = most
                while rows > 1 and sum(chunk.cost(rows) for chunk in chosen) > self.limits.image_bytes // 8:
                    rows //= 2
                # A column that is read as a dictionary has all of it copied each time.
                copied = sum(chunk.dictionary for chunk in chosen if self._is_dictionary(chunk.path))
                if copied * (source.metadata.row_group(group).num_rows // rows) > self.limits.stream_bytes:
                    raise self._refused(chosen[0].path, f"dictionaries of {copied} bytes", copied)
                batches = source.iter_batches(rows, [group], list(columns))
                while (batch := next(batches, None)) is not None:
                    yield group, batch
                    del batch

    def _is_dictionary(self, path: str) -> bool:
        return "dictionary<" in str(self.schema.field(path.split(".")[0]).type)

    def _refusal(self, place: int, column: str, images: bool, size: int, given: int) -> str | None:
        option = "image_bytes" if images else "header_bytes"
        limit = getattr(self.limits, option)
        if size > limit:
            what = "image" if images else column
            name = option.replace("_", "-")
            return f"row {place}: its {what} has {size} bytes; at most {limit} are read: --max {name}={size}"
        if given + size > self.limits.stream_bytes:
            most = self.limits.stream_bytes
            return f"row {place}: after {most} bytes of the table; more are read with --max stream-bytes=BYTES"
        return None

    def _opened(self, file: Any) -> pq.ParquetFile:
        if self._chunks is None:
            self._check_footer(file)
        source = pq.ParquetFile(file, buffer_size=_BUFFER if self.storage.local else 0)
        rows = source.metadata.num_rows
        if rows > self.limits.files:
            raise self._over(f"{rows} rows", self.limits.files, f"files={rows}")
        return source

    def _over(self, what: str, most: int, option: str) -> ShadeFastError:
        return ShadeFastError(f"{self.storage.url}: {what}; at most {most} are read: --max {option}")

    def _check_footer(self, file: Any) -> None:
        """Walk the file's description, whose parsing takes as much memory and stack as it says."""
        size = file.seek(0, io.SEEK_END)
        file.seek(max(size - 8, 0))
        end = file.read(8)
        length = int.from_bytes(end[:4], "little")
        if end[4:] != b"PAR1" or length + 12 > size:
            raise ValueError("no parquet file, or one that is cut off")
        if length > FOOTER:
            raise ShadeFastError(
                f"{self.storage.url}: its footer has {length} bytes; at most {FOOTER} are read: "
                "write it with larger row groups"
            )
        file.seek(size - 8 - length)
        try:
            description = _Thrift(file.read(length)).struct(_DESCRIPTION)
        except EOFError as error:
            raise ValueError(str(error)) from error
        schema = description.get(2, [])
        inside: list[int] = []
        for element in schema:
            while inside and inside[-1] <= 0:
                inside.pop()
            if inside:
                inside[-1] -= 1
            inside.append(element.get(5, 0))
            if len(inside) > DEPTH:
                raise ShadeFastError(f"{self.storage.url}: columns within columns, more than {DEPTH} deep")
        if len(schema) > COLUMNS:
            raise ShadeFastError(f"{self.storage.url}: {len(schema)} columns; at most {COLUMNS} are read")

    def _looked_at(self, source: pq.ParquetFile, file: Any) -> list[list[_Chunk]]:
        size = file.seek(0, io.SEEK_END)
        most = self.limits.image_bytes + _PAGE
        groups = []
        for number in range(source.num_row_groups):
            group = source.metadata.row_group(number)
            chunks = []
            for index in range(group.num_columns):
                chunk = self._chunk(file, size, group.column(index), source.schema.column(index))
                if chunk.repeated and chunk.total > most:
                    if chunk.text and chunk.dictionary and chunk.values * chunk.width <= most:
                        chunk.total = self._measured(file, number, chunk.path)
                    if chunk.total > most:
                        raise self._refused(chunk.path, f"lists of {chunk.total} bytes in a row group", chunk.total)
                chunks.append(chunk)
            held = sum(chunk.held for chunk in chunks)
            if held > 2 * most:
                path = max(chunks, key=lambda chunk: chunk.held).path
                raise self._refused(path, f"one of columns that take {held} bytes together", held // 2)
            groups.append(chunks)
        return groups

    def _refused(self, column: str, what: str, size: int) -> ShadeFastError:
        return ShadeFastError(
            f"{self.storage.url}: column {column}: {what}; at most {self.limits.image_bytes} are read: "
            f"--max image-bytes={size}, or write it with smaller row groups"
        )

    def _chunk(self, file: Any, size: int, facts: Any, column: Any) -> _Chunk:
        """Walk the pages of a column as pyarrow does."""
        width = _WIDTHS.get(column.physical_type, column.length)
        chunk = _Chunk(column.path, width, column.max_repetition_level > 0, column.physical_type == "BYTE_ARRAY")
        place = facts.data_page_offset
        if facts.has_dictionary_page and 0 < facts.dictionary_page_offset < place:
            place = facts.dictionary_page_offset
        end = min(place + facts.total_compressed_size + _PADDING, size)
        most = self.limits.image_bytes + _PAGE
        last: int | None = None
        while chunk.values < facts.num_values and 0 <= place < end:
            kind, unpacked, packed, values, encoding, length = _page_header(file, place)
            if max(unpacked, packed, width) > most:
                bytes_of_page = max(unpacked, packed, width)
                raise self._refused(chunk.path, f"a page or value of {bytes_of_page} bytes", bytes_of_page)
            place += length + packed
            if kind == _DICTIONARY:
                chunk.dictionary = max(chunk.dictionary, unpacked)
                continue
            if chunk.text and encoding == _REPEATING:
                raise ShadeFastError(
                    f"{self.storage.url}: column {chunk.path}: the encoding DELTA_BYTE_ARRAY, whose size cannot be "
                    "known; write it with another"
                )
            chunk.largest = max(chunk.largest, unpacked)
            chunk.values += values
            chunk.total += max(unpacked, values * max(width, chunk.dictionary if chunk.text else 0))
            if last is not None:
                chunk.fewest = last if chunk.fewest is None else min(chunk.fewest, last)
            last = values
        return chunk

    def _measured(self, file: Any, group: int, path: str) -> int:
        """Bytes of a column's lists of texts, whose pages say only what each may be at most."""
        batches = pq.ParquetFile(file, read_dictionary=[path]).iter_batches(1000, [group], [path])
        return sum(_bytes_of(column) for batch in batches for column in batch.columns)


class _Thrift:
    """Reads the compact form of Thrift, as strictly as all writers write it, so that no two readers take it apart
    differently. Raises ValueError for anything else."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place, self.parts = data, 0, 0

    def struct(self, wanted: dict[int, Any], depth: int = 0) -> dict[int, Any]:
        """Whole numbers, structs and `_ELEMENT` lists by their fields' numbers."""
        self.parts += 1
        if depth > 32 or self.parts > _PARTS:
            raise ValueError("a description that nests too deep or has too many parts; write it with larger row groups")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            following = number + (head >> 4) if head >> 4 else self._whole()
            if not number < following < 1 << 15:
                raise ValueError("a description whose fields are out of order")
            number = following
            value = self._value(head & 15, wanted.get(number), depth)
            if value is not None:
                fields[number] = value
        return fields

    def _value(self, kind: int, wanted: Any, depth: int) -> Any:
        if kind in (4, _I32, _I64):
            return self._whole()
        if kind == 3 or kind == 7:
            self._skip(1 if kind == 3 else 8)
        elif kind == _BINARY:
            self._skip(self._varint())
        elif kind == _STRUCT:
            return self.struct(wanted if isinstance(wanted, dict) else {}, depth + 1)
        elif kind in (9, 10):
            head = self._byte()
            count, inner = self._varint() if head >> 4 == 15 else head >> 4, head & 15
            # pyarrow takes a list's items for what they should be, whatever they say that they are.
            if wanted is not None and inner != (_STRUCT if isinstance(wanted, dict) else wanted):
                raise ValueError("a description with a list of another kind")
            if inner in (1, 2):
                self._skip(count)
                return None
            values = []
            for _ in range(count):
                value = self._value(inner, wanted, depth + 1)
                if wanted is _ELEMENT:
                    values.append(value)
            return values
        elif kind not in (1, 2):
            raise ValueError("a description with a field of an unknown kind")
        return None

    def _byte(self) -> int:
        if self.place >= len(self.data):
            raise EOFError("a description that is cut off")
        self.place += 1
        return self.data[self.place - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a description with a number that is too long")

    def _whole(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, count: int) -> None:
        self.place += count
        if self.place > len(self.data):
            raise EOFError("a description that is cut off")


def _page_header(file: Any, place: int) -> tuple[int, int, int, int, int, int]:
    """A page's kind, its bytes unpacked and packed, its values, their encoding, and the bytes of its header."""
    length = 512
    while True:
        file.seek(place)
        reader = _Thrift(file.read(length))
        try:
            header = reader.struct({})
            break
        except EOFError:
            if len(reader.data) < length or length >= HEADER:
                raise ValueError("a page whose header is cut off") from None
            length *= 8
    kind = header.get(1)
    inner = header.get(8 if kind == _DATA_2 else 7 if kind == _DICTIONARY else 5, {})
    inner = inner if isinstance(inner, dict) else {}
    facts = (kind, header.get(2), header.get(3), inner.get(1, 0), inner.get(4 if kind == _DATA_2 else 2, 0))
    if not all(isinstance(fact, int) and 0 <= fact < 1 << 31 for fact in facts):
        raise ValueError("a page whose header is damaged")
    return *facts, reader.place  # type: ignore[return-value]


def _among(path: str, columns: Sequence[str]) -> bool:
    return any(path == column or path.startswith(f"{column}.") for column in columns)


def _sizes(array: pa.Array) -> pa.Array:
    """Bytes of each value of an array of texts, or of what has texts in it; 0 for a number."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _sizes(array.storage)
    if pa.types.is_dictionary(kind):
        sizes = _sizes(array.dictionary).take(array.indices)
    elif pa.types.is_struct(kind):
        sizes = pa.array([0] * len(array), pa.int64())
        for index in range(kind.num_fields):
            sizes = pc.add(sizes, _sizes(array.field(index)))
    elif pa.types.is_nested(kind):
        sizes = pa.array([_bytes_of(array.slice(index, 1)) for index in range(len(array))], pa.int64())
    elif pa.types.is_primitive(kind) or pa.types.is_null(kind):
        sizes = pa.array([0] * len(array), pa.int64())
    else:
        views = pa.types.is_binary_view(kind) or pa.types.is_string_view(kind)
        sizes = pc.cast(pc.binary_length(array.cast(pa.large_binary()) if views else array), pa.int64())
    return pc.fill_null(sizes, 0)


def _bytes_of(array: pa.Array) -> int:
    """Bytes of an array's values, of which those in a dictionary count as often as they are there."""
    if pa.types.is_dictionary(array.type):
        return int(pc.sum(_sizes(array)).as_py() or 0) + len(array)
    if pa.types.is_struct(array.type):
        return sum(_bytes_of(inner) for inner in array.flatten())
    return _bytes_of(array.flatten()) if pa.types.is_nested(array.type) else int(array.nbytes)
