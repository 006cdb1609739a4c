"""Tar files and WebDataset shards: read as streams, written again with the same names, members and order."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import logging
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from braceexpand import braceexpand

from shade_fast.archive.folders import source_text
from shade_fast.archive.index import Index
from shade_fast.archive.layout import Read, Sample, Shard
from shade_fast.archive.names import from_text, to_text, unsafe
from shade_fast.archive.row import Row
from shade_fast.archive.storage import Facts, Storage, too_large
from shade_fast.archive.tar_reading import DAMAGE, check_there, each_member, members_of, open_tar
from shade_fast.images import INPUT_SUFFIXES, Output
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.limits import Limits
from shade_fast.terms.text import redacted

log = logging.getLogger(__name__)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
#: What of a member's extended header tarfile writes anew; the rest is kept.
_REWRITTEN_HEADERS = ("path", "size", "linkpath")
#: Bytes of a member that is no image which are held in memory.
_SPOOLED = 16 << 20
#: Characters of a member's name by which its row calls it.
_LONGEST_KEY = 4096
#: What an output's extended header may have beyond its source's: a long name, the global headers.
_ADDED = 64 << 10
#: What is allowed where nobody says otherwise.
_LIMITS = Limits()


class Tars:
    """One or many tar files, each of which is a shard. What of a member's name follows the first dot says what it is
    (WebDataset's convention): `a.jpg` is an image, `a.json` and `a.seg.png` are other members, which stay untouched."""

    files = False

    def __init__(self, sources: Sequence[str | Path], out: Storage, output: Output, limits: Limits = _LIMITS) -> None:
        self.out, self.output, self.limits = out, output, limits
        self.urls: dict[str, str] = {}
        for source in sources:
            for url in expand(str(source)):
                name = url.rsplit("/", 1)[-1]
                storage = Storage(url)
                if self.urls.setdefault(name, url) != url:
                    raise ShadeFastError(f"{url}: another shard is named {name} too; protect them into two outputs")
                if not storage.exists():
                    raise ShadeFastError(f"{url}: no such file or folder")
                if storage.url == out.location(name):
                    raise ShadeFastError(f"{out.url}: holds the source {url} itself; give another folder")
        #: the output that was read last, which threads share
        self._opened: tuple[str, Any, tarfile.TarFile, dict[str, tarfile.TarInfo]] | None = None
        self._lock = threading.Lock()
        self._warned = False

    def shards(self, task: tuple[int, int], index: Index) -> Iterator[Shard]:
        for number, (name, url) in enumerate(self.urls.items()):
            if number % task[1] == task[0] and name not in index.finished:
                index.check_free(self.out, name)
                yield Shard(name, url)

    def is_own(self, task: tuple[int, int], shard: str) -> bool:
        return shard in self.urls and list(self.urls).index(shard) % task[1] == task[0]

    def samples(self, shard: Shard) -> Iterator[Sample]:
        source = source_text(Storage(shard.content), "", self.out)
        taken: set[bytes] = set()
        place = 0
        try:
            for tar, member, error in self._walk(shard.content):
                if error is None and not _is_image_member(member.name):
                    self._warn(shard.content, member)
                    continue
                key, output = _key(member), self.output.name_of(member.name)
                mark = hashlib.blake2b(output.encode("utf-8", "surrogatepass"), digest_size=16).digest()
                if error is None and mark in taken:
                    error = f"{key}: its output is that of an earlier member too; rename one"
                taken.add(mark)
                data = b"" if error is not None else _read(tar, member)
                yield Sample(place, key, output, source, functools.partial(bytes, data), error, size=len(data))
                data = b""
                place += 1
        except DAMAGE as error:
            check_there(shard.content, error)
            reason = f"{shard.content}: the tar is truncated or damaged here ({error}); what comes before is done"
            yield Sample(place, f"{shard.name}, from member {place}", "", source, bytes, reason)

    def path(self, shard: Shard) -> str | None:
        storage = Storage(shard.content)
        return storage.root if storage.local else None

    def finish(
        self, shard: Shard, rows: Iterable[Row], image: Callable[[Row], bytes], out: Storage, facts: Facts | None
    ) -> None:
        following = iter(rows)
        with out.create(shard.name, facts) as file, _writer(shard.name, file) as written:
            try:
                for tar, member, error in self._walk(shard.content):
                    written.members = []  # type: ignore[attr-defined]  # tarfile keeps all that it has written
                    if error is None and not _is_image_member(member.name):
                        _copy(tar, member, written)
                        continue
                    row = next(following, None)
                    if row is None or row.key != _key(member):
                        # Where the tar is damaged, as its last row says, its end is here.
                        _read(tar, member)
                        raise _changed(shard.content)
                    if row.output is None:
                        continue
                    data = image(row)
                    member.name, member.size = from_text(row.output), len(data)
                    member.pax_headers = _kept(member)
                    written.addfile(member, _Bytes(data))
                if next(following, None) is not None:
                    raise _changed(shard.content)
            except DAMAGE as error:
                check_there(shard.content, error)

    def count(self) -> int | None:
        return None

    def vanished(self) -> str | None:
        return next((url for url in self.urls.values() if not Storage(url).exists()), None)

    def pairs(self, rows: Iterable[Row], out: Storage) -> Iterator[tuple[Row, Read, Read]]:
        following = iter(rows)
        first = next(following, None)
        if first is None:
            return
        shard = Shard(first.shard, self.urls.get(first.shard, ""))
        sources = self.samples(shard)
        for row in (first, *following):
            sample = next(sources, None)
            read = sample.read if sample is not None and sample.key == row.key else bytes
            yield row, read, lambda row=row: self.read_output(row, out)  # type: ignore[misc]

    def read_output(self, row: Row, out: Storage) -> bytes:
        with self._lock:
            if self._opened is None or self._opened[0] != row.shard:
                if self._opened is not None:
                    self._opened[1].close()
                    self._opened = None
                file = out.open(row.shard)
                most = self.limits.header_bytes + _ADDED
                tar = open_tar(file, "r:*", most)
                images = {member.name: member for member in each_member(tar) if _is_image_member(member.name)}
                self._opened = (row.shard, file, tar, images)
            _, _, tar, images = self._opened
            return _read(tar, images[from_text(row.output or "")])

    def _walk(self, url: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, str | None]]:
        """The members of a tar, each with why it is left out; those that are images or left out have rows."""
        rows = 0
        for tar, member in members_of(url, self.limits):
            error = self._refusal(member)
            if error is not None or _is_image_member(member.name):
                if rows == self.limits.files:
                    raise tarfile.ReadError(f"more than {rows} images; more are read with --max files=NUMBER")
                rows += 1
            yield tar, member, error

    def _refusal(self, member: tarfile.TarInfo) -> str | None:
        # In a tar neither dots nor control characters harm.
        name = "/".join(part for part in member.name.split("/") if part != ".")
        reason = None if member.isdir() and not name else unsafe(name)
        if reason is None and (member.issym() or member.islnk()):
            reason = "a link"
        if reason is None and not (member.isfile() or member.isdir()):
            reason = "a device or pipe"
        if reason is None and member.issparse():
            reason = "a sparse member; write the tar again without sparse members"
        if reason is None and _is_image_member(member.name):
            return too_large(_key(member), member.size, self.limits.image_bytes)
        if reason is None and member.size > self.limits.member_bytes:
            most = self.limits.member_bytes
            reason = f"{member.size} bytes; at most {most} are copied: --max member-bytes={member.size}"
        return None if reason is None else f"{_key(member)}: {reason}; it is left out of the output"

    def _warn(self, url: str, member: tarfile.TarInfo) -> None:
        """Name the first member that is no image only because of WebDataset's convention: it may be meant as one."""
        suffix = PurePosixPath(member.name).suffix.lower()
        if not self._warned and member.isfile() and suffix in INPUT_SUFFIXES and not _is_hidden(member.name):
            self._warned = True
            log.warning(
                "%s: %s is copied unprotected, as is any member with more than its ending after its name's first dot "
                "(WebDataset's convention); rename what is to be protected",
                redacted(url),
                to_text(member.name),
            )


