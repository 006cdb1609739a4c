"""Pools of images with captions: folders, tables, WebDataset shards, and captions alone; read as streams."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import logging
import lzma
import stat
import tarfile
import zlib
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from shade_fast.archive import BYTES_COLUMNS, PATH_COLUMNS, expand
from shade_fast.images import INPUT_SUFFIXES
from shade_fast.terms.errors import ShadeFastError, reason
from shade_fast.terms.limits import Limits

CAPTION_COLUMNS = ("caption", "text", "prompt", "TEXT")
CONCEPT_COLUMNS = ("concept", "label", "class")
IMAGE_COLUMNS = (*BYTES_COLUMNS, "jpeg")
KEY_COLUMNS = ("key", "name", "id", "__key__")
JSON_LINES = (".jsonl", ".ndjson")
LIMITS = Limits()
#: How many samples of a tar can wait for their other members at a time.
WAITING = 100_000
_LONGEST_NAME = 4096
_EXTENDED = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_DAMAGE = (
    *(OSError, EOFError, ValueError, ArithmeticError, RecursionError),
    *(tarfile.TarError, zlib.error, lzma.LZMAError, pa.ArrowException, csv.Error),
)
log = logging.getLogger(__name__)
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Pair:
    """An image with its caption. key: its name. path: its file, where it has its own.

    read: gives its bytes; raises ShadeFastError where they cannot be read. concept: what it shows according to a table
    or its folder, if known.
    """

    key: str
    caption: str
    read: Callable[[], bytes]
    path: Path | None = None
    concept: str | None = None


def read_pool(source: str | Path, *, split: str | None = None) -> Iterator[Pair]:
    """The pairs of a pool, in its own order.

    source: a folder of images, each with a caption in a .txt beside it or else the name of its folder (`dog/3.jpg` is
        a photo of a dog); a parquet, CSV, TSV or JSON-lines table with an image's bytes or path, and a caption or a
        concept; or a WebDataset tar of images with .txt or .json members, or several: `{000..127}.tar`.
    split: take only a table's rows with this value in column `split`.
    Images and rows without a caption or a concept are left out, and so are captions' files above 1 MiB and images of a
    tar above 512 MiB, as in `Limits`; their number is logged.
    Raises ShadeFastError for a place that does not exist, that cannot be read or that holds no pairs.
    """
    for path in map(Path, expand(str(source))):
        yield from _read(path, split)


def read_captions(source: str | Path, *, split: str | None = None) -> Iterator[str]:
    """Captions alone, from a pool or from a .txt file with one a line; images are not read."""
    path = Path(source)
    if not path.is_file() or _kind(path) == ".tar":
        yield from (pair.caption for pair in read_pool(path, split=split))
    elif _kind(path) == ".txt":
        yield from (line.strip() for line in _lines(path) if line.strip())
    else:
        rows = _captioned(path, split, without_images=True)
        yield from _some((caption for _, _, caption in rows), path, "caption", split)


def named(concept: str) -> str:
    """`a dog`, `an airplane`."""
    return f"{'an' if concept[:1].lower() in 'aeiou' else 'a'} {concept}"


def caption_of(concept: str) -> str:
    """`a photo of a dog`: the caption of an image that has only a concept."""
    return f"a photo of {named(concept)}"


def require_empty(folder: Path) -> None:
    """Raise ShadeFastError for a folder that has files: they would be mistaken for new ones."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ShadeFastError(f"{folder}: is no empty folder; give another, or remove it first")


def _read(path: Path, split: str | None) -> Iterator[Pair]:
    if not path.exists():
        raise ShadeFastError(f"{path}: no such file or folder; give a pool of images with captions")
    pairs = _folder(path) if path.is_dir() else _tar(path) if _kind(path) == ".tar" else _table(path, split)
    yield from _some(pairs, path, "image with a caption", split)


def _some(items: Iterable[_Read], path: Path, what: str, split: str | None) -> Iterator[_Read]:
    """The items. Raises ShadeFastError where there are none, and where their source is damaged."""
    seen = False
    try:
        for item in items:
            seen = True
            yield item
    except ShadeFastError:
        raise
    except _DAMAGE as error:
        raise ShadeFastError(f"{path}: cannot be read as a pool ({reason(error)}); repair or replace it") from error
    if not seen:
        raise ShadeFastError(f"{path}: no {what} in it" + (f" of split {split!r}" if split else ""))


def _kind(path: Path) -> str:
    return path.suffix.lower()


