"""Local files that are there whole or not at all, also after a crash or with several writers."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

#: The umask. Reading it sets it for a moment, for all threads, so it is read once, before other threads start.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


#: How the folders of `scratch_folder` begin, and seconds in which a new one may not be held yet.
_SCRATCH, _FRESH = "shade_fast-scratch-", 5.0


def cache_folder() -> Path | None:
    """SHADE_FAST_CACHE, or ~/.cache/shade_fast; None where the variable is empty, or the user has no home."""
    named = os.environ.get("SHADE_FAST_CACHE")
    if named is not None:
        return Path(named) if named else None
    try:
        return Path.home() / ".cache" / "shade_fast"
    except RuntimeError:
        return None


@contextlib.contextmanager
def whole_file(
    path: str | os.PathLike[str], temporary_folder: str | None = None, mode: int | None = None
) -> Iterator[IO[bytes]]:
    """A file to write in pieces, which gets its name once the block has ended without an error.

    Its folder is created if missing. temporary_folder: where it lies until then, on the same disk; None for its own
    folder. mode: permissions, by default those of new files. Raises OSError.
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
        temporary.chmod(0o666 & ~_UMASK if mode is None else mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    entry = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


@functools.cache
def scratch_folder() -> str:
    """This process's folder for temporary files; removed when it ends or, if it is killed, when the next one starts."""
    folder = tempfile.mkdtemp(prefix=_SCRATCH)
    held = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(held, fcntl.LOCK_EX)  # for as long as the process lives
    atexit.register(_end_scratch, folder, os.getpid())
    for left in Path(folder).parent.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):
            _remove_left(left)
    return folder


def _end_scratch(folder: str, process: int) -> None:
    if os.getpid() == process:  # not in a child that was forked
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left(folder: Path) -> None:
    """Remove the folder of a killed process: one that is neither locked nor new. Raises OSError."""
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or time.time() - facts.st_ctime < _FRESH:
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(descriptor)


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file in one go, see `whole_file`. Raises OSError."""
    with whole_file(path) as file:
        file.write(data)
