"""What runs in a worker's process."""

from __future__ import annotations

import math
import os
import pickle
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch

from shade_fast.anchors import Anchor
from shade_fast.engine import resolve_backend
from shade_fast.protect.batch import Protector
from shade_fast.protect.options import Options
from shade_fast.protect.outcome import Work
from shade_fast.system.pulse import listen
from shade_fast.terms.errors import ShadeFastError, reason
from shade_fast.workers.wire import PULSE, receive, send

#: Seconds between checks that the parent is still there, for when its end does not close the connection.
LOOK = 2.0
#: Seconds between two signs of life to the parent.
PULSE_SECONDS = 1.0


def main(descriptor: int, parent: int) -> None:
    """Protect the images that come over a connection, on one device, until that or the parent ends."""
    connection = Connection(descriptor)
    reader = _Reader(connection, parent)
    reader.start()
    options, device, threads = reader.messages.get()
    torch.set_num_threads(threads)
    try:
        protector = _protector(options, device)
    except Exception as error:  # whatever a caller's encoder raises
        send(connection, str(error) if isinstance(error, ShadeFastError) else reason(error))
        return
    reader.upload = protector.uploader.upload
    send(connection, None)
    listen(_Signs(connection))
    anchors: dict[int, Anchor] = {}
    while True:
        forget, new, images, output, pixels = reader.messages.get()
        if forget:
            anchors.clear()
        anchors |= new
        batch = [Work(image, anchors[anchor]) for image, anchor in images]
        protected = protector.protect_batch(batch, output, None if pixels is None else pixels())
        if protector.device.type == "cuda" and any(image.outcome.status == "failed" for image in protected):
            # Raises where a GPU's context is beyond repair: a new process takes over these images and the next.
            torch.cuda.synchronize(protector.device)
        send(connection, [(image.outcome, image.stored, image.jpeg) for image in protected])


def _protector(packed: Mapping[str, bytes], device: str) -> Protector:
    values: dict[str, Any] = {}
    for name, data in packed.items():
        try:
            values[name] = pickle.loads(data)
        except Exception as error:  # whatever an object's own unpickling raises
            raise ShadeFastError(
                f"{name}: cannot be made in a process of its own ({reason(error)}); several devices need classes and "
                "functions that stand in a module, not in the script that runs"
            ) from error
    options, place = Options(**values), torch.device(device)
    return Protector(options, place, resolve_backend(options.backend, place))


class _Signs:
    """Reports steps to the parent, but not each: one in `PULSE_SECONDS`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last = -math.inf

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._last >= PULSE_SECONDS:
            self._last = now
            self._connection.send_bytes(PULSE)


class _Reader(threading.Thread):
    """Reads ahead, and starts to copy what it has read to the device; ends the process with its connection."""

    def __init__(self, connection: Connection, parent: int) -> None:
        super().__init__(name="shade_fast-reader", daemon=True)
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.upload: Callable[..., Callable[[], torch.Tensor]] | None = None
        self._connection, self._parent = connection, parent

    def run(self) -> None:
        try:
            while True:
                while not self._connection.poll(LOOK):
                    if os.getppid() != self._parent:
                        os._exit(0)
                message = receive(self._connection)
                self.messages.put(message if self.upload is None else (*message, self._uploaded(message)))
        except (EOFError, OSError):
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _uploaded(self, message: Any) -> Callable[[], torch.Tensor] | None:
        try:
            return None if self.upload is None else self.upload([image.pixels for image, _ in message[2]])
        except (RuntimeError, MemoryError):
            return None  # no room beside the batch in work: copied when that is done
