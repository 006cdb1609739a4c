"""Folders of image files, local or by URL: searched through in order, and written under the same relative paths."""

from __future__ import annotations

import functools
import logging
import os
import posixpath
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from shade_fast.archive.index import Index
from shade_fast.archive.layout import Read, Sample, Shard
from shade_fast.archive.names import from_text, to_text
from shade_fast.archive.reading import Reader
from shade_fast.archive.row import Row
from shade_fast.archive.storage import RECORD_FOLDER, Facts, Storage, hidden
from shade_fast.images import INPUT_SUFFIXES, Output, is_image
from shade_fast.terms.errors import ShadeFastError, reason
from shade_fast.terms.limits import Access, Limits
from shade_fast.terms.text import printable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceFile:
    """An image file: the source (by number) it was found in, its path below that, and why it cannot be had."""

    root: int
    relative: str
    path: Path
    error: str | None = None


@dataclass(frozen=True)
class _Below:
    """A folder that was found in a source. above: its real path, behind those that lead to it. linked: by a link."""

    relative: str
    above: tuple[str, ...] = ()
    linked: bool = False


@dataclass
class _Links:
    """Where links have led: from there, a further one only leads on to new places, or a web would have endless paths.

    real: the sources' folders. places: what links have led to. All below either is listed anyway. left: how many links
    were not followed. example: the first of them.
    """

    real: frozenset[str]
    places: set[str] = field(default_factory=set)
    left: int = 0
    example: str = ""

    def follows(self, link: str, place: str, linked: bool) -> bool:
        """Whether a link is followed; linked: it is in a folder that another link led to."""
        if linked:
            around = (place, *map(str, Path(place).parents))
            if not (self.real.isdisjoint(around) and self.places.isdisjoint(around)):
                self.left, self.example = self.left + 1, self.example or link
                return False
        self.places.add(place)
        return True


def _task_of(file: SourceFile, tasks: int) -> int:
    """Which of so many tasks a file is of: the same whatever else is listed, where each task lists for itself."""
    return zlib.crc32(f"{file.root}/{file.relative}".encode(errors="surrogateescape")) % tasks


