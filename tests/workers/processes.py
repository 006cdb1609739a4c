"""Which processes are workers, as the system sees them."""

from __future__ import annotations

import time
from pathlib import Path


def workers_of(parent: int, module: bytes = b"shade_fast.workers") -> list[int]:
    """Processes of a room that this one started and that have not ended."""
    processes = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent_of_it = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z" and int(parent_of_it) == parent and module in (entry / "cmdline").read_bytes():
                processes.append(int(entry.name))
        except OSError:  # it has ended
            continue
    return sorted(processes)


def wait_until_gone(processes: list[int], seconds: float = 20) -> None:
    """Raises AssertionError where one is still there after so many seconds."""
    until = time.monotonic() + seconds
    while left := [process for process in processes if is_running(process)]:
        assert time.monotonic() < until, f"still running: {left}"
        time.sleep(0.05)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
