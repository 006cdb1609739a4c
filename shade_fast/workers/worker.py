"""A worker as its parent sees it: a process of its own that protects images on one device."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from shade_fast.anchors import Anchor
from shade_fast.encoders import Encoder
from shade_fast.errors import ShadeFastError, reason
from shade_fast.images import Output
from shade_fast.perceptual import Perceptual
from shade_fast.work import Protected, Work

#: Anchors that a worker keeps, with their latents; then it starts anew.
MOST_ANCHORS = 256
#: Seconds that a process has to end after it has closed its connection.
GRACE = 5.0


class CannotStartError(ShadeFastError):
    """A worker that has said why it cannot begin."""


class Worker:
    """A process on a device, started with its own interpreter. One thread of the parent's speaks with it.

    It ends with its connection: when this is killed, and when the parent is gone, however that ended. SIGINT and
    SIGTERM, which may be sent to all processes of a run, are left to the parent.

    device: its name. options: the Poisoner's, `packed`. threads: those of torch.
    """

    def __init__(self, device: str, options: Mapping[str, bytes], threads: int) -> None:
        self.device = device
        self._setup = (options, device, threads)
        self._anchors: dict[int, Anchor] = {}
        self._connection, theirs = Pipe()
        # The child has this thread's mask for good: a signal to all must not end it before it can look away.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-c",
                    f"from shade_fast.workers.process import main; main({theirs.fileno()}, {os.getpid()})",
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what networks print is none of the parent's results
                env=_environment(threads),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def start(self) -> None:
        """Let it load the networks, and wait for it. Raises CannotStartError, EOFError and OSError where it ended."""
        send(self._connection, self._setup)
        problem = receive(self._connection)
        if problem is not None:
            raise CannotStartError(problem)

    def send(self, works: Sequence[Work], output: Output | None) -> None:
        """Give it a batch of one size; it takes them in turn, and is sent the next while it works on one."""
        new = {id(work.anchor): work.anchor for work in works if id(work.anchor) not in self._anchors}
        forget = len(self._anchors) + len(new) > MOST_ANCHORS
        if forget:
            self._anchors, new = {}, {id(work.anchor): work.anchor for work in works}
        self._anchors |= new
        send(self._connection, (forget, new, [(work.image, id(work.anchor)) for work in works], output))

    def receive(self, works: Sequence[Work]) -> list[Protected]:
        """The outcomes of the batch that was sent first. Raises EOFError or OSError where the process has ended."""
        outcomes = receive(self._connection)
        return [Protected(work.image, *outcome) for work, outcome in zip(works, outcomes, strict=True)]

    def kill(self) -> None:
        """End it at once: all that it knows, its parent knows."""
        self.process.kill()
        self.process.wait()

    def ended(self) -> str:
        """How it ended, waiting for it."""
        try:
            code = self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.kill()
            return "it closed its connection"
        if code >= 0:
            return f"it exited with code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"it was ended by {name}" + (", as the system does where memory runs out" if name == "SIGKILL" else "")


def send(connection: Connection, message: Any) -> None:
    """Send a plain pickle: a connection's own puts tensors into shared memory, which ends with who put them there."""
    connection.send_bytes(pickle.dumps(message, protocol=5))


def receive(connection: Connection) -> Any:
    """What `send` sent. Raises EOFError or OSError where the other side has ended."""
    return pickle.loads(connection.recv_bytes())


def packed(options: Mapping[str, Any]) -> dict[str, bytes]:
    """The Poisoner's options as a worker is sent them. Raises ShadeFastError for one that cannot be pickled."""
    return {name: _pickled(name, _on_cpu(value)) for name, value in options.items()}


def _pickled(name: str, value: Any) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception as error:  # whatever an object's own pickling raises
        raise ShadeFastError(
            f"{name}: several devices have a process each, and this cannot be sent to them ({reason(error)}); give a "
            "name, a path, or an object of a class that stands in a module; or give one device"
        ) from error


def _on_cpu(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_on_cpu(one) for one in value]
    if isinstance(value, Encoder):
        return value.without_decoder().to("cpu")
    return value.to("cpu") if isinstance(value, Perceptual) else value


def _environment(threads: int) -> dict[str, str]:
    """What a worker finds: the parent's modules, its share of the threads, algorithms that no measurement chose."""
    own = {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path), "OMP_NUM_THREADS": str(threads)}
    return {"SHADE_FAST_PLAN": "fixed"} | os.environ | own
