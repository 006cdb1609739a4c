"""Local files that are there whole or not at all, also after a crash and beside others that write the same."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

#: Which rights new files go without. Reading it sets it for a moment, for all threads: so it is read once, before there
#: are others.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


def cache_folder() -> Path | None:
    """SHADE_FAST_CACHE, or ~/.cache/shade_fast; None where that is set to nothing, or the user has no home."""
    named = os.environ.get("SHADE_FAST_CACHE")
    if named is not None:
        return Path(named) if named else None
    try:
        return Path.home() / ".cache" / "shade_fast"
    except RuntimeError:
        return None


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], temporary_folder: str | None = None) -> Iterator[IO[bytes]]:
    """A file to write in pieces, which is there under its name once the block has ended without an error.

    Its folder is made where it is not there. temporary_folder: of the same disk, where it is until then; None for its
    own. Raises OSError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=temporary_folder or path.parent, prefix=".shade_fast-")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    entry = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file in one go, see `whole_file`. Raises OSError."""
    with whole_file(path) as file:
        file.write(data)
