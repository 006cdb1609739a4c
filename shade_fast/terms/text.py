"""Text for people: names without control characters, URLs without secrets."""

from __future__ import annotations

import json
import re
import sys
from typing import IO, Any

#: what follows a URL's protocol, wherever it stands in a text
_URL = re.compile(r"://(?P<rest>[^\s\"<>]*)")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def redacted(text: str) -> str:
    """A text in which no URL has a user, a password, a query or a fragment any more."""
    return _URL.sub(_without_secrets, text) if "://" in text else text


def without_secrets(url: str) -> str:
    """A URL by itself, without user, password, query and fragment; a URL that is shortened already stays as it is."""
    protocol, mark, rest = url.partition("://")
    return f"{protocol}{mark}{_clean(rest)}" if mark else url


def print_json(value: Any, indent: int | None = 1) -> None:
    """Print a value as JSON that a program can read again."""
    text = json.dumps(value, indent=indent)
    if isinstance(sys.stdout, Terminal):
        sys.stdout.write_json(text)
    else:
        print(text)


def printable(text: str) -> str:
    """A text on one line, whose control characters (and those that turn a line's direction) are \\xNN and \\uNNNN."""
    return _CONTROL.sub(_escape, text)


class Terminal:
    """A stream for texts that may hold names from outside: nothing in them moves a terminal's cursor, or opens a URL.
    Line feeds stay, and a progress bar's return to the start of its line."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        bar = text[:1] == "\r"
        lines = [printable(line) for line in redacted(text[bar:]).split("\n")]
        self._stream.write("\r" * bar + "\n".join(lines))
        return len(text)

    def write_json(self, text: str) -> None:
        """Write ASCII text of JSON as it is: control characters are escaped in it already."""
        self._stream.write(text.replace("\x7f", "\\u007f") + "\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _without_secrets(match: re.Match[str]) -> str:
    return f"://{_clean(match['rest'])}"


def _clean(rest: str) -> str:
    place, mark, left_out = re.split(r"([?#]|$)", rest, maxsplit=1)
    host, slash, path = place.partition("/")
    if not left_out.startswith("…"):
        left_out = "…" if mark else ""
    return f"{host.rpartition('@')[2]}{slash}{path}{'?' if mark else ''}{left_out}"


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