def _bytes_of(path: Path) -> bytes:
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise ShadeFastError(f"{path}: is no file; fix the pool's path to it")
        if facts.st_size > LIMITS.image_bytes:
            raise ShadeFastError(f"{path}: {facts.st_size} bytes; at most {LIMITS.image_bytes} are read")
        return path.read_bytes()
    except ShadeFastError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path that cannot be one
        raise ShadeFastError(f"{path}: cannot be read ({reason(error)}); fix the pool's path to it") from error


def _folder(root: Path) -> Iterator[Pair]:
    uncaptioned = large = 0
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in INPUT_SUFFIXES or path.name.startswith("._"):
            continue
        text, concept = path.with_suffix(".txt"), None if path.parent == root else path.parent.name
        if text.is_file():
            if text.stat().st_size > LIMITS.header_bytes:
                large += 1
                continue
            caption = text.read_text(encoding="utf-8", errors="replace").strip()
        elif concept is not None:
            caption = caption_of(concept)
        else:
            uncaptioned += 1
            continue
        yield Pair(path.relative_to(root).as_posix(), caption, functools.partial(_bytes_of, path), path, concept)
    _left_out(root, uncaptioned, "images")
    _left_out(root, large, "images", "with a caption of more than 1 MiB")


def _table(path: Path, split: str | None) -> Iterator[Pair]:
    for place, row, caption in _captioned(path, split):
        key = str(_first(row, KEY_COLUMNS) or place)
        pair = Pair(key, caption, bytes, concept=_text(_first(row, CONCEPT_COLUMNS)))
        image = _first(row, IMAGE_COLUMNS)
        if isinstance(image, dict):
            image = image.get("bytes")
        if isinstance(image, bytes):
            yield replace(pair, read=lambda image=image: image)  # type: ignore[misc]
            continue
        file = _first(row, PATH_COLUMNS) or image
        if not file:
            raise ShadeFastError(
                f"{path}: row {place} has no image; name its column one of {', '.join(IMAGE_COLUMNS + PATH_COLUMNS)}"
            )
        place_of = path.parent / str(file)
        yield replace(pair, key=str(file), read=functools.partial(_bytes_of, place_of), path=place_of)


def _captioned(
    path: Path, split: str | None, *, without_images: bool = False
) -> Iterator[tuple[int, dict[str, Any], str]]:
    """The number, the values and the caption of each row of a table that has one."""
    missing = ShadeFastError(
        f"{path}: no captions; name a column one of {', '.join(CAPTION_COLUMNS + CONCEPT_COLUMNS)}"
    )
    empty = captioned = 0
    for place, row in enumerate(_rows(path, split, without_images=without_images)):
        # Each row of JSON lines has its own columns; in other tables all rows have the same.
        if _kind(path) not in JSON_LINES and row.keys().isdisjoint(CAPTION_COLUMNS + CONCEPT_COLUMNS):
            raise missing
        caption, concept = _text(_first(row, CAPTION_COLUMNS)), _text(_first(row, CONCEPT_COLUMNS))
        if caption is None and concept is None:
            empty += 1
            continue
        captioned += 1
        yield place, row, caption or caption_of(concept or "")
    if empty and not captioned:
        raise missing
    _left_out(path, empty, "rows")


def _rows(path: Path, split: str | None, *, without_images: bool = False) -> Iterator[dict[str, Any]]:
    kind = _kind(path)
    rows: Iterator[dict[str, Any]]
    if kind == ".parquet":
        rows = _parquet_rows(path, without_images)
    elif kind in (".csv", ".tsv"):
        rows = _csv_rows(path, "\t" if kind == ".tsv" else ",")
    elif kind in JSON_LINES:
        rows = _json_rows(path)
    else:
        raise ShadeFastError(f"{path}: {kind or 'a file without an ending'} is no pool; give a folder, .parquet, .csv, "
                             ".tsv, .jsonl or .tar")  # fmt: skip
    for row in rows:
        if split is None or row.get("split") == split:
            yield row


def _parquet_rows(path: Path, without_images: bool) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        names = [name for name in file.schema_arrow.names if not (without_images and name in IMAGE_COLUMNS)]
        for batch in file.iter_batches(batch_size=100, columns=names):
            yield from batch.to_pylist()


