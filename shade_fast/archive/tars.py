"""Tar files and WebDataset shards: read as streams, written again with the same names, members and order."""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import hashlib
import logging
import lzma
import math
import re
import shutil
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from braceexpand import braceexpand

from shade_fast.archive.folders import source_text
from shade_fast.archive.index import Index
from shade_fast.archive.layout import Read, Sample, Shard
from shade_fast.archive.manifest import Row
from shade_fast.archive.names import from_text, to_text, unsafe
from shade_fast.archive.storage import ArchiveStoppedError, Facts, Storage, too_large
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
#: Extended headers one after the other, and bytes of the global ones together, each of which goes for every member.
_CHAIN, _GLOBAL = 32, 4096
#: What an output's extended header may have beyond its source's: a long name, the global headers.
_ADDED = 64 << 10
#: What is allowed where nobody says otherwise.
_LIMITS = Limits()
#: Fields of an extended header whose text may be of another encoding.
_NAMES = ("path", "linkpath", "uname", "gname")
#: Bytes that are unpacked at a time, and that the dictionary of an xz stream may have.
_PACKED_CHUNK, _DICTIONARY = 16 << 10, 256 << 20
#: How each compressed tar begins, and what unpacks it.
_PACKED: tuple[tuple[re.Pattern[bytes], Callable[[], Any]], ...] = (
    (re.compile(rb"\x1f\x8b\x08"), lambda: zlib.decompressobj(zlib.MAX_WBITS | 16)),
    (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), bz2.BZ2Decompressor),
    (re.compile(rb"\xfd7zXZ|\x5d\x00\x00\x80"), lambda: lzma.LZMADecompressor(memlimit=_DICTIONARY)),
)
_LONGEST_MAGIC = 10
_EXTENDED = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


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
        self._told = False

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
                if error is None and not _is_image(member.name):
                    self._tell(shard.content, member)
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
        except _DAMAGE as error:
            _check_there(shard.content, error)
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
                    if error is None and not _is_image(member.name):
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
                tar = _open(file, "r:*", most)
                images = {member.name: member for member in _each(tar) if _is_image(member.name)}
                self._opened = (row.shard, file, tar, images)
            _, _, tar, images = self._opened
            return _read(tar, images[from_text(row.output or "")])

    def _walk(self, url: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, str | None]]:
        """The members of a tar, each with why it is left out; those that are images or left out have rows."""
        rows = 0
        for tar, member in _members(url, self.limits):
            error = self._refusal(member)
            if error is not None or _is_image(member.name):
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
        if reason is None and _is_image(member.name):
            return too_large(_key(member), member.size, self.limits.image_bytes)
        if reason is None and member.size > self.limits.member_bytes:
            most = self.limits.member_bytes
            reason = f"{member.size} bytes; at most {most} are copied: --max member-bytes={member.size}"
        return None if reason is None else f"{_key(member)}: {reason}; it is left out of the output"

    def _tell(self, url: str, member: tarfile.TarInfo) -> None:
        """Name the first member that is no image only because of WebDataset's convention: it may be meant as one."""
        suffix = PurePosixPath(member.name).suffix.lower()
        if not self._told and member.isfile() and suffix in INPUT_SUFFIXES and not _is_hidden(member.name):
            self._told = True
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


class _Tar(tarfile.TarFile):
    """A tar file whose extended headers have at most so many bytes before each member."""

    def __init__(self, *args: Any, header_bytes: int, **options: Any) -> None:
        self.header_bytes = header_bytes
        self.chain = self.chained = 0
        super().__init__(*args, **options)