def expand(url: str) -> list[str]:
    """The URLs that braces mean: `{000..127}` and `{a,b}`, as in WebDataset."""
    if "{" not in url or Storage(url).exists():
        return [url]
    try:
        return list(braceexpand(url))
    except ValueError as error:
        raise ShadeFastError(f"{url}: {error}; close the braces") from error


class _Bytes:
    """What tarfile reads a member's content from."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def read(self, count: int = -1) -> bytes:
        start = self._place
        self._place = len(self._data) if count < 0 else min(start + count, len(self._data))
        return self._data[start : self._place]


def _changed(url: str) -> ShadeFastError:
    return ShadeFastError(
        f"{url}: holds other images than when they were protected; bring it back as it was, or give mode overwrite"
    )


def _writer(name: str, file: IO[bytes]) -> contextlib.AbstractContextManager[tarfile.TarFile]:
    if name.endswith((".gz", ".tgz")):
        return _gzip_writer(file)
    kind = "w|bz2" if name.endswith(".bz2") else "w|xz" if name.endswith(".xz") else "w|"
    return tarfile.open(fileobj=file, mode=kind, format=tarfile.PAX_FORMAT)  # type: ignore[call-overload, no-any-return]


@contextlib.contextmanager
def _gzip_writer(file: IO[bytes]) -> Iterator[tarfile.TarFile]:
    # Without a name and a time in the header, the same images give the same bytes.
    with (
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        yield tar


def _kept(member: tarfile.TarInfo) -> dict[str, str]:
    return {name: value for name, value in member.pax_headers.items() if name not in _REWRITTEN_HEADERS}


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def _copy(tar: tarfile.TarFile, member: tarfile.TarInfo, written: tarfile.TarFile) -> None:
    """Copy a member once it was read whole: half of it, where the tar is damaged, would damage what is written too."""
    content = tar.extractfile(member) if member.isfile() else None
    with tempfile.SpooledTemporaryFile(_SPOOLED) as whole:
        if content is not None:
            shutil.copyfileobj(content, whole)
            whole.seek(0)
        written.addfile(member, whole if content is not None else None)


def _key(member: tarfile.TarInfo) -> str:
    text = to_text(member.name)
    return text if len(text) <= _LONGEST_KEY else f"{text[:100]}... ({len(text)} characters)"


def _is_image_member(name: str) -> bool:
    """By WebDataset's convention: all that follows the first dot of its name is an image's ending."""
    _, dot, ending = PurePosixPath(name).name.partition(".")
    return f"{dot}{ending}".lower() in INPUT_SUFFIXES and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    # macOS writes ._photo.jpg beside photo.jpg.
    return PurePosixPath(name).name.startswith("._")
