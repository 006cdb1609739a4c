"""A worker as its parent sees it: a process of its own that protects images on one device."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import Pipe
from typing import Any

from shade_fast.anchors import Anchor
from shade_fast.encoders import Encoder
from shade_fast.images import Output
from shade_fast.perceptual import Perceptual
from shade_fast.protect.options import Options
from shade_fast.protect.outcome import Protected, Work
from shade_fast.system.processes import ended, kill, start
from shade_fast.terms.errors import ShadeFastError, reason
from shade_fast.terms.options import names_of
from shade_fast.workers.wire import PULSE, send

#: Anchors that a worker keeps, with their latents; then it starts anew.
MOST_ANCHORS = 256
#: At least so many seconds are allowed until a process's first sign of life: it imports modules and loads networks.
LEAST_START = 60.0


class CannotStartError(ShadeFastError):
    """A worker that has said why it cannot begin."""


class StalledError(OSError):
    """A worker that no longer takes or sends anything, though its process exists."""


class Worker:
    """A process on a device, started with its own interpreter. One thread of the parent talks to it.

    It ends with its connection: when `kill` is called, and when the parent is gone, however that ended. SIGINT and
    SIGTERM, which may be sent to all processes of a run, are left to the parent.

    device: its name. options: `packed`. threads: those of torch. stall_seconds: without a step, after
    which it counts as hung.
    """

    def __init__(self, device: str, options: Mapping[str, bytes], threads: int, stall_seconds: float = 900.0) -> None:
        self.device = device
        self._stall_seconds = stall_seconds
        self._setup = (options, device, threads)
        self._anchors: dict[int, Anchor] = {}
        self._connection, theirs = Pipe()
        with theirs:
            self.process = start("shade_fast.workers.process", theirs.fileno(), _environment(threads))

    def start(self) -> None:
        """Let it load the networks, and wait for it.

        Raises CannotStartError, EOFError and OSError where it ended, StalledError where it hangs.
        """
        self._wait_at_most(max(self._stall_seconds, LEAST_START))
        self._send(self._setup)
        problem = self._answer()
        if problem is not None:
            raise CannotStartError(problem)
        self._wait_at_most(self._stall_seconds)

    def send(self, works: Sequence[Work], output: Output | None) -> None:
        """Give it a batch of one size; it takes them in turn, and is sent the next while it works on one.

        Raises OSError where the process has ended, StalledError where it hangs.
        """
        new = {id(work.anchor): work.anchor for work in works if id(work.anchor) not in self._anchors}
        forget = len(self._anchors) + len(new) > MOST_ANCHORS
        if forget:
            self._anchors, new = {}, {id(work.anchor): work.anchor for work in works}
        self._anchors |= new
        self._send((forget, new, [(work.image, id(work.anchor)) for work in works], output))

    def receive(self, works: Sequence[Work]) -> list[Protected]:
        """The outcomes of the batch that was sent first.

        Raises EOFError or OSError where the process has ended, StalledError where it takes no step any more.
        """
        outcomes = self._answer()
        return [Protected(work.image, *outcome) for work, outcome in zip(works, outcomes, strict=True)]

    def kill(self) -> None:
        """End it at once: it holds nothing that its parent lacks."""
        kill(self.process)

    def ended(self) -> str:
        """How it ended, waiting for it."""
        return ended(self.process)

    def _wait_at_most(self, seconds: float) -> None:
        """Limit the silence of the connection. The system's own timeout is used, because it stops while the machine
        sleeps."""
        whole, rest = divmod(min(seconds, 1e9), 1)
        bound = struct.pack("@ll", int(whole), max(1, int(1e6 * rest)))
        with socket.fromfd(self._connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as end:
            end.setblocking(True)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bound)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bound)
        self._silence = seconds

    def _send(self, message: Any) -> None:
        with self._watched():
            send(self._connection, message)

    def _answer(self) -> Any:
        """Its next message, past the signs of life."""
        with self._watched():
            while (data := self._connection.recv_bytes()) == PULSE:
                pass
        return pickle.loads(data)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError as error:
            raise StalledError(f"no step for {self._silence:g} s; it counts as hung") from error


def packed(options: Options) -> dict[str, bytes]:
    """Options as a worker is sent them. Raises ShadeFastError for one that cannot be pickled."""
    return {name: _pickled(name, _on_cpu(getattr(options, name))) for name in names_of(Options)}


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
        return [_on_cpu(item) for item in value]
    if isinstance(value, Encoder):
        return value.without_decoder().to("cpu")
    return value.to("cpu") if isinstance(value, Perceptual) else value


def _environment(threads: int) -> dict[str, str]:
    """A worker's own variables: its share of the threads, and algorithms that are not chosen by measurement."""
    return {"OMP_NUM_THREADS": str(threads), "SHADE_FAST_PLAN": os.environ.get("SHADE_FAST_PLAN", "fixed")}
