"""Names of files and of an archive's members: as text that any format holds, and whether they stay inside a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Collection

#: What a run writes for itself at the top of its output, or may.
_RECORD = ("_shade_fast", "_stats.json", "report.html")
#: Characters of the longest path that Linux opens.
_LONGEST = 4096


def to_text(name: str) -> str:
    """A name as text: bytes that are no UTF-8 as \\xNN, and backslashes too, so that `from_text` can take it back."""
    return legible(name.replace("\\", "\\x5c"))


def from_text(text: str) -> str:
    """The name whose text `to_text` gives."""
    raw = text.encode("utf-8", "surrogateescape")
    return os.fsdecode(re.sub(rb"\\x([0-9a-f]{2})", lambda escape: bytes([int(escape[1], 16)]), raw))


def legible(text: str) -> str:
    """What is no text as any format holds it, bytes that are no UTF-8 and halves of surrogate pairs, as \\xNN."""
    return text if text.isascii() else re.sub("[\ud800-\udfff]", _escaped, text)


def _escaped(half: re.Match[str]) -> str:
    stands_for_a_byte = "\udc80" <= half[0] <= "\udcff"
    raw = half[0].encode("utf-8", "surrogateescape" if stands_for_a_byte else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in raw)


def unsafe(name: str) -> str | None:
    """Why a member's or a manifest's name may not be written below a folder; None where it may."""
    if not name or name.startswith(("/", "\\", "~")) or re.match(r"[A-Za-z]:([\\/]|$)", name):
        return "an absolute name" if name else "no name"
    if "\0" in name:
        return "a name with a zero byte"
    if len(name) > _LONGEST:
        return f"a name of {len(name)} characters; at most {_LONGEST} are written"
    parts = re.split(r"[\\/]", name)
    if ".." in parts:
        return "a name that leads out of its folder"
    first = next((part for part in parts if part not in ("", ".")), "").casefold()
    return f"a name that starts with {first}, which is the record's" if first in _RECORD else None


def unwritable(name: str, taken: Collection[str] = ()) -> str | None:
    """Why a name from outside may not be that of an output's file; None where it may. taken: top names with a use."""
    reason = unsafe(name)
    if reason is not None:
        return reason
    if re.search("[\x00-\x1f\x7f-\x9f]", name):
        return "a name with a control character"
    parts = re.split(r"[\\/]", name)
    if "." in parts:
        return "a name with a part that is a dot"
    used = {top.casefold() for top in taken}
    if name.casefold() in used or parts[0].casefold() in used:
        return f"a name that starts with {parts[0]}, which has another use"
    return None
