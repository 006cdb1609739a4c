"""Tar files of other people, read as streams within limits: what tarfile would keep, expand or take for their end."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import math
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from shade_fast.archive.storage import ArchiveStoppedError, Storage
from shade_fast.terms.limits import Limits

#: Extended headers one after the other, and bytes of the global ones together, each of which goes for every member.
_CHAIN, _GLOBAL = 32, 4096
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
#: What reading a damaged tar raises.
DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


def members_of(url: str, limits: Limits) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members of a tar, read as a stream: each has to be read before the next is asked for."""
    with _reaching(url):
        file = Storage(url).open()
    with file:
        stream = _Stream(_Source(url, file), limits)
        with open_tar(stream, "r|", limits.header_bytes) as tar:
            for member in each_member(tar):
                yield tar, member


def open_tar(file: Any, mode: str, header_bytes: int) -> Any:
    """A tar that is read within limits; modes are tarfile's."""
    return _Tar.open(fileobj=file, mode=mode, tarinfo=_Member, header_bytes=header_bytes)  # type: ignore[call-overload]


def each_member(tar: Any) -> Iterator[tarfile.TarInfo]:
    """The members of an open tar, which tarfile would keep all."""
    for member in tar:
        yield member
        tar.members = []


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
        records: list[tuple[str, bytes]] = []
        place = 0
        while place < len(data) and data[place]:
            blank = data.find(b" ", place, place + 9)
            digits = data[place : max(blank, 0)]
            end = place + int(digits) if digits.isdigit() else 0
            name, equals, value = data[blank + 1 : max(end - 1, 0)].partition(b"=")
            if not (name and equals) or end > len(data) or data[end - 1 : end] != b"\n":
                raise _InvalidHeader("an extended header that is none")
            try:
                records.append((name.decode(), value))
            except UnicodeDecodeError:
                raise _InvalidHeader("an extended header that is none") from None
            place = end
        binary = any(name == "hdrcharset" and value == b"BINARY" for name, value in records)
        return {name: _decoded(value, tar, binary and name in _NAMES) for name, value in records}


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
        self._unpacker: Any = None if self._packed is None else self._packed[1]()
        self._ended = False

    def read(self, count: int) -> bytes:
        if self._ended:
            raise EOFError("it ends within a member")
        data = self._plain(count) if self._unpacker is None else self._unpacked(count)
        self._ended = not data
        return data

    def _plain(self, count: int) -> bytes:
        rest, self._rest = self._rest, b""
        return rest or self._source.read(count)

    def _unpacked(self, count: int) -> bytes:
        while not self._unpacker.eof or self._goes_on():
            try:
                data: bytes = self._unpacker.decompress(self._rest, count)
            except (OSError, lzma.LZMAError, zlib.error) as error:
                raise tarfile.ReadError(f"compressed data that cannot be unpacked: {error}") from error
            self._rest = getattr(self._unpacker, "unconsumed_tail", b"")
            if data:
                self._given += len(data)
                if self._given > self._most:
                    raise tarfile.ReadError(
                        f"more than {self._most} bytes once decompressed; more are read with --max stream-bytes=BYTES"
                    )
                return data
            if not self._rest and not self._unpacker.eof:
                self._rest = self._source.read(_PACKED_CHUNK)
                if not self._rest:
                    raise EOFError("its compressed data ends early")
        return b""

    def _goes_on(self) -> bool:
        """Begin the next of several compressed streams, one after the other, where there is one."""
        rest = self._unpacker.unused_data.lstrip(b"\0")
        while len(rest) < _LONGEST_MAGIC and (more := self._source.read(_PACKED_CHUNK)):
            rest = (rest + more).lstrip(b"\0")
        if self._packed is None or not self._packed[0].match(rest):
            return False
        self._unpacker, self._rest = self._packed[1](), rest
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


def check_there(url: str, error: Exception) -> None:
    """Raise ArchiveStoppedError where a tar that seems damaged is gone."""
    if not Storage(url).exists():
        raise ArchiveStoppedError(f"{url}: is not there any more; bring it back and run this again") from error
