"""What a table's rows may name: files below its own folder or in its own store, and what the run allows besides."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from shade_fast.archive.folders import source_text
from shade_fast.archive.http import place_of
from shade_fast.archive.names import to_text
from shade_fast.archive.reading import Reader
from shade_fast.archive.storage import Storage
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.limits import ROW_PROTOCOLS

_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
#: Stores whose paths begin with a bucket, which is the table's own; those that are its own as a whole. Of others,
#: whose paths may begin with somebody else's name, it is the table's folder.
_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl")
_WHOLE = ("memory", "zip", "tar")
#: What of a relative URL stands for itself.
_URL_SAFE = "/%?#&=+,;:@!$'()*~"
#: Characters of a path or URL: more than any file system or server takes.
_LONGEST = 16_384


@dataclass(frozen=True)
class RowFile:
    """A file that a row names. key: how rows of the record name it; source: its place there; name: its path without
    what leads out of a folder; path: where it is on this machine's disks, None for another place."""

    key: str
    source: str
    name: str
    read: Callable[[], bytes]
    path: str | None = None


class RowFiles:
    """The files that one table's rows may name. out: as of `source_text`."""

    def __init__(self, table: Storage, out: Storage | None, reader: Reader) -> None:
        self._table, self._out, self._reader = table, out, reader
        own = [os.path.dirname(table.root)] if table.local else []
        #: of the local file system
        self._roots = [os.path.realpath(root) for root in (*own, *reader.access.paths)]

    def resolve(self, path: str) -> RowFile:
        """Raises ShadeFastError for what a row may not name, and for what cannot be a file."""
        if len(path) > _LONGEST:
            raise ShadeFastError(f"a path of {len(path)} characters; at most {_LONGEST} are read")
        url = _PROTOCOL.match(path)
        if url is not None:
            return self._url(path, url[1].lower(), url[2])
        if self._table.local or path.startswith("/"):
            return self._local(path, path, os.path.join(os.path.dirname(self._table.root), path))
        if _is_web(self._table.url):
            protocol, _, rest = self._table.url.partition("://")
            host, _, below = re.sub(r"[?#].*$", "", rest).partition("/")
            inside = posixpath.normpath(f"/{posixpath.dirname(below)}/{path}").lstrip("/")
            place = f"{protocol}://{host}/{quote(inside, safe=_URL_SAFE)}"
            key = source_text(Storage.named(place), "", self._out) if re.search("[?#]", path) else to_text(path)
            return self._web(key, place, path)
        file = Storage.beside(self._table, self._inside(path))
        return self._stored(to_text(path), file, path)

    def _url(self, url: str, protocol: str, rest: str) -> RowFile:
        if "::" in url:
            raise ShadeFastError(f"{url}: cannot be read: a chain of URLs; a row may name one place")
        if protocol == "file":
            return self._local(url, rest, f"/{rest.lstrip('/')}")
        key = source_text(Storage.named(url), "", self._out)
        if protocol in ("http", "https"):
            return self._web(key, url, rest)
        bucket = rest.partition("/")[0]
        own = "::" not in self._table.url and url.startswith(self._own_place(protocol))
        if not own:
            if protocol not in ROW_PROTOCOLS:
                raise ShadeFastError(f"{url}: Protocol not known to rows; they may name {', '.join(ROW_PROTOCOLS)}")
            self._check_allowed(url, protocol)
        if "@" in bucket:
            raise ShadeFastError(f"{url}: cannot be read: names an account; a row may name a bucket alone")
        return self._stored(key, Storage(url), re.sub(r"[?#].*$", "", rest, flags=re.DOTALL))

    def _own_place(self, protocol: str) -> str:
        """How URLs in the table's own store begin."""
        own, _, rest = self._table.url.partition("://")
        if own != protocol:
            return "\0"
        if protocol in _WHOLE:
            return f"{protocol}://"
        place = rest.partition("/")[0] if protocol in _BUCKETS else posixpath.dirname(rest)
        return f"{protocol}://{place}/"

    def _check_allowed(self, url: str, protocol: str) -> None:
        if protocol not in self._reader.access.protocols:
            raise ShadeFastError(
                f"{url}: cannot be read: {protocol} is not allowed for rows; --allow-protocols {protocol} allows it"
            )

    def _local(self, key: str, name: str, place: str) -> RowFile:
        try:
            real = os.path.realpath(place)
        except ValueError:  # no name that a file can have: reading it says so
            real = ""
        if real:
            check_below(real, self._roots, key)
        # What was looked at is what is read: `..` behind a link leads elsewhere than it seems to.
        file = Storage.named(real or os.path.abspath(place), local=True)
        shown = file if ".." in place.split("/") else Storage.named(os.path.abspath(place), local=True)
        return RowFile(
            to_text(key), source_text(shown, "", self._out), _name(name), lambda: self._reader.image(file), file.root
        )

    def _web(self, key: str, url: str, rest: str) -> RowFile:
        own = () if self._table.local or not _is_web(self._table.url) else (place_of(self._table.url),)
        try:
            known = place_of(url) in own
        except ValueError as error:
            raise ShadeFastError(f"{url}: not a URL ({error})") from error
        if not known:
            self._check_allowed(url, url.partition("://")[0].lower())
        host, slash, path = rest.partition("/")
        name = re.sub(r"[?#].*$", "", f"{host.rpartition('@')[2]}{slash}{path}", flags=re.DOTALL)
        source = source_text(Storage.named(url), "", self._out)
        return RowFile(key, source, _name(name), lambda: self._reader.url(url, own))

    def _stored(self, key: str, file: Storage, name: str) -> RowFile:
        source = source_text(file, "", self._out)
        return RowFile(key, source, _name(name), lambda: self._reader.image(file))

    def _inside(self, path: str) -> str:
        """A path relative to the table's folder, as its store has it."""
        root, protocol = self._table.root, self._table.url.partition("://")[0]
        prefix = "/" if root.startswith("/") else ""
        if protocol in _BUCKETS:
            prefix, _, root = root.partition("/")
            prefix += "/"
        elif protocol not in _WHOLE:
            prefix, root = f"{posixpath.dirname(root)}/", ""
        return prefix + posixpath.normpath(f"/{posixpath.dirname(root)}/{path}").lstrip("/")


def check_below(real: str, roots: Sequence[str], name: str) -> None:
    """Raise ShadeFastError for a real path outside all of these folders; name: how a row says it."""
    if not any(real == root or real.startswith(f"{root.rstrip('/')}/") for root in roots):
        raise ShadeFastError(
            f"{name}: cannot be read: it is outside the table's folder; --allow-paths DIR lets rows name files "
            "below DIR"
        )


def _is_web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://")) and "::" not in url


def _name(path: str) -> str:
    return "/".join(part for part in posixpath.normpath(path).split("/") if part not in ("", ".", ".."))
