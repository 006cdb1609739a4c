"""One HTTP resource that a row names, fetched so that it can lead nowhere else: addresses checked as they are connected
to, redirects only within what is allowed, so many bytes, so many seconds."""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection
from typing import Any

from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.limits import Access, is_public
from shade_fast.terms.version import __version__

_CHUNK = 1 << 16


def fetch(
    url: str,
    access: Access,
    limit: int,
    deadline: float,
    own: Collection[str] = (),
    stop: threading.Event | None = None,
) -> bytes:
    """The body of a GET, at most `limit` bytes.

    own: `scheme://host:port` of places that the run itself names, which may be anywhere. deadline: of `time.monotonic`.
    stop: set from elsewhere, it ends the fetch with an error.
    Raises ShadeFastError for a place that is not allowed and for a larger body, OSError for what goes wrong on the way
    (urllib's HTTPError for an answer that is no success).
    """
    _check(url, access, own)
    parts = urllib.parse.urlsplit(url)
    headers = {"User-Agent": f"shade_fast/{__version__}", "Accept": "image/*, */*;q=0.1", "Accept-Encoding": "identity"}
    request = urllib.request.Request(
        urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")), headers=headers
    )
    if "@" in parts.netloc:
        user, _, password = (urllib.parse.unquote(part) for part in parts.netloc.rpartition("@")[0].partition(":"))
        token = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
        request.add_unredirected_header("Authorization", f"Basic {token}")
    watch = _Watch(deadline, stop)
    # No proxy of the environment: it would connect to addresses in this process's stead, unchecked.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        _Http(access, own, watch),
        _Https(access, own, watch),
        _Redirects(access, own),
    )
    body = bytearray()
    try:
        with opener.open(request, timeout=_left(deadline, access)) as answer:
            declared = answer.headers.get("Content-Length", "")
            if declared.isdigit() and int(declared) > limit:
                raise ShadeFastError(f"{url}: {declared} bytes; at most {limit} are read: --max image-bytes={declared}")
            while True:
                _left(deadline, access)
                chunk = answer.read1(_CHUNK)
                if not chunk:
                    break
                body += chunk
                if len(body) > limit:
                    raise ShadeFastError(f"{url}: over {limit} bytes; no more are read: --max image-bytes={2 * limit}")
            if watch.fired:
                raise TimeoutError("took too long; --max read-seconds=SECONDS allows more")
            if declared.isdigit() and len(body) < int(declared):
                raise ConnectionError(f"the connection ended after {len(body)} of {declared} bytes")
    except (OSError, http.client.HTTPException) as error:
        _left(deadline, access)
        if isinstance(error, http.client.HTTPException):
            raise ConnectionError(f"the answer is damaged ({type(error).__name__})") from error
        reason = getattr(error, "reason", None)
        if isinstance(reason, OSError | ShadeFastError):
            raise reason from error
        raise
    finally:
        watch.end()
    return bytes(body)


def place_of(url: str) -> str:
    """`scheme://host:port` of a URL."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme.lower()}://{(parts.hostname or '').lower()}:{parts.port or _PORTS.get(parts.scheme.lower())}"


_PORTS = {"http": 80, "https": 443}


def _left(deadline: float, access: Access) -> float:
    """Seconds that the next answer may take."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("took too long; --max read-seconds=SECONDS allows more")
    return min(left, access.timeout)


def _check(url: str, access: Access, own: Collection[str]) -> None:
    """Raise ShadeFastError for a protocol or a host that is not allowed."""
    try:
        parts = urllib.parse.urlsplit(url)
        place = place_of(url)
    except ValueError as error:
        raise ShadeFastError(f"{url}: not a URL ({error})") from error
    if place not in own and parts.scheme.lower() not in access.protocols:
        raise ShadeFastError(
            f"{url}: {parts.scheme} is not allowed for rows; --allow-protocols {parts.scheme} allows it"
        )
    if not parts.hostname:
        raise ShadeFastError(f"{url}: names no host")


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 5

    def __init__(self, access: Access, own: Collection[str]) -> None:
        self.access, self.own = access, own

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        _check(newurl, self.access, self.own)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _connected(host: str, port: int, timeout: float, access: Access, trusted: bool) -> socket.socket:
    """A connection to the host at an address that is allowed: the very address that was checked."""
    refused = None
    problem: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not (trusted or access.private_hosts or is_public(str(address[0]))):
            refused = str(address[0])
            continue
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(timeout)
            connection.connect(address)
        except OSError as error:
            connection.close()
            problem = error
            continue
        return connection
    if refused is not None:
        raise ShadeFastError(
            f"{host}: is at {refused}, a loopback, link-local or private address; --allow-private lets rows reach those"
        )
    raise problem or ConnectionError(f"{host}: has no address")


class _Watch(threading.Thread):
    """Ends the connections of a fetch at its deadline, or once the run is to stop: a place that sends a byte now and
    then runs into no time-out of a socket."""

    def __init__(self, deadline: float, stop: threading.Event | None) -> None:
        super().__init__(name="shade_fast-fetch", daemon=True)
        self._deadline, self._stop_run = deadline, stop
        self._sockets: list[socket.socket] = []
        self._done = threading.Event()
        self.fired = False
        self.start()

    def add(self, connection: socket.socket) -> None:
        self._sockets.append(connection)

    def end(self) -> None:
        self._done.set()

    def run(self) -> None:
        while not self._done.wait(0.2):
            if time.monotonic() > self._deadline or (self._stop_run is not None and self._stop_run.is_set()):
                self.fired = True
                for connection in list(self._sockets):
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)


class _Connection(http.client.HTTPConnection):
    access: Access
    trusted: bool
    watch: _Watch

    def connect(self) -> None:
        timeout = self.timeout if isinstance(self.timeout, int | float) else self.access.timeout
        self.sock = _connected(self.host, self.port, timeout, self.access, self.trusted)
        self.watch.add(self.sock)


class _SecureConnection(http.client.HTTPSConnection):
    access: Access
    trusted: bool
    watch: _Watch

    def connect(self) -> None:
        timeout = self.timeout if isinstance(self.timeout, int | float) else self.access.timeout
        plain = _connected(self.host, self.port, timeout, self.access, self.trusted)
        self.watch.add(plain)
        self.sock = ssl.create_default_context().wrap_socket(
            plain, server_hostname=self.host, do_handshake_on_connect=False
        )
        self.watch.add(self.sock)
        self.sock.do_handshake()


class _Guarded:
    def __init__(self, access: Access, own: Collection[str], watch: _Watch) -> None:
        super().__init__()
        self.access, self.own, self.watch = access, own, watch

    def connections(self, kind: type[_Connection | _SecureConnection], url: str) -> Any:
        """What urllib makes its connections with."""
        trusted = place_of(url) in self.own

        def make(host: str, timeout: Any = None, **_: Any) -> http.client.HTTPConnection:
            connection = kind(host, timeout=timeout)
            connection.access, connection.trusted, connection.watch = self.access, trusted, self.watch
            return connection

        return make


class _Http(_Guarded, urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self.connections(_Connection, req.full_url), req)


class _Https(_Guarded, urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self.connections(_SecureConnection, req.full_url), req)
