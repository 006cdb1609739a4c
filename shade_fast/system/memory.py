"""How much memory the machine has left for this process, as Linux reports it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def free_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this process can take before the system, or one of its control groups, runs out of memory.

    Cached files that nobody has used for a while count as free. None where the system does not report it. proc,
    cgroups: where the system's files are.
    """
    left = [*_available(proc), *_left_in_groups(proc, cgroups)]
    return max(0, min(left)) if left else None


def _available(proc: Path) -> Iterator[int]:
    for key, value in _pairs(proc / "meminfo"):
        if key == "MemAvailable:":
            yield 1024 * value


def _left_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """The bytes left in each group: the process' own and those above it, of version 2 and of version 1."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        within = PurePosixPath("/", path).relative_to("/")
        for inside in (within, *within.parents):
            if number == "0" and not controllers:
                for top in (cgroups, cgroups / "unified"):
                    yield from _left(top / inside, "memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                yield from _left(cgroups / "memory" / inside, *names)


def _left(group: Path, most: str, used: str, idle: str) -> Iterator[int]:
    try:
        limit, usage = (group / most).read_text().strip(), int((group / used).read_text())
    except (OSError, ValueError):  # the topmost group has none
        return
    if limit.isdigit():
        yield int(limit) - usage + dict(_pairs(group / "memory.stat")).get(idle, 0)


def _pairs(file: Path) -> Iterator[tuple[str, int]]:
    """The lines of a file that begin with a name and a number."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        name, value, *_ = (*line.split(), "", "")
        if value.isdigit():
            yield name, int(value)
