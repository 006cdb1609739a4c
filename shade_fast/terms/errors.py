"""The exception that shade_fast raises for a problem that its caller can fix, and how others' errors are quoted."""

from __future__ import annotations

from shade_fast.terms.text import redacted


class ShadeFastError(ValueError):
    """Something that the caller can fix: an input, an option, a missing piece; the message names it and the fix.

    A URL in the message has no user, password, query or fragment.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(redacted(str(message)))


class TransientError(ShadeFastError):
    """A problem that may pass, so that another try can succeed: a server that does not answer, a machine that is too
    busy."""


def reason(error: Exception, longest: int = 200) -> str:
    """The first line of another library's error, of at most so many characters, after its kind; our own as it is."""
    if isinstance(error, ShadeFastError):
        return str(error)
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:longest]}"
