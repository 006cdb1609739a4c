"""The process that decodes and encodes: a file or an image comes in, the result goes out, the next comes in.

The kernel ends it over an image that takes too much processor time, even inside a library's own code. Its memory is
limited, and it can write no file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import socket
import sys
import threading
import time
from io import BufferedReader
from pathlib import Path

from PIL import Image

from shade_fast.codecs.wire import Answer, Request, message, receive
from shade_fast.images import decode
from shade_fast.terms.errors import ShadeFastError, reason
from shade_fast.terms.limits import Limits

#: Seconds between checks that the parent is still there, for when its end does not close the connection.
LOOK = 2.0
#: The code it exits with where an image needs more memory than it may have.
SHORT_OF_MEMORY = errno.ENOMEM
#: prctl's number for PR_SET_NO_NEW_PRIVS: this process and those it becomes never gain rights.
NO_NEW_PRIVILEGES = 38


def main(descriptor: int, parent: int) -> None:
    """Answer a connection's requests, which follow the `Limits`, until that or the parent ends."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    connection = socket.socket(fileno=descriptor)
    stream = _Stream(connection.makefile("rb"))
    try:
        with contextlib.suppress(EOFError, ConnectionError):
            limits = receive(stream, Limits)
            _confine(limits)
            answer = Answer()
            while True:
                for buffer in message(answer):
                    connection.sendall(buffer)
                answer = _answer(receive(stream, Request), limits)
    except MemoryError:
        os._exit(SHORT_OF_MEMORY)


def _answer(asked: Request, limits: Limits) -> Answer:
    signal.setitimer(signal.ITIMER_PROF, limits.decode_seconds if asked.image is None else limits.encode_seconds)
    try:
        if asked.image is None or asked.output is None:
            return Answer(image=decode(asked.file or b"", asked.name, max_pixels=limits.pixels))
        return Answer(file=asked.output.encode(asked.image, asked.image.pixels, asked.jpeg))
    except MemoryError:
        raise
    except ShadeFastError as error:
        if isinstance(error.__cause__, MemoryError):
            raise error.__cause__ from error
        return Answer(refused=str(error))
    except Exception as error:  # whatever a hostile file makes a library raise
        return Answer(refused=f"{asked.name}: damaged, or not an image that can be read ({reason(error)})")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _confine(limits: Limits) -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    # An image's pixels are judged against the limits alone.
    Image.MAX_IMAGE_PIXELS = None
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + limits.decode_memory)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)


def _limit(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    most = min(most, sys.maxsize if hard == resource.RLIM_INFINITY else hard)
    resource.setrlimit(kind, (most, most))


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os._exit(0)


class _Stream:
    def __init__(self, file: BufferedReader) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def fill(self, buffer: memoryview) -> None:
        if self._file.readinto(buffer) < len(buffer):
            raise EOFError
