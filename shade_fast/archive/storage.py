"""Where files are: a local folder or any fsspec URL, read and written so that a crash leaves a whole file or none."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from shade_fast.images import read_file
from shade_fast.system.files import scratch_folder, whole_file
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.text import without_secrets

#: Errors of the whole output, not of one file: a full disk, a quota, a disk gone or read-only.
STOPPING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ENODEV)
#: Bytes that are asked of a remote store at once.
_PIECE = 8 << 20
#: Where a local output keeps its record, its open work and its temporary files.
RECORD_FOLDER = "_shade_fast"
#: How tables' names end.
TABLE_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")


class ArchiveStoppedError(ShadeFastError):
    """A run cannot go on; what it did so far is recorded, and the same command continues."""

    @classmethod
    def unwritable(cls, out: str, error: OSError) -> ArchiveStoppedError:
        return cls(f"{out}: cannot be written: {error.strerror}; make room or fix the disk, and run this again")


def is_local(url: str | os.PathLike[str]) -> bool:
    """Whether `url` is a path: it has no protocol, or names something that exists."""
    text = os.fspath(url)
    return isinstance(url, os.PathLike) or "://" not in text or os.path.lexists(text)


def too_large(name: str, size: int | None, limit: int) -> str | None:
    """Why an image of so many bytes (None: unknown) is refused unread; None where it is not."""
    if size is None or size <= limit:
        return None
    return f"{name}: {size} bytes; at most {limit} are read: --max image-bytes={size}"


@dataclass(frozen=True)
class Facts:
    """What an output file gets of its source's: mode, and time where that is asked for; folders: modes of the folder
    that the source is in, of the one above, and so on."""

    mode: int
    folders: tuple[int, ...] = ()
    time_ns: int | None = None

    @classmethod
    def of(cls, path: str, depth: int, *, times: bool) -> Facts | None:
        """Those of a local file, of so many folders above it; None where it is not there. This user can always read
        what is written, and go on writing in its folders."""
        try:
            status = os.stat(path)
            folders = []
            for _ in range(depth):
                path = os.path.dirname(path)
                folders.append(stat.S_IMODE(os.stat(path).st_mode) & 0o777 | 0o700)
        except (OSError, ValueError):
            return None
        return cls(stat.S_IMODE(status.st_mode) & 0o777 | 0o400, tuple(folders), status.st_mtime_ns if times else None)


def hidden(url: str, key: bytes) -> str:
    """A URL without user, password, query and fragment; what was left out is a hash under a key, by which the same URL
    is known again."""
    shown = without_secrets(url)
    if shown == url:
        return url
    mark = "#" if shown.endswith("…") else "?…#"
    return f"{shown}{mark}{hashlib.blake2b(url.encode(errors='surrogateescape'), key=key, digest_size=8).hexdigest()}"


def is_hidden(source: str) -> bool:
    """Whether a record's text of a place is a URL that `hidden` left something out of."""
    return re.search(r"\?…#[0-9a-f]{16}$", source) is not None