class Folder:
    """Folders and files, one after the other; a file's path below its folder is its name in the output."""

    files = True

    def __init__(
        self,
        sources: Sequence[str | os.PathLike[str]],
        out: Storage | None,
        output: Output,
        shard_size: int,
        reader: Reader,
    ) -> None:
        self.roots = [Storage(source) for source in sources]
        self.out, self.output, self.shard_size = out, output, shard_size
        self.reader = reader
        self._warned = False
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

    def path(self, shard: Shard) -> str | None:
        return None

    def finish(
        self, shard: Shard, rows: Iterable[Row], image: Callable[[Row], bytes], out: Storage, facts: Facts | None
    ) -> None:
        """Its files are there already."""

    def count(self) -> int | None:
        return sum(1 for _ in self.listing())

    def vanished(self) -> str | None:
        return next((root.url for root in self.roots if not root.exists()), None)

    def pairs(self, rows: Iterable[Row], out: Storage) -> Iterator[tuple[Row, Read, Read]]:
        for row in rows:
            yield row, lambda row=row: self._read_source(row, out), lambda row=row: self.read_output(row, out)  # type: ignore[misc]

    def _read_source(self, row: Row, out: Storage) -> bytes:
        place = source_path(row, out)
        # A manifest may be anyone's, where its run's options are known to be one's own.
        if not any(is_below(place, root) for root in self.roots):
            raise ShadeFastError(
                f"{row.key}: its source {place} is not below {', '.join(root.url for root in self.roots)}"
            )
        return self.reader.image(Storage(place))

    def read_output(self, row: Row, out: Storage) -> bytes:
        return out.read(from_text(row.output or ""))

    def listing(self) -> Iterator[SourceFile]:
        """Every image file, folder by folder in the order of names.

        Links are followed, but not back to above, and from what a link led to only to where none has led. What cannot
        be listed, and what is over a limit, is a file with an error.
        """
        tops = {root.root: os.path.realpath(root.root) for root in self.roots if root.local}
        links = _Links(frozenset(tops.values()))
        for number, root in enumerate(self.roots):
            if not root.local:
                yield from self._tree(number, root, _Below(""), self._remote)
            elif os.path.isdir(root.root):
                local = functools.partial(self._local, links=links, own=self._own())
                yield from self._tree(number, root, _Below("", (tops[root.root],)), local)
            else:
                yield SourceFile(number, os.path.basename(root.root), Path(root.root))
        if links.left and not self._warned:
            self._warned = True
            log.warning(
                "%d links to folders are not followed: they are in what another link leads to, and lead to what is "
                "listed already; the first is %s",
                links.left,
                printable(links.example),
            )

    def source_text(self, file: SourceFile) -> str:
        """The file's place as rows have it."""
        root = self.roots[file.root]
        return source_text(root, "" if _is_file(root) else file.relative, self.out)

    def _own(self) -> frozenset[str]:
        """The output's folders that a source may hold, which are none of its own."""
        if self.out is None or not self.out.local:
            return frozenset()
        return frozenset(os.path.realpath(self.out.path(name)) for name in ("", RECORD_FOLDER))

    def _tree(
        self,
        number: int,
        root: Storage,
        top: _Below,
        look: Callable[[int, Storage, _Below], Iterator[SourceFile | _Below]],
    ) -> Iterator[SourceFile]:
        """All images of a source, within its limits. look: the images and folders of one folder, in order."""
        limits, folders, images = self.reader.limits, 0, 0
        # No recursion, which deep folders would end. Above the top there is a place that holds nothing else.
        open_folders: list[tuple[str, Iterator[SourceFile | _Below]]] = [("", iter([top]))]
        while open_folders:
            at, content = open_folders[-1]
            entry = next(content, None)
            if entry is None:
                open_folders.pop()
            elif isinstance(entry, SourceFile):
                images += entry.error is None
                if images > limits.files:
                    why = f"the source has more than {limits.files} images, and what follows is left out"
                    yield self._refused(number, root, at, f"{why}; give --max files={2 * limits.files}")
                    return
                yield entry
            elif len(open_folders) - 1 > limits.depth:
                why = f"more than {limits.depth} folders below one another; leave it out"
                yield self._refused(number, root, entry.relative, f"{why}, or give --max depth={2 * limits.depth}")
            elif folders == limits.folders:
                why = f"the source has more than {limits.folders} folders, and what follows is left out"
                yield self._refused(number, root, entry.relative, f"{why}; give --max folders={2 * limits.folders}")
                return
            else:
                folders += 1
                open_folders.append((entry.relative, look(number, root, entry)))

    def _refused(self, number: int, root: Storage, folder: str, why: str) -> SourceFile:
        path = root.path(folder) if root.local else folder
        return SourceFile(number, f"{folder}/", Path(path), f"{root.location(folder)}: {why}")

    def _local(
        self, number: int, root: Storage, folder: _Below, links: _Links, own: frozenset[str]
    ) -> Iterator[SourceFile | _Below]:
        path, real = root.path(folder.relative), folder.above[-1]
        names: list[str] = []
        #: whether each folder is a link
        folders: dict[str, bool] = {}
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        folders[entry.name] = entry.is_symlink()
                    elif not is_image(entry.name):
                        continue
                    names.append(entry.name)
        except OSError as error:
            yield self._refused(number, root, folder.relative, f"cannot be read: {error.strerror}")
            return
        names.sort()
        for name in names:
            relative = f"{folder.relative}/{name}" if folder.relative else name
            here, link = os.path.join(path, name), folders.get(name)
            if link is None:
                yield SourceFile(number, relative, Path(here))
                continue
            place = os.path.realpath(here) if link else os.path.join(real, name)
            if place in folder.above or place in own or (link and not links.follows(here, place, folder.linked)):
                continue
            yield _Below(relative, (*folder.above, place), link or folder.linked)

    def _remote(self, number: int, root: Storage, folder: _Below) -> Iterator[SourceFile | _Below]:
        path = root.path(folder.relative)
        try:
            entries = root.fs.ls(path, detail=True)
        except Exception as error:  # whatever a store's client raises
            why = error if isinstance(error, OSError) else reason(error)
            yield self._refused(number, root, folder.relative, f"cannot be read: {why}")
            return
        inside = {
            (name, entry["type"] == "directory")
            for entry in entries
            if (name := _name_in(path, str(entry["name"]), alone=not folder.relative and entry["type"] == "file"))
        }
        for name, is_folder in sorted(inside):
            relative = f"{folder.relative}/{name}" if folder.relative else name
            if not is_folder:
                if is_image(name):
                    yield SourceFile(number, relative, Path(relative))
            elif self.out is None or root.location(relative) != self.out.url:
                yield _Below(relative)

    def _sample(self, place: int, number: int, relative: str, error: str | None) -> Sample:
        root = self.roots[number]
        name = "" if _is_file(root) else relative
        source = source_text(root, name, self.out)
        read = functools.partial(self.reader.image, root, name)
        path = root.path(name) if root.local else None
        return Sample(place, to_text(relative), self.output.name_of(relative), source, read, error, path=path)


