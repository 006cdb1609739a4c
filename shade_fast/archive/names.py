"""Names of files and of an archive's members: as text that any format holds, and whether they stay inside a folder."""

from __future__ import annotations

import os
import re


def to_text(name: str) -> str:
    """A name as text: bytes that are no UTF-8 as \\xNN, and then, or where there are backslashes, each of these too."""
    if "\\" not in name and name.isprintable():
        return name
    escaped = name.encode("utf-8", "surrogateescape").replace(b"\\", b"\\x5c")
    return escaped.decode("utf-8", "backslashreplace")


def from_text(text: str) -> str:
    """The name that `to_text` made `text` of."""
    raw = text.encode("utf-8", "surrogateescape")
    return os.fsdecode(re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), raw))


def unsafe(name: str) -> str | None:
    """Why a member's or a manifest's name may not be written below a folder; None where it may."""
    if not name or name.startswith(("/", "~")) or re.match(r"[A-Za-z]:[\\/]", name):
        return "an absolute name"
    if "\0" in name:
        return "a name with a zero byte"
    return "a name that leads out of its folder" if ".." in re.split(r"[\\/]", name) else None