class _Member(tarfile.TarInfo):
    """Tells a damaged header from the end of the tar, which tarfile takes for the same after the first member, and
    reads no more of extended headers than is allowed."""

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

    def _proc_member(self, tar: Any) -> _Member:
        if self.size < 0:
            raise _InvalidHeader("a size below 0")
        if self.type in _EXTENDED:
            tar.chain, tar.chained = tar.chain + 1, tar.chained + self.size
            if tar.chained > tar.header_bytes:
                raise _DamagedHeader(
                    f"extended headers of {tar.chained} bytes; at most {tar.header_bytes} are read: "
                    f"--max header-bytes={tar.chained}"
                )
            if tar.chain > _CHAIN:
                raise _DamagedHeader(f"more than {_CHAIN} extended headers one after the other")
        else:
            tar.chain = tar.chained = 0
        member: _Member = super()._proc_member(tar)  # type: ignore[misc]
        if member.size < 0:
            raise _InvalidHeader("a size below 0")
        if not math.isfinite(member.mtime):
            member.mtime = 0
            member.pax_headers = {name: value for name, value in member.pax_headers.items() if name != "mtime"}
        return member

    def _proc_sparse(self, tar: Any) -> _Member:
        # tarfile's own keeps the whole map, and expands the holes. Such a member is left out, so only its end counts.
        extended = self._sparse_structs[1]  # type: ignore[attr-defined]
        while extended:
            block = tar.fileobj.read(tarfile.BLOCKSIZE)
            if len(block) < tarfile.BLOCKSIZE:
                raise _InvalidHeader("truncated header")
            extended = block[504]
        self.sparse = []  # type: ignore[assignment]
        self.offset_data = tar.fileobj.tell()
        tar.offset = self.offset_data + self._block(self.size)  # type: ignore[attr-defined]
        return self

    def _proc_pax(self, tar: Any) -> _Member:
        # tarfile's own takes hours and gigabytes for some headers of a megabyte, and keeps the maps of sparse members.
        records = self._records(tar)
        shared = self.type == tarfile.XGLTYPE
        sparse = any(name.startswith("GNU.sparse.") for name in records)
        headers = {**tar.pax_headers, **records}
        if shared:
            most = min(tar.header_bytes, _GLOBAL)
            if sparse or sum(len(name) + len(value) for name, value in headers.items()) > most:
                raise _DamagedHeader(
                    f"global headers of more than {most} bytes, or of sparse members; write the tar without them"
                )
            tar.pax_headers = headers
        try:
            member = self.fromtarfile(tar)
        except _HeaderError as error:
            raise _SubsequentHeader(str(error)) from None
        if shared:
            return member
        plain = {
            name: value
            for name, value in headers.items()
            if name == "GNU.sparse.name" or not name.startswith("GNU.sparse.")
        }
        member._apply_pax_info(plain, tar.encoding, tar.errors)  # type: ignore[attr-defined]
        member.offset = self.offset
        if "size" in headers:
            has_data = member.isreg() or member.type not in tarfile.SUPPORTED_TYPES
            tar.offset = member.offset_data + (self._block(member.size) if has_data else 0)  # type: ignore[attr-defined]
        if sparse:
            member.sparse = []  # type: ignore[assignment]
        return member

    def _records(self, tar: Any) -> dict[str, str]:
        data = tar.fileobj.read(self._block(self.size))[: self.size]  # type: ignore[attr-defined]
        found: list[tuple[str, bytes]] = []
        place = 0
        while place < len(data) and data[place]:
            blank = data.find(b" ", place, place + 9)
            digits = data[place : max(blank, 0)]
            end = place + int(digits) if digits.isdigit() else 0
            name, equals, value = data[blank + 1 : max(end - 1, 0)].partition(b"=")
            if not (name and equals) or end > len(data) or data[end - 1 : end] != b"\n":
                raise _InvalidHeader("an extended header that is none")
            try:
                found.append((name.decode(), value))
            except UnicodeDecodeError:
                raise _InvalidHeader("an extended header that is none") from None
            place = end
        binary = any(name == "hdrcharset" and value == b"BINARY" for name, value in found)
        return {name: _decoded(value, tar, binary and name in _NAMES) for name, value in found}


def _decoded(value: bytes, tar: tarfile.TarFile, binary: bool) -> str:
    try:
        return value.decode(tar.encoding or "utf-8" if binary else "utf-8")
    except UnicodeDecodeError:
        return value.decode(tar.encoding or "utf-8", "surrogateescape")


class _DamagedHeader(tarfile.ReadError):
    pass


_HeaderError = tarfile.HeaderError
_SubsequentHeader: type[tarfile.HeaderError] = getattr(tarfile, "SubsequentHeaderError")  # noqa: B009
_InvalidHeader: type[tarfile.HeaderError] = getattr(tarfile, "InvalidHeaderError")  # noqa: B009
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


