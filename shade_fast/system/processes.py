"""Processes of the same interpreter that work for their parent: how they begin, and how they ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

#: Seconds that a process has to end after it has closed its connection, or was killed.
GRACE = 5.0


def start(module: str, descriptor: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A process that runs a module's `main(descriptor, parent)`: its end of a connection, and this process's number.

    It imports modules from the same places. SIGINT and SIGTERM, which may reach all processes of a run, are left to the
    parent. environment: variables beside the parent's.
    """
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    # The child keeps this thread's signal mask: a signal to all must not end it before it ignores signals.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {module} import main; main({descriptor}, {os.getpid()})"],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what libraries print must not mix with the parent's results
            env={**os.environ, "PYTHONPATH": paths, **environment},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End it at once and wait for that, but not for ever: a process that a driver holds does not end."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)


def ended(process: subprocess.Popen[bytes]) -> str:
    """How it ended, waiting for it."""
    try:
        code = process.wait(GRACE)
    except subprocess.TimeoutExpired:
        kill(process)
        return "it closed its connection"
    if code >= 0:
        return f"it exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"it was ended by {name}" + (", as the system does where memory runs out" if name == "SIGKILL" else "")