def find_images(sources: Sequence[str | os.PathLike[str]]) -> list[SourceFile]:
    """The image files that local folders and files hold, as an archive of them is listed.

    Raises ShadeFastError for a path that does not exist, and where there is no image at all.
    """
    reader = Reader(Limits(), Access())
    return [file for file in Folder(sources, None, Output(), 1, reader).listing() if file.error is None]


def source_text(root: Storage, name: str, out: Storage | None) -> str:
    """A source file's place as rows have it: a URL, or a path as seen from a local output, so that both can move."""
    if root.local and out is not None and out.local:
        return to_text(os.path.relpath(root.path(name), out.root))
    return to_text(hidden(root.location(name) if name else root.url, b"" if out is None else out.key))


def is_below(place: str, root: Storage) -> bool:
    """Whether a path or URL is a source's own, or below it; `..` is none."""
    if root.local:
        place = os.path.realpath(place)
        return os.path.commonpath([place, os.path.realpath(root.root)]) == os.path.realpath(root.root)
    # Of a chain (zip://a.png::https://host/b.zip) a path is of the first part.
    (first, chain), (own, its_chain) = ((*url.partition("::")[::2],) for url in (place, root.url))
    inside = first == own or first.startswith(f"{own.rstrip('/')}/") or own.endswith("://")
    return chain == its_chain and inside and ".." not in first.split("/")


def source_path(row: Row, out: Storage) -> str:
    """The path or URL of a row's source file."""
    source = from_text(row.source)
    return os.path.normpath(os.path.join(out.root, source)) if out.local and "://" not in source else source


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _name_in(folder: str, path: str, alone: bool) -> str | None:
    """The name of what a store says is in a folder; None where it is the folder itself, or lies elsewhere.

    alone: the folder may be the very file that it is asked for.
    """
    parent, _, name = path.rstrip("/").rpartition("/")
    inside = _plain(parent) == _plain(folder) or (alone and _plain(path) == _plain(folder))
    return name if inside and name not in (".", "..") and "\0" not in name else None


def _plain(path: str) -> str:
    """A store's path without what several of them may differ in that mean the same place."""
    return posixpath.normpath("/" + unquote(path.partition("://")[2] or path).strip("/"))


def _is_file(root: Storage) -> bool:
    return os.path.isfile(root.root) if root.local else root.size("") is not None


def _overlaps(root: Storage, out: Storage) -> bool:
    """Whether the output is a source's own folder, or above it, so that outputs could replace sources."""
    if not (root.local and out.local):
        return root.url == out.url
    source, written = os.path.realpath(root.root), os.path.realpath(out.root)
    folder = source if os.path.isdir(source) else os.path.dirname(source)
    return os.path.commonpath([folder, written]) == written if os.path.isdir(source) else folder == written