class _Stream:
    """The bytes of a tar; of a compressed one they are unpacked a little at a time, and so many at most.

    tarfile skips a member that is longer than the tar by reading on at its end, without one: that is an error here.
    """

    def __init__(self, source: _Source, limits: Limits) -> None:
        self._source, self._most, self._given = source, limits.stream_bytes, 0
        self._rest = source.read(tarfile.BLOCKSIZE)
        self._packed = next((packed for packed in _PACKED if packed[0].match(self._rest)), None)
        self._one: Any = None if self._packed is None else self._packed[1]()
        self._ended = False

    def read(self, count: int) -> bytes:
        if self._ended:
            raise EOFError("it ends within a member")
        data = self._plain(count) if self._one is None else self._unpacked(count)
        self._ended = not data
        return data

    def _plain(self, count: int) -> bytes:
        rest, self._rest = self._rest, b""
        return rest or self._source.read(count)

    def _unpacked(self, count: int) -> bytes:
        while not self._one.eof or self._goes_on():
            try:
                data: bytes = self._one.decompress(self._rest, count)
            except (OSError, lzma.LZMAError, zlib.error) as error:
                raise tarfile.ReadError(f"compressed data that cannot be unpacked: {error}") from error
            self._rest = getattr(self._one, "unconsumed_tail", b"")
            if data:
                self._given += len(data)
                if self._given > self._most:
                    raise tarfile.ReadError(
                        f"more than {self._most} bytes once decompressed; more are read with --max stream-bytes=BYTES"
                    )
                return data
            if not self._rest and not self._one.eof:
                self._rest = self._source.read(_PACKED_CHUNK)
                if not self._rest:
                    raise EOFError("its compressed data ends early")
        return b""

    def _goes_on(self) -> bool:
        """Begin the next of several compressed streams, one after the other, where there is one."""
        rest = self._one.unused_data.lstrip(b"\0")
        while len(rest) < _LONGEST_MAGIC and (more := self._source.read(_PACKED_CHUNK)):
            rest = (rest + more).lstrip(b"\0")
        if self._packed is None or not self._packed[0].match(rest):
            return False
        self._one, self._rest = self._packed[1](), rest
        return True


@contextlib.contextmanager
def _reaching(url: str) -> Iterator[None]:
    try:
        yield
    except gzip.BadGzipFile:
        raise
    except OSError as error:
        advice = "bring it back" if isinstance(error, FileNotFoundError) else "fix that"
        raise ArchiveStoppedError(
            f"{url}: cannot be read: {error.strerror or error}; {advice} and run this again"
        ) from error


def _check_there(url: str, error: Exception) -> None:
    """Raise ArchiveStoppedError where a tar that seems damaged is gone."""
    if not Storage(url).exists():
        raise ArchiveStoppedError(f"{url}: is not there any more; bring it back and run this again") from error


def _changed(url: str) -> ShadeFastError:
    return ShadeFastError(
        f"{url}: holds other images than when they were protected; bring it back as it was, or give mode overwrite"
    )


def _members(url: str, limits: Limits) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members of a tar, read as a stream: each has to be read before the next is asked for."""
    with _reaching(url):
        file = Storage(url).open()
    with file:
        stream = _Stream(_Source(url, file), limits)
        with _open(stream, "r|", limits.header_bytes) as tar:
            for member in _each(tar):
                yield tar, member


def _open(file: Any, mode: str, header_bytes: int) -> Any:
    return _Tar.open(fileobj=file, mode=mode, tarinfo=_Member, header_bytes=header_bytes)  # type: ignore[call-overload]


def _each(tar: Any) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        yield member
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


def _key(member: tarfile.TarInfo) -> str:
    text = to_text(member.name)
    return text if len(text) <= _LONGEST_KEY else f"{text[:100]}... ({len(text)} characters)"


def _is_image(name: str) -> bool:
    _, dot, ending = PurePosixPath(name).name.partition(".")
    return f"{dot}{ending}".lower() in INPUT_SUFFIXES and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    # macOS writes ._photo.jpg beside photo.jpg.
    return PurePosixPath(name).name.startswith("._")
