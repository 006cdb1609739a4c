"""The codecs: any thread hands in files and images, whichever process is free takes them and returns the results."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from shade_fast.codecs.process import SHORT_OF_MEMORY
from shade_fast.codecs.wire import Answer, Request, message, receive
from shade_fast.images import INPUT_FORMATS, DecodedImage, Output, UInt8Array
from shade_fast.images.jpeg import JpegSettings
from shade_fast.system.processes import ended, kill, start
from shade_fast.terms.errors import ShadeFastError, TransientError
from shade_fast.terms.limits import Limits

#: Seconds between two looks whether a caller still wants an answer.
SLICE = 0.1
#: Seconds by the clock for each second of processor time that an image may take.
CLOCK = 3
#: Seconds by the clock that a process may take to start.
START_SECONDS = 60.0


class DeadlineError(TransientError):
    """An image that takes longer to decode or to encode than it may."""


class CodecDiedError(TransientError):
    """An image over which the process that was to decode or encode it died."""


class Interrupted(Exception):  # noqa: N818
    """A call that was given up: its `stop` was set, or the codecs were closed."""


class _LateError(Exception):
    pass


class Codecs:
    """Decodes and encodes in processes of its own, at most `count` at once, from any number of threads.

    A process is started when there is an image and none is free, and kept. One that dies over an image, or is ended
    because that takes too long, is replaced. `close`, or the end of a `with`, ends them all.
    """

    def __init__(self, limits: Limits, count: int) -> None:
        self._limits, self._count = limits, count
        self._slots = threading.Semaphore(count)
        self._idle: deque[_Process] = deque()
        self._closed = threading.Event()

    def __enter__(self) -> Codecs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def decode(self, data: bytes, name: str, stop: threading.Event | None = None) -> DecodedImage:
        """A file's bytes decoded, as by `images.decode`.

        Raises its ShadeFastErrors; another for an image that needs more memory than it may use; DeadlineError;
        CodecDiedError; and Interrupted within half a second of `stop`.
        """
        image = self._ask(Request(name, data), "decode", stop).image
        assert image is not None
        return image

    def encode(
        self,
        output: Output,
        image: DecodedImage,
        pixels: UInt8Array,
        jpeg: JpegSettings | None = None,
        stop: threading.Event | None = None,
    ) -> bytes:
        """An image and its pixels [H, W, 3] encoded, as by `output.encode`. Raises what `decode` does."""
        shown = dataclasses.replace(image, pixels=pixels)
        asked = Request(image.name, image=shown, output=output, jpeg=jpeg)
        file = self._ask(asked, "encode", stop).file
        assert file is not None
        return file

    def close(self) -> None:
        """End all processes. Calls that wait for one raise Interrupted, as do later ones."""
        if not self._closed.is_set():
            self._closed.set()
            for _ in range(self._count):
                self._slots.acquire()
            while self._idle:
                self._idle.pop().kill()

    def _ask(self, asked: Request, verb: str, stop: threading.Event | None) -> Answer:
        def stopped() -> bool:
            return self._closed.is_set() or (stop is not None and stop.is_set())

        buffers = message(asked)
        seconds: float = getattr(self._limits, f"{verb}_seconds")
        while not self._slots.acquire(timeout=SLICE):
            if stopped():
                raise Interrupted
        try:
            process = self._free()
            try:
                answer = process.ask(buffers, seconds, stopped)
                _check(answer, asked, self._limits)
            except BaseException as error:
                problem = self._problem(error, process, asked.name, verb, seconds)
                process.kill()
                if problem is None:
                    raise
                raise problem from error
            self._idle.append(process)
        finally:
            self._slots.release()
        if answer.refused is not None:
            raise ShadeFastError(answer.refused)
        return answer

    def _free(self) -> _Process:
        with contextlib.suppress(IndexError):
            while True:
                process = self._idle.pop()
                if process.is_running():
                    return process
                process.kill()
        try:
            return _Process(self._limits)
        except OSError as error:
            raise TransientError(f"no process to decode in could be started: {error.strerror}") from error

    def _problem(
        self, error: BaseException, process: _Process, name: str, verb: str, seconds: float
    ) -> ShadeFastError | None:
        """What an error while talking to a process means; None where it has nothing to do with the image."""
        doing = f"{verb[:-1]}ing"
        fix = f"give --max {verb}-seconds={2 * seconds:g} or leave this image out"
        if isinstance(error, _LateError):
            return DeadlineError(f"{name}: {doing} took over {CLOCK * seconds:g} s by the clock; {fix}")
        if isinstance(error, ValueError):
            return CodecDiedError(f"{name}: {doing} ended in an answer that makes no sense; leave this image out")
        if not isinstance(error, EOFError | ConnectionError):
            return None
        how, code = ended(process.process), process.process.returncode
        if code == -signal.SIGPROF:
            return DeadlineError(f"{name}: {doing} took over {seconds:g} s of processor time; {fix}")
        if code == SHORT_OF_MEMORY:
            most = self._limits.decode_memory / (1 << 20)
            return ShadeFastError(
                f"{name}: {doing} needs more than {most:,.0f} MiB of memory; give --max "
                f"decode-memory={2 * most:.0f}M or leave this image out"
            )
        return CodecDiedError(f"{name}: {doing} ended with the process that did it: {how}; leave this image out")


def _check(answer: Answer, asked: Request, limits: Limits) -> None:
    """Raises ValueError for an answer that a sound process never gives."""
    if answer.refused is not None:
        return
    if asked.image is not None:
        sound = bool(answer.file)
    else:
        image = answer.image
        sound = (
            image is not None
            and image.name == (asked.name or "bytes")
            and image.pixels.shape[2:] == (3,)
            and math.prod(image.pixels.shape[:2]) <= limits.pixels
            and (image.alpha is None or image.alpha.shape == image.pixels.shape[:2])
            and image.orientation in range(1, 9)
            and image.format in INPUT_FORMATS
            and (image.jpeg is None or _is_sound(image.jpeg))
        )
    if not sound:
        raise ValueError("no sound answer")


def _is_sound(jpeg: JpegSettings) -> bool:
    tables = (jpeg.luminance, jpeg.chrominance)
    return jpeg.subsampling in range(3) and all(
        len(table) == 64 and all(value in range(1, 256) for value in table) for table in tables
    )


class _Process:
    """A process that one thread at a time talks to."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._is_ready = False
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(SLICE)
        with theirs:
            # Libraries' warnings are for programmers; what is wrong with an image is in its error.
            environment = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
            self.process = start("shade_fast.codecs.process", theirs.fileno(), environment)

    def ask(self, buffers: list[memoryview], seconds: float, stopped: Callable[[], bool]) -> Answer:
        """Its answer. Raises EOFError or ConnectionError where it has ended, ValueError for anything else, _LateError
        and Interrupted."""
        if not self._is_ready:
            self._talk(message(self._limits), START_SECONDS, stopped)
            self._is_ready = True
        return self._talk(buffers, CLOCK * seconds, stopped)

    def is_running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self._socket.close()
        kill(self.process)

    def read(self, size: int) -> bytes:
        buffer = bytearray(size)
        self.fill(memoryview(buffer))
        return bytes(buffer)

    def fill(self, buffer: memoryview) -> None:
        while buffer:
            count = self._patiently(self._socket.recv_into, buffer)
            if count == 0:
                raise EOFError
            buffer = buffer[count:]

    def _talk(self, buffers: list[memoryview], seconds: float, stopped: Callable[[], bool]) -> Answer:
        self._until, self._stopped = time.monotonic() + seconds, stopped
        for buffer in buffers:
            while buffer:
                buffer = buffer[self._patiently(self._socket.send, buffer) :]
        return receive(self, Answer, self._limits.decode_memory)

    def _patiently(self, step: Callable[[memoryview], int], buffer: memoryview) -> int:
        while True:
            if self._stopped():
                raise Interrupted
            if time.monotonic() > self._until:
                raise _LateError
            with contextlib.suppress(TimeoutError):
                return step(buffer)
