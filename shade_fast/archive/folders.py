"""Folders of image files, local or by URL: searched through in order, and written under the same relative paths."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shade_fast.archive.index import Index
from shade_fast.archive.layout import Read, Sample, Shard
from shade_fast.archive.manifest import Row
from shade_fast.archive.names import from_text, to_text
from shade_fast.archive.storage import RECORD_FOLDER, Storage
from shade_fast.errors import ShadeFastError
from shade_fast.images import INPUT_SUFFIXES, Output


@dataclass(frozen=True)
class SourceFile:
    """An image file: the source (by number) it was found in, its path below that, and why it cannot be had."""

    root: int
    relative: str
    path: Path
    error: str | None = None


def _task_of(file: SourceFile, tasks: int) -> int:
    """Which of so many tasks a file is of: the same whatever else is listed, where each task lists for itself."""
    return zlib.crc32(f"{file.root}/{file.relative}".encode(errors="surrogateescape")) % tasks


class Folder:
    """Folders and files, one after the other; a file's path below its folder is its name in the output."""

    files = True

    def __init__(
        self, sources: Sequence[str | os.PathLike[str]], out: Storage | None, output: Output, shard_size: int
    ) -> None:
        self.roots = [Storage(source) for source in sources]
        self.out, self.output, self.shard_size = out, output, shard_size
        for source, root in zip(sources, self.roots, strict=True):
            try:
                missing = not (os.path.exists(root.root) if root.local else root.exists())
            except OSError as error:
                raise ShadeFastError(f"{source}: cannot be read: {error.strerror}") from error
            if missing:
                raise ShadeFastError(f"{source}: no such file or folder")
            if out is not None and _overlaps(root, out):
                raise ShadeFastError(
                    f"{out.url}: holds the source {source}, whose files it could take the place of; give another folder"
                )
        if next(self.listing(), None) is None:
            raise ShadeFastError(f"{', '.join(map(str, sources))}: no images found ({', '.join(INPUT_SUFFIXES)})")

    def shards(self, task: tuple[int, int], index: Index) -> Iterator[Shard]:
        number = 0
        names = iter(sorted(index.open_shards))
        name, place, room = "", 0, 0
        content: list[tuple[int, int, str, str | None]] = []

        def begin() -> None:
            nonlocal name, content, place, room, number
            content = []
            reused = next(names, None)
            if reused is not None:
                rows, place = index.open_shards[reused]
                name, room = reused, max(0, self.shard_size - rows)
                return
            while f"{task[0]:05d}-{number:05d}" in index.finished | index.open_shards.keys():
                number += 1
            name, place, room = f"{task[0]:05d}-{number:05d}", 0, self.shard_size
            number += 1

        begin()
        for file in self.listing():
            source = self.source_text(file)
            output = to_text(self.output.name_of(file.relative))
            taken = index.claim(output, source) if file.error is None else source
            if _task_of(file, task[1]) != task[0] or index.is_done(source):
                continue
            error = file.error
            if taken != source:
                error = f"{source}: its output {output} is that of {taken} too; rename one, or run them apart"
            while room == 0:
                yield Shard(name, tuple(content))
                begin()
            content.append((place, file.root, file.relative, error))
            place, room = place + 1, room - 1
        if content or name in index.open_shards:
            yield Shard(name, tuple(content))
        for name in names:
            yield Shard(name, ())

    def is_own(self, task: tuple[int, int], shard: str) -> bool:
        return shard.startswith(f"{task[0]:05d}-")

    def samples(self, shard: Shard) -> Iterator[Sample]:
        for place, root, relative, error in shard.content:
            yield self._sample(place, root, relative, error)

    def finish(self, shard: Shard, rows: Iterable[Row], image: Callable[[Row], bytes], out: Storage) -> None:
        """Its files are there already."""

    def count(self) -> int | None:
        return sum(1 for _ in self.listing())

    def vanished(self) -> str | None:
        return next((root.url for root in self.roots if not root.exists()), None)

    def pairs(self, rows: Iterable[Row], out: Storage) -> Iterator[tuple[Row, Read, Read]]:
        for row in rows:
            yield row, lambda row=row: _read_source(row, out), lambda row=row: self.read_output(row, out)  # type: ignore[misc]

    def read_output(self, row: Row, out: Storage) -> bytes:
        return out.read(from_text(row.output or ""))

    def listing(self) -> Iterator[SourceFile]:
        """Every image file, folder by folder in the order of names; links are followed, but not back to above."""
        for number, root in enumerate(self.roots):
            if root.local and not os.path.isdir(root.root):
                yield SourceFile(number, os.path.basename(root.root), Path(root.root))
            elif root.local:
                yield from self._local(number, root, "", (os.path.realpath(root.root),))
            else:
                yield from self._remote(number, root, "")

    def source_text(self, file: SourceFile) -> str:
        """The file's place as rows have it."""
        root = self.roots[file.root]
        return source_text(root, "" if _is_file(root) else file.relative, self.out)

    def _local(self, number: int, root: Storage, below: str, above: tuple[str, ...]) -> Iterator[SourceFile]:
        try:
            with os.scandir(root.path(below)) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            path = root.path(below)
            yield SourceFile(number, f"{below}/", Path(path), f"{path}: cannot be read: {error.strerror}")
            return
        for entry in entries:
            relative = f"{below}/{entry.name}" if below else entry.name
            try:
                folder = entry.is_dir()
            except OSError:
                folder = False
            if folder:
                real = os.path.realpath(entry.path)
                inside_out = self.out is not None and real in (
                    os.path.realpath(self.out.root),
                    os.path.realpath(self.out.path(RECORD_FOLDER)),
                )
                if real not in above and not inside_out:
                    yield from self._local(number, root, relative, (*above, real))
            elif _is_image(entry.name):
                yield SourceFile(number, relative, Path(entry.path))

    def _remote(self, number: int, root: Storage, below: str) -> Iterator[SourceFile]:
        try:
            entries = root.fs.ls(root.path(below), detail=True)
        except OSError as error:
            yield SourceFile(number, f"{below}/", Path(below), f"{root.location(below)}: cannot be read: {error}")
            return
        for entry in sorted(entries, key=lambda entry: str(entry["name"]).rstrip("/")):
            name = str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]
            relative = f"{below}/{name}" if below else name
            if entry["type"] == "directory":
                if self.out is None or root.location(relative) != self.out.url:
                    yield from self._remote(number, root, relative)
            elif _is_image(name):
                yield SourceFile(number, relative, Path(relative))

    def _sample(self, place: int, number: int, relative: str, error: str | None) -> Sample:
        root = self.roots[number]
        name = "" if _is_file(root) else relative
        source = source_text(root, name, self.out)
        read = functools.partial(root.read_image, name)
        return Sample(place, to_text(relative), self.output.name_of(relative), source, read, error)