class Storage:
    """A folder, by path or URL. Names below it have slashes; local ones may hold bytes that are no text.

    Raises ShadeFastError for a protocol that is unknown or whose package is missing.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.local = is_local(url) or os.fspath(url).startswith(("file://", "local://"))
        text = os.fspath(url)
        self.fs: Any
        if is_local(url):
            self.fs, self.root = LocalFileSystem(), os.path.abspath(text)
        else:
            try:
                self.fs, self.root = url_to_fs(text)
            except (ImportError, ValueError) as error:
                raise ShadeFastError(f"{text}: {error}; install the protocol's package, or correct the URL") from error
        self.url = self.root if self.local else text if text.endswith("://") or "::" in text else text.rstrip("/")
        self._temporary: str | None = None

        #: what URLs are hashed with where their secrets are left out, see `hidden`
        self.key = b""

    @classmethod
    def beside(cls, other: Storage, path: str) -> Storage:
        """Another file of the same store, by its path there; no part of the path is taken for a URL."""
        storage = cls.named(path, local=True)
        storage.local, storage.fs, storage.url = other.local, other.fs, path
        if not other.local:
            _, chain, rest = other.url.partition("::")
            storage.url = str(other.fs.unstrip_protocol(path)) + chain + rest
        return storage

    @classmethod
    def named(cls, url: str, *, local: bool = False) -> Storage:
        """A place that is only named, not reached (a URL), or a local path that is no URL whatever it looks like."""
        storage = cls.__new__(cls)
        storage.local, storage.fs, storage.root, storage.url = local, LocalFileSystem() if local else None, url, url
        storage._temporary, storage.key = None, b""
        return storage

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.url,)

    def path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def location(self, name: str) -> str:
        """What to call a file in messages and rows: its path or URL."""
        if self.local or not name:
            return self.path(name) if self.local else self.url
        # In a chained URL (zip://folder::https://host/a.zip) a name belongs to the first of the chain.
        first, chain, rest = self.url.partition("::")
        return f"{first}{'' if first.endswith('/') else '/'}{name}{chain}{rest}"

    def open(self, name: str = "") -> Any:
        return open(self.path(name), "rb") if self.local else self.fs.open(self.path(name), "rb")

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            data: bytes = file.read()
        return data

    def read_image(self, name: str, limit: int, deadline: float = math.inf) -> bytes:
        """A source's image. Raises ShadeFastError for what is no file, as a pipe, and for more than `limit` bytes, and
        TimeoutError once `time.monotonic` is over the deadline."""
        if self.local:
            return read_file(self.path(name), limit)
        data = bytearray()
        with self.open(name) as file:
            while True:
                refusal = too_large(self.location(name), max(len(data), getattr(file, "size", None) or 0), limit)
                if refusal is not None:
                    raise ShadeFastError(refusal)
                if time.monotonic() > deadline:
                    raise TimeoutError("took too long; --max read-seconds=SECONDS allows more")
                piece = file.read(min(limit + 1 - len(data), _PIECE))
                if not piece:
                    return bytes(data)
                data += piece

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        try:
            if self.local:
                status = os.stat(self.path(name))
                return status.st_size if os.path.isfile(self.path(name)) else None
            facts = self.fs.info(self.path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return int(facts["size"] or 0) if facts["type"] == "file" else None

    def exists(self, name: str = "") -> bool:
        return os.path.lexists(self.path(name)) if self.local else bool(self.fs.exists(self.path(name)))

    def names(self, folder: str) -> list[str]:
        """The files of a folder, sorted, without those in folders below it; none where it is not there."""
        try:
            entries = self.fs.ls(self.path(folder), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file")

    def folders(self, folder: str) -> list[str]:
        """The folders of a folder, sorted; none where it is not there."""
        try:
            entries = self.fs.ls(self.path(folder), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")

    def is_folder(self, name: str) -> bool:
        """Whether there is a folder, or what an object store shows as one."""
        if self.local:
            return os.path.isdir(self.path(name)) and not os.path.islink(self.path(name))
        return bool(self.fs.isdir(self.path(name)))

    def remove_file(self, name: str) -> None:
        """Remove one file; nothing where it is not there. A folder is never removed: IsADirectoryError."""
        with contextlib.suppress(FileNotFoundError):
            if self.local:
                os.unlink(self.path(name))
            elif self.is_folder(name):
                raise IsADirectoryError(errno.EISDIR, "is a folder", self.path(name))
            else:
                self.fs.rm_file(self.path(name))

    def remove_record(self, name: str) -> None:
        """Remove a file or a folder of the record with all in it; nothing where it is not there."""
        if not name.startswith(f"{RECORD_FOLDER}/") or ".." in name.split("/"):
            raise ValueError(f"{name}: not below {RECORD_FOLDER}")
        with contextlib.suppress(FileNotFoundError):
            if not self.local:
                self.fs.rm(self.path(name), recursive=True)
            elif self.is_folder(name):
                shutil.rmtree(self.path(name))
            else:
                os.unlink(self.path(name))

    def move_record(self, name: str, to: str) -> None:
        """Move a folder of the record; nothing where it is not there."""
        if self.local:
            if os.path.isdir(self.path(name)):
                os.makedirs(os.path.dirname(self.path(to)), exist_ok=True)
                os.rename(self.path(name), self.path(to))
        elif self.fs.exists(self.path(name)):
            self.fs.mv(self.path(name), self.path(to), recursive=True)

    def keep_temporary_files(self, folder: str) -> None:
        """Use a folder for what is being written, and clear it of what a killed run left in it."""
        if self.local:
            self.remove_record(folder)
            os.makedirs(self.path(folder), exist_ok=True)
            self._temporary = self.path(folder)

    def write(self, name: str, data: bytes, facts: Facts | None = None) -> None:
        """Write a file whole or not at all; facts: those of the file that it is made of."""
        if self.local:
            with self.create(name, facts) as file:
                file.write(data)
        else:
            self.fs.pipe_file(self.path(name), data)

    @contextlib.contextmanager
    def create(self, name: str, facts: Facts | None = None) -> Iterator[IO[bytes]]:
        """A file to write in pieces, which is there under its name once the block has ended without an error."""
        path = self.path(name)
        if self.local:
            if facts is not None:
                self._make_folders(name, facts)
            with whole_file(path, self._temporary, None if facts is None else facts.mode) as file:
                yield file
            if facts is not None and facts.time_ns is not None:
                os.utime(path, ns=(facts.time_ns, facts.time_ns))
            return
        with tempfile.NamedTemporaryFile(dir=scratch_folder()) as file:
            yield file
            file.flush()
            self.fs.put_file(file.name, path)

    def _make_folders(self, name: str, facts: Facts) -> None:
        """Make the folders that a file lies in, with the permissions of those that it came from."""
        parts = name.split("/")[:-1]
        for count in range(len(parts) + 1):
            path = self.path("/".join(parts[:count]))
            if os.path.isdir(path):
                continue
            above = len(parts) - count
            if above >= len(facts.folders):
                os.makedirs(path, exist_ok=True)
                continue
            with contextlib.suppress(FileExistsError):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.mkdir(path, 0o700)
                os.chmod(path, facts.folders[above])
