"""What a worker and its parent say to each other: pickles, and signs of life."""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection
from typing import Any

#: What a worker sends as a sign of life.
PULSE = b""


def send(connection: Connection, message: Any) -> None:
    """Send a plain pickle: a connection's own puts tensors into shared memory, which ends with its owner."""
    connection.send_bytes(pickle.dumps(message, protocol=5))


def receive(connection: Connection) -> Any:
    """What `send` sent. Raises EOFError or OSError where the other side has ended."""
    return pickle.loads(connection.recv_bytes())
