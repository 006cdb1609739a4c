"""Processes of this interpreter's that work for the one that starts them: how they begin, and how they ended."""

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

    It finds the modules that this process finds. SIGINT and SIGTERM, which may be sent to all processes of a run, are
    left to this one. environment: what it has besides this one's.
    """
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    # The child has this thread's mask for good: a signal to all must not end it before it can look away.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {module} import main; main({descriptor}, {os.getpid()})"],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what libraries print is none of the parent's results
            env={**os.environ, "PYTHONPATH": paths, **environment},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End it at once, and wait for that, but not for ever: what a driver holds does not end even so."""
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