def _csv_rows(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    yield from csv.DictReader(_lines(path, encoding="utf-8-sig", newline=""), delimiter=delimiter)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in _lines(path):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ShadeFastError(f"{path}: a line that is no JSON object: {line.strip()[:60]}")
            yield row


def _lines(path: Path, encoding: str = "utf-8", newline: str | None = None) -> Iterator[str]:
    with path.open(encoding=encoding, errors="replace", newline=newline) as file:
        while line := file.readline(LIMITS.image_bytes + 1):
            if len(line) > LIMITS.image_bytes:
                raise ShadeFastError(f"{path}: a line of more than {LIMITS.image_bytes} characters; break it up")
            yield line


class _Member(tarfile.TarInfo):
    """Refuses an extended header, which tarfile reads whole, that is larger than any name."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _EXTENDED and member.size > LIMITS.header_bytes:
            raise tarfile.ReadError(f"an extended header of {member.size} bytes")
        return member


def _tar(path: Path) -> Iterator[Pair]:
    # In a WebDataset a key's members stand together; where they do not, the first ones wait, unread, for the rest.
    # Going back in a compressed tar means reading it from its start, so there nothing waits, and members are read as
    # they come.
    waiting: dict[str, dict[str, tarfile.TarInfo]] = {}
    large = uncaptioned = 0
    with tarfile.open(path, tarinfo=_Member) as tar:
        plain = isinstance(tar.fileobj, io.BufferedReader)
        for key, members in itertools.groupby(_tar_members(tar, plain), lambda member: _tar_name(member)[0]):
            parts = waiting.pop(key, {})
            read: dict[str, bytes] = {}
            for member in members:
                ending = _tar_name(member)[1]
                image = f".{ending}" in INPUT_SUFFIXES
                if image and (_tar_image(parts) or ending) != ending:
                    continue
                if member.size > (LIMITS.image_bytes if image else LIMITS.header_bytes):
                    large += 1
                    continue
                parts[ending] = member
                if not plain:
                    read[ending] = _tar_bytes(tar, member)
            pair = _tar_pair(key, parts, lambda kind: read[kind] if kind in read else _tar_bytes(tar, parts[kind]))  # noqa: B023
            if pair is not None:
                yield pair
                continue
            if plain and len(waiting) < WAITING:
                waiting[key] = parts
            else:
                uncaptioned += _tar_image(parts) is not None
    uncaptioned += sum(_tar_image(parts) is not None for parts in waiting.values())
    _left_out(path, uncaptioned, "images", "without a caption" if plain else "without a caption beside them")
    _left_out(path, large, "members", "that are too large")


def _tar_members(tar: tarfile.TarFile, plain: bool) -> Iterator[tarfile.TarInfo]:
    """The members that a pair can be made of."""
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]
        if not plain and member.offset_data + member.size > LIMITS.stream_bytes:
            raise tarfile.ReadError(f"more than {LIMITS.stream_bytes} bytes once decompressed")
        used = f".{_tar_name(member)[1]}" in (".txt", ".json", *INPUT_SUFFIXES)
        if used and member.isfile() and len(member.name) <= _LONGEST_NAME:
            member.pax_headers = {}
            yield member


def _tar_name(member: tarfile.TarInfo) -> tuple[str, str]:
    """Key and ending of a member."""
    folder, _, name = member.name.rpartition("/")
    stem, _, ending = name.partition(".")
    return f"{folder}/{stem}" if folder else stem, ending.lower()


def _tar_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def _tar_pair(key: str, parts: Container[str], read: Callable[[str], bytes]) -> Pair | None:
    """The pair of a key, where it has an image and what says what it shows. read: a part's bytes, by its ending."""
    image = _tar_image(parts)
    if image is None:
        return None
    caption = read("txt").decode(errors="replace").strip() if "txt" in parts else None
    facts: Any = {}
    try:
        facts = json.loads(read("json").decode(errors="replace")) if "json" in parts else {}
    except (RecursionError, ValueError):
        if not caption:
            raise
    facts = facts if isinstance(facts, dict) else {}
    concept = _text(_first(facts, CONCEPT_COLUMNS))
    caption = caption or _text(_first(facts, CAPTION_COLUMNS)) or (concept and caption_of(concept))
    if not caption:
        return None
    data = read(image)
    return Pair(key, caption, lambda: data, concept=concept)


def _tar_image(parts: Container[str]) -> str | None:
    """The ending of a key's image."""
    return next((suffix[1:] for suffix in INPUT_SUFFIXES if suffix[1:] in parts), None)


def _left_out(path: Path, count: int, what: str, why: str = "without a caption") -> None:
    if count:
        log.warning("%s: %d %s %s are left out", path, count, what, why)


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)
