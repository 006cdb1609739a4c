"""The exception that shade_fast raises for a problem that its caller can mend, and how others' errors are quoted."""

from __future__ import annotations


class ShadeFastError(ValueError):
    """Something that the caller can mend: an input, an option, a missing piece; the message names it and the mend."""


def reason(error: Exception, longest: int = 200) -> str:
    """The first line of another library's error, of at most so many characters, after its kind."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:longest]}"
