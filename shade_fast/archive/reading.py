"""Images read from wherever they are: so many bytes, so many seconds, and again after what may pass."""

from __future__ import annotations

import errno
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from shade_fast.archive.http import fetch
from shade_fast.archive.storage import Storage
from shade_fast.codecs import Interrupted
from shade_fast.terms.errors import ShadeFastError, TransientError
from shade_fast.terms.limits import Access, Limits

#: Answers of servers, and errors of systems, that another try may not meet.
_PASSING_ANSWERS = (408, 425, 429, 500, 502, 503, 504)
_PASSING_ERRORS = (
    *(errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN),
    *(errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET, errno.ECONNREFUSED),
)
#: Seconds before the second try, doubled each time, and the most.
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0


class Reader:
    """Reads images within an archive's limits. stop: set from elsewhere, it ends a read with Interrupted at once."""

    def __init__(self, limits: Limits, access: Access, stop: threading.Event | None = None) -> None:
        self.limits, self.access = limits, access
        self.stop = stop or threading.Event()

    def image(self, storage: Storage, name: str = "") -> bytes:
        """A file below a folder, or one by itself."""
        return self._tried(lambda until: storage.read_image(name, self.limits.image_bytes, until))

    def url(self, url: str, own: Collection[str] = ()) -> bytes:
        """What a row's http or https URL names; own: see `http.fetch`."""
        most = self.limits.image_bytes
        return self._tried(lambda until: fetch(url, self.access, most, until, own, self.stop))

    def _tried(self, read: Callable[[float], bytes]) -> bytes:
        """Raises ShadeFastError and OSError for what stays, TransientError for what may pass and did not."""
        until = time.monotonic() + self.limits.read_seconds
        for number in range(self.access.retries + 1):
            try:
                return self._ended(lambda: read(until), until)
            except Exception as error:
                if self.stop.is_set():
                    raise Interrupted from error
                if not is_passing(error):
                    raise
                pause = min(_LONGEST_WAIT, _FIRST_WAIT * 2**number) * random.uniform(0.8, 1.2)
                if number == self.access.retries or time.monotonic() + pause > until:
                    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                    raise TransientError(f"{reason} (tried {number + 1} times)" if number else reason) from error
            if self.stop.wait(pause):
                raise Interrupted
        raise AssertionError

    def _ended(self, read: Callable[[], bytes], until: float) -> bytes:
        """What `read` returns, or raises; a read that hangs, as in a file system that is gone, is left behind."""
        results: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()

        def run() -> None:
            try:
                results.put(read())
            except BaseException as error:
                results.put(error)

        seconds = self.limits.read_seconds
        threading.Thread(target=run, name="shade_fast-read", daemon=True).start()
        while True:
            try:
                result = results.get(timeout=0.2)
            except queue.Empty:
                if self.stop.is_set():
                    raise Interrupted from None
                # What ends by itself at the deadline says more than that it was left behind.
                if time.monotonic() > until + 1:
                    raise TimeoutError(f"took over {seconds:g} s: --max read-seconds={2 * seconds:g}") from None
                continue
            if isinstance(result, BaseException):
                raise result
            return result


def is_passing(error: BaseException) -> bool:
    """Whether the same read may succeed later: time-outs, connections that break, servers that have too much to do."""
    if isinstance(error, ShadeFastError | FileNotFoundError | PermissionError):
        return isinstance(error, TransientError)
    answer: Any = getattr(error, "response", None)  # botocore's
    codes: list[Any] = [getattr(error, "code", None), getattr(error, "status", None)]
    if isinstance(answer, dict):
        codes.append(answer.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    known = [code for code in codes if isinstance(code, int)]
    if known:
        return any(code in _PASSING_ANSWERS for code in known)
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING_ERRORS:
        return True
    # The clients of stores have kinds of their own.
    return any(part in kind.__name__ for kind in type(error).__mro__ for part in ("Timeout", "ConnectionError"))
