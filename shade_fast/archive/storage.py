"""Where files are: a local folder or any fsspec URL, read and written so that a crash leaves a whole file or none."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from shade_fast.errors import ShadeFastError
from shade_fast.files import whole_file

#: Errors of the whole output, not of one file: a full disk, a quota, a disk gone or read-only.
STOPPING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ENODEV)
#: Bytes of a source's image that is refused unread: none of the pixels that are handled is as large.
LARGEST_FILE = 2 << 30
#: Where a local output keeps its record, its open work and its temporary files.
RECORD_FOLDER = "_shade_fast"


class ArchiveStoppedError(ShadeFastError):
    """A run cannot go on; what it did so far is recorded, and the same command continues."""


def is_local(url: str | os.PathLike[str]) -> bool:
    """Whether `url` is a path: it has no protocol, or names something that exists."""
    text = os.fspath(url)
    return isinstance(url, os.PathLike) or "://" not in text or os.path.lexists(text)


def too_large(name: str, size: int | None) -> str | None:
    """Why an image of so many bytes (None: unknown) is refused unread; None where it is not."""
    if size is None or size <= LARGEST_FILE:
        return None
    return f"{name}: {size} bytes; at most {LARGEST_FILE} are read"


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

    def read_image(self, name: str = "") -> bytes:
        """A source's image. Raises ShadeFastError for what is no file, as a pipe, and for more than LARGEST_FILE."""
        if self.local:
            facts = os.stat(self.path(name))
            if not stat.S_ISREG(facts.st_mode):
                raise ShadeFastError(f"{self.path(name)}: not a file")
        with self.open(name) as file:
            refusal = too_large(self.location(name), facts.st_size if self.local else getattr(file, "size", None))
            if refusal is not None:
                raise ShadeFastError(refusal)
            data: bytes = file.read()
        return data

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

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all in it; nothing where it is not there."""
        with contextlib.suppress(FileNotFoundError):
            if not self.local:
                self.fs.rm(self.path(name), recursive=True)
            elif os.path.isdir(self.path(name)) and not os.path.islink(self.path(name)):
                shutil.rmtree(self.path(name))
            else:
                os.unlink(self.path(name))

    def keep_temporary_files(self, folder: str) -> None:
        """Use a folder for what is being written, and clear it of what a killed run left in it."""
        if self.local:
            self.remove(folder)
            os.makedirs(self.path(folder), exist_ok=True)
            self._temporary = self.path(folder)

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all."""
        if self.local:
            with self.create(name) as file:
                file.write(data)
        else:
            self.fs.pipe_file(self.path(name), data)

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write in pieces, which is there under its name once the block has ended without an error."""
        path = self.path(name)
        if self.local:
            with whole_file(path, self._temporary) as file:
                yield file
            return
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            self.fs.put_file(file.name, path)
