"""Pools of images with captions: folders, tables, WebDataset shards, and captions alone; read as streams."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import logging
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from shade_fast.archive.tables import BYTES_COLUMNS, PATH_COLUMNS
from shade_fast.archive.tars import expand
from shade_fast.errors import ShadeFastError, reason
from shade_fast.images import INPUT_SUFFIXES

CAPTION_COLUMNS = ("caption", "text", "prompt", "TEXT")
CONCEPT_COLUMNS = ("concept", "label", "class")
IMAGE_COLUMNS = (*BYTES_COLUMNS, "jpeg")
KEY_COLUMNS = ("key", "name", "id", "__key__")
JSON_LINES = (".jsonl", ".ndjson")
log = logging.getLogger(__name__)
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Pair:
    """An image with its caption. key: what it is known by. path: its file, where it is one by itself.

    read: its bytes; raises ShadeFastError where they cannot be had. concept: what a table or its folder says that it
    shows, if anything.
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
    split: take rows of a table alone whose column `split` says so.
    Images and rows without a caption or a concept are left out; their number is logged. Raises ShadeFastError for a
    place that does not exist, that cannot be read or that holds no pairs.
    """
    for path in map(Path, expand(str(source))):
        yield from _read(path, split)


def read_captions(source: str | Path, *, split: str | None = None) -> Iterator[str]:
    """Captions alone, from a pool or from a .txt file with one a line; images are not read."""
    path = Path(source)
    if not path.is_file() or _kind(path) == ".tar":
        yield from (pair.caption for pair in read_pool(path, split=split))
    elif _kind(path) == ".txt":
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from (line.strip() for line in file if line.strip())
    else:
        told = _told(path, split, without_images=True)
        yield from _some((caption for _, _, caption in told), path, "caption", split)


def named(concept: str) -> str:
    """`a dog`, `an airplane`."""
    return f"{'an' if concept[:1].lower() in 'aeiou' else 'a'} {concept}"


def caption_of(concept: str) -> str:
    """`a photo of a dog`: what an image is called that has a concept alone."""
    return f"a photo of {named(concept)}"


def require_empty(folder: Path) -> None:
    """Raise ShadeFastError for a folder that has files: they would be taken for those that are to be written to it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ShadeFastError(f"{folder}: is no empty folder; give another, or remove it first")


def _read(path: Path, split: str | None) -> Iterator[Pair]:
    if not path.exists():
        raise ShadeFastError(f"{path}: no such file or folder; give a pool of images with captions")
    pairs = _folder(path) if path.is_dir() else _tar(path) if _kind(path) == ".tar" else _table(path, split)
    yield from _some(pairs, path, "image with a caption", split)


def _some(items: Iterable[_Read], path: Path, what: str, split: str | None) -> Iterator[_Read]:
    """The items; with an error where there are none, and where what they are read from is damaged."""
    found = False
    try:
        for item in items:
            found = True
            yield item
    except (OSError, tarfile.TarError, pa.ArrowException, csv.Error, json.JSONDecodeError) as error:
        raise ShadeFastError(f"{path}: cannot be read as a pool ({reason(error)}); repair or replace it") from error
    if not found:
        raise ShadeFastError(f"{path}: no {what} in it" + (f" of split {split!r}" if split else ""))


def _kind(path: Path) -> str:
    return path.suffix.lower()


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path that cannot be one
        raise ShadeFastError(f"{path}: cannot be read ({reason(error)}); mend the pool's path to it") from error


def _folder(root: Path) -> Iterator[Pair]:
    untold = 0
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in INPUT_SUFFIXES or path.name.startswith("._"):
            continue
        told, concept = path.with_suffix(".txt"), None if path.parent == root else path.parent.name
        if told.is_file():
            caption = told.read_text(encoding="utf-8", errors="replace").strip()
        elif concept is not None:
            caption = caption_of(concept)
        else:
            untold += 1
            continue
        yield Pair(path.relative_to(root).as_posix(), caption, functools.partial(_bytes_of, path), path, concept)
    _left_out(root, untold, "images")


def _table(path: Path, split: str | None) -> Iterator[Pair]:
    for place, row, caption in _told(path, split):
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


def _told(path: Path, split: str | None, *, without_images: bool = False) -> Iterator[tuple[int, dict[str, Any], str]]:
    """The number, the values and the caption of each row of a table that has one."""
    missing = ShadeFastError(
        f"{path}: no captions; name a column one of {', '.join(CAPTION_COLUMNS + CONCEPT_COLUMNS)}"
    )
    empty = found = 0
    for place, row in enumerate(_rows(path, split, without_images=without_images)):
        # Rows of JSON lines have columns of their own, those of other tables all have the same.
        if _kind(path) not in JSON_LINES and row.keys().isdisjoint(CAPTION_COLUMNS + CONCEPT_COLUMNS):
            raise missing
        caption, concept = _text(_first(row, CAPTION_COLUMNS)), _text(_first(row, CONCEPT_COLUMNS))
        if caption is None and concept is None:
            empty += 1
            continue
        found += 1
        yield place, row, caption or caption_of(concept or "")
    if empty and not found:
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
        for batch in file.iter_batches(batch_size=1000, columns=names):
            yield from batch.to_pylist()


def _csv_rows(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        yield from csv.DictReader(file, delimiter=delimiter)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ShadeFastError(f"{path}: a line that is no JSON object: {line.strip()[:60]}")
                yield row


def _tar(path: Path) -> Iterator[Pair]:
    # Members of a key stand together in a WebDataset; where they do not, what is there waits for the rest.
    waiting: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        files = (member for member in tar if member.isfile())
        for key, members in itertools.groupby(files, lambda member: _tar_name(member)[0]):
            parts = waiting.pop(key, {})
            for member in members:
                file = tar.extractfile(member)
                parts[_tar_name(member)[1]] = b"" if file is None else file.read()
            pair = _tar_pair(key, parts)
            if pair is None:
                waiting[key] = parts
            else:
                yield pair
    _left_out(path, sum(_tar_image(parts) is not None for parts in waiting.values()), "images")


def _tar_name(member: tarfile.TarInfo) -> tuple[str, str]:
    """Key and ending of a member."""
    folder, _, name = member.name.rpartition("/")
    stem, _, ending = name.partition(".")
    return f"{folder}/{stem}" if folder else stem, ending.lower()


def _tar_pair(key: str, parts: dict[str, bytes]) -> Pair | None:
    image = _tar_image(parts)
    caption = parts["txt"].decode(errors="replace").strip() if "txt" in parts else None
    facts: Any = {}
    try:
        facts = json.loads(parts["json"].decode(errors="replace")) if "json" in parts else {}
    except json.JSONDecodeError:
        if not caption:
            raise
    facts = facts if isinstance(facts, dict) else {}
    concept = _text(_first(facts, CONCEPT_COLUMNS))
    caption = caption or _text(_first(facts, CAPTION_COLUMNS)) or (concept and caption_of(concept))
    return Pair(key, caption, lambda: image, concept=concept) if image is not None and caption else None


def _tar_image(parts: dict[str, bytes]) -> bytes | None:
    return next((data for ending, data in parts.items() if f".{ending}" in INPUT_SUFFIXES), None)


def _left_out(path: Path, count: int, what: str) -> None:
    if count:
        log.warning("%s: %d %s without a caption are left out", path, count, what)


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)
