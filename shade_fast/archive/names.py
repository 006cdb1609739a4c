"""Names of files and of an archive's members: as text that any format holds, and whether they stay inside a folder."""

from __future__ import annotations

import os
import re


def to_text(name: str) -> str:
    """A name as text: bytes that are no UTF-8 as \\xNN, and backslashes too, so that `from_text` can take it back."""
    return legible(name.replace("\\", "\\x5c"))


def from_text(text: str) -> str:
    """The name that `to_text` made `text` of."""
    raw = text.encode("utf-8", "surrogateescape")
    return os.fsdecode(re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), raw))


def legible(text: str) -> str:
    """What is no text as any format holds it, bytes that are no UTF-8 and halves of surrogate pairs, as \\xNN."""
    return text if text.isascii() else re.sub("[\ud800-\udfff]", _escaped, text)


def _escaped(found: re.Match[str]) -> str:
    stands_for_a_byte = "\udc80" <= found[0] <= "\udcff"
    raw = found[0].encode("utf-8", "surrogateescape" if stands_for_a_byte else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in raw)


def unsafe(name: str) -> str | None:
    """Why a member's or a manifest's name may not be written below a folder; None where it may."""
    if not name or name.startswith(("/", "~")) or re.match(r"[A-Za-z]:[\\/]", name):
        return "an absolute name"
    if "\0" in name:
        return "a name with a zero byte"
    return "a name that leads out of its folder" if ".." in re.split(r"[\\/]", name) else None
