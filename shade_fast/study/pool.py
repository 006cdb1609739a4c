"""Pools of images with captions: folders, tables, WebDataset shards, and captions alone; read as streams."""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shade_fast.archive.tables import BYTES_COLUMNS, PATH_COLUMNS
from shade_fast.errors import ShadeFastError, reason
from shade_fast.images import INPUT_SUFFIXES

CAPTION_COLUMNS = ("caption", "text", "prompt", "TEXT")
CONCEPT_COLUMNS = ("concept", "label", "class")
IMAGE_COLUMNS = (*BYTES_COLUMNS, "jpeg")
KEY_COLUMNS = ("key", "name", "id", "__key__")


@dataclass(frozen=True)
class Pair:
    """An image with its caption. key: what it is known by. path: its file, where it is one by itself.

    read: its bytes. concept: what a table or its folder says that it shows, if anything.
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
        concept; or a WebDataset tar of images with .txt or .json members.
    split: take rows of a table alone whose column `split` says so.
    Raises ShadeFastError for a place that does not exist or that holds no pairs.
    """
    path = Path(source)
    if not path.exists():
        raise ShadeFastError(f"{source}: no such file or folder; give a pool of images with captions")
    kind = path.suffix.lower()
    pairs = _folder(path) if path.is_dir() else _tar(path) if kind == ".tar" else _table(path, split)
    found = False
    try:
        for pair in pairs:
            found = True
            yield pair
    except (OSError, tarfile.TarError, pa.ArrowInvalid, csv.Error, json.JSONDecodeError) as error:
        raise ShadeFastError(f"{source}: cannot be read as a pool ({reason(error)}); repair or replace it") from error
    if not found:
        raise ShadeFastError(f"{source}: no image with a caption in it" + (f" of split {split!r}" if split else ""))


def read_captions(source: str | Path, *, split: str | None = None) -> Iterator[str]:
    """Captions alone, from a pool or from a .txt file with one a line; images are not read."""
    path = Path(source)
    if path.suffix.lower() == ".txt" and path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from (line.strip() for line in file if line.strip())
        return
    if path.suffix.lower() == ".parquet" and path.is_file():
        for row in _rows(path, split, without_images=True):
            yield _caption_of(row, path)
        return
    yield from (pair.caption for pair in read_pool(path, split=split))


def caption_of(concept: str) -> str:
    """`a photo of a dog`: what an image is called that has a concept alone."""
    return f"a photo of {'an' if concept[:1].lower() in 'aeiou' else 'a'} {concept}"


def _folder(root: Path) -> Iterator[Pair]:
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in INPUT_SUFFIXES or path.name.startswith("._"):
            continue
        told, concept = path.with_suffix(".txt"), None if path.parent == root else path.parent.name
        if told.is_file():
            caption = told.read_text(encoding="utf-8", errors="replace").strip()
        elif concept is not None:
            caption = caption_of(concept)
        else:
            continue
        yield Pair(path.relative_to(root).as_posix(), caption, path.read_bytes, path, concept)


def _table(path: Path, split: str | None) -> Iterator[Pair]:
    for place, row in enumerate(_rows(path, split)):
        caption = _caption_of(row, path)
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
        yield replace(pair, key=str(file), read=place_of.read_bytes, path=place_of)


def _rows(path: Path, split: str | None, *, without_images: bool = False) -> Iterator[dict[str, Any]]:
    kind = path.suffix.lower()
    rows: Iterator[dict[str, Any]]
    if kind == ".parquet":
        rows = _parquet_rows(path, without_images)
    elif kind in (".csv", ".tsv"):
        rows = _csv_rows(path, "\t" if kind == ".tsv" else ",")
    elif kind in (".jsonl", ".ndjson"):
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
    waiting: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            if not member.isfile():
                continue
            folder, _, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            file = tar.extractfile(member)
            parts = waiting.setdefault(key, {})
            parts[ending.lower()] = b"" if file is None else file.read()
            pair = _tar_pair(key, parts)
            if pair is not None:
                del waiting[key]
                yield pair


def _tar_pair(key: str, parts: dict[str, bytes]) -> Pair | None:
    image = next((data for ending, data in parts.items() if f".{ending}" in INPUT_SUFFIXES), None)
    caption = parts["txt"].decode(errors="replace").strip() if "txt" in parts else None
    if caption is None and "json" in parts:
        caption = _text(_first(json.loads(parts["json"]), CAPTION_COLUMNS))
    return None if image is None or caption is None else Pair(key, caption, lambda: image)


def _caption_of(row: dict[str, Any], path: Path) -> str:
    caption, concept = _first(row, CAPTION_COLUMNS), _first(row, CONCEPT_COLUMNS)
    if caption is None and concept is None:
        raise ShadeFastError(
            f"{path}: no captions; name a column one of {', '.join(CAPTION_COLUMNS + CONCEPT_COLUMNS)}"
        )
    return str(caption) if caption is not None else caption_of(str(concept))


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)
