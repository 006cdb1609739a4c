"""Tar files and WebDataset shards: read as streams, written again with the same names, members and order."""

from __future__ import annotations

import contextlib
import gzip
import logging
import shutil
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from braceexpand import braceexpand

from shade_fast.archive.folders import source_path, source_text
from shade_fast.archive.index import Index
from shade_fast.archive.layout import Read, Sample, Shard
from shade_fast.archive.manifest import Row
from shade_fast.archive.names import from_text, to_text, unsafe
from shade_fast.archive.storage import ArchiveStoppedError, Storage, too_large
from shade_fast.errors import ShadeFastError
from shade_fast.images import INPUT_SUFFIXES, Output

log = logging.getLogger(__name__)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
#: What of a member's extended header tarfile writes anew; the rest is kept.
_REWRITTEN_HEADERS = ("path", "size", "linkpath")
#: Bytes of a member that is no image which are held in memory.
_SPOOLED = 16 << 20
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


class Tars:
    """One or many tar files, each of which is a shard. What of a member's name follows the first dot says what it is
    (WebDataset's convention): `a.jpg` is an image, `a.json` and `a.seg.png` are other members, which stay untouched."""

    files = False

    def __init__(self, sources: Sequence[str | Path], out: Storage, output: Output) -> None:
        self.out, self.output = out, output
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
        self._opened: tuple[str, Any, tarfile.TarFile] | None = None
        self._lock = threading.Lock()
        self._told = False

    def shards(self, task: tuple[int, int], index: Index) -> Iterator[Shard]:
        for number, (name, url) in enumerate(self.urls.items()):
            if number % task[1] == task[0] and name not in index.finished:
                if not index.overwrites and name not in index.open_shards and self.out.exists(name):
                    raise ShadeFastError(
                        f"{self.out.location(name)}: exists and is none of this run's; "
                        "give another folder, or mode overwrite"
                    )
                yield Shard(name, url)

    def is_own(self, task: tuple[int, int], shard: str) -> bool:
        return shard in self.urls and list(self.urls).index(shard) % task[1] == task[0]

    def samples(self, shard: Shard) -> Iterator[Sample]:
        source = source_text(Storage(shard.content), "", self.out)
        taken: set[str] = set()
        place = 0
        try:
            for tar, member in _members(shard.content):
                error = _refusal(member)
                if error is None and not _is_image(member.name):
                    self._tell(shard.content, member)
                    continue
                error = error or too_large(to_text(member.name), member.size)
                output = self.output.name_of(member.name)
                if error is None and output in taken:
                    error = f"{to_text(member.name)}: its output is that of an earlier member too; rename one"
                taken.add(output)
                data = b"" if error is not None else _read(tar, member)
                yield Sample(place, to_text(member.name), output, source, lambda data=data: data, error)  # type: ignore[misc]
                place += 1
        except _DAMAGE as error:
            _check_there(shard.content, error)
            reason = f"{shard.content}: the tar is truncated or damaged here ({error}); what comes before is done"
            yield Sample(place, f"{shard.name}, from member {place}", "", source, bytes, reason)

    def finish(self, shard: Shard, rows: Iterable[Row], image: Callable[[Row], bytes], out: Storage) -> None:
        following = iter(rows)
        with out.create(shard.name) as file, _writer(shard.name, file) as written:
            try:
                for tar, member in _members(shard.content):
                    refused = _refusal(member) is not None
                    if not refused and not _is_image(member.name):
                        _copy(tar, member, written)
                        continue
                    row = next(following, None)
                    if row is None or row.key != to_text(member.name):
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
            except _DAMAGE as error:
                _check_there(shard.content, error)

    def count(self) -> int | None:
        return None

    def vanished(self) -> str | None:
        return next((url for url in self.urls.values() if not Storage(url).exists()), None)

    def pairs(self, rows: Iterable[Row], out: Storage) -> Iterator[tuple[Row, Read, Read]]:
        following = iter(rows)
        first = next(following, None)
        if first is None:
            return
        shard = Shard(first.shard, source_path(first, out))
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
                self._opened = (row.shard, file, tarfile.open(fileobj=file, mode="r:*"))  # noqa: SIM115
            tar = self._opened[2]
            return _read(tar, tar.getmember(from_text(row.output or "")))

    def _tell(self, url: str, member: tarfile.TarInfo) -> None:
        """Name the first member that is no image only because of WebDataset's convention: it may be meant as one."""
        suffix = PurePosixPath(member.name).suffix.lower()
        if not self._told and member.isfile() and suffix in INPUT_SUFFIXES and not _is_hidden(member.name):
            self._told = True
            log.warning(
                "%s: %s is copied unprotected, as is any member with more than its ending after its name's first dot "
                "(WebDataset's convention); rename what is to be protected",
                url,
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


class _Member(tarfile.TarInfo):
    """Tells a damaged header from the end of the tar, which tarfile takes for the same after the first member."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tarfile)
        except _EndOfTar:
            raise
        except _HeaderError as error:
            if tarfile.offset == 0:
                raise
            raise _DamagedHeader(str(error)) from error


class _DamagedHeader(tarfile.ReadError):
    pass


_HeaderError = tarfile.HeaderError
_EndOfTar: type[tarfile.HeaderError] = getattr(tarfile, "EOFHeaderError")  # noqa: B009


class _Bytes:
    """What tarfile reads a member's content from."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def read(self, count: int = -1) -> bytes:
        start = self._place
        self._place = len(self._data) if count < 0 else min(start + count, len(self._data))
        return self._data[start : self._place]


class _Source:
    """What a tar is read from. An error in reading may pass, so it ends the run: only what was read can be damaged."""

    def __init__(self, url: str, file: IO[bytes]) -> None:
        self._url, self._file = url, file

    def read(self, count: int) -> bytes:
        with _reaching(self._url):
            return self._file.read(count)


@contextlib.contextmanager
def _reaching(url: str) -> Iterator[None]:
    try:
        yield
    except gzip.BadGzipFile:
        raise
    except OSError as error:
        mend = "bring it back" if isinstance(error, FileNotFoundError) else "mend that"
        raise ArchiveStoppedError(
            f"{url}: cannot be read: {error.strerror or error}; {mend} and run this again"
        ) from error


def _check_there(url: str, error: Exception) -> None:
    """Raise ArchiveStoppedError where a tar that seems damaged is gone."""
    if not Storage(url).exists():
        raise ArchiveStoppedError(f"{url}: is not there any more; bring it back and run this again") from error


def _changed(url: str) -> ShadeFastError:
    return ShadeFastError(
        f"{url}: holds other images than when they were protected; bring it back as it was, or give mode overwrite"
    )


def _members(url: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members of a tar, read as a stream: each has to be read before the next is asked for."""
    with _reaching(url):
        file = Storage(url).open()
    with file, tarfile.open(fileobj=_Source(url, file), mode="r|*", tarinfo=_Member) as tar:  # type: ignore[call-overload]
        for member in tar:
            yield tar, member
            tar.members = []


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


def _refusal(member: tarfile.TarInfo) -> str | None:
    reason = unsafe(member.name)
    if reason is None and (member.issym() or member.islnk()):
        reason = "a link"
    if reason is None and not (member.isfile() or member.isdir()):
        reason = "a device or pipe"
    return None if reason is None else f"{to_text(member.name)}: {reason}; it is left out of the output"


def _is_image(name: str) -> bool:
    _, dot, ending = PurePosixPath(name).name.partition(".")
    return f"{dot}{ending}".lower() in INPUT_SUFFIXES and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    # macOS writes ._photo.jpg beside photo.jpg.
    return PurePosixPath(name).name.startswith("._")