def find_images(sources: Sequence[str | os.PathLike[str]]) -> list[SourceFile]:
    """The image files that local folders and files hold, as an archive of them is listed.

    Raises ShadeFastError for a path that does not exist, and where there is no image at all.
    """
    return [file for file in Folder(sources, None, Output(), 1).listing() if file.error is None]


def source_text(root: Storage, name: str, out: Storage | None) -> str:
    """A source file's place as rows have it: a URL, or a path as seen from a local output, so that both can move."""
    if root.local and out is not None and out.local:
        return to_text(os.path.relpath(root.path(name), out.root))
    return to_text(root.location(name) if name else root.url)


def source_path(row: Row, out: Storage) -> str:
    """The path or URL of a row's source file."""
    source = from_text(row.source)
    return os.path.normpath(os.path.join(out.root, source)) if out.local and "://" not in source else source


def _read_source(row: Row, out: Storage) -> bytes:
    return Storage(source_path(row, out)).read_image()


def _is_image(name: str) -> bool:
    # macOS writes ._photo.jpg beside photo.jpg on disks of other systems: no image, for all its name.
    return os.path.splitext(name)[1].lower() in INPUT_SUFFIXES and not name.startswith("._")


def _is_file(root: Storage) -> bool:
    return os.path.isfile(root.root) if root.local else root.size("") is not None


def _overlaps(root: Storage, out: Storage) -> bool:
    """Whether the output is a source's own folder, or above it, so that outputs could replace sources."""
    if not (root.local and out.local):
        return root.url == out.url
    source, written = os.path.realpath(root.root), os.path.realpath(out.root)
    folder = source if os.path.isdir(source) else os.path.dirname(source)
    return os.path.commonpath([folder, written]) == written if os.path.isdir(source) else folder == written
