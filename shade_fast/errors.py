"""The one exception that shade_fast raises for a problem that its caller can mend."""

from __future__ import annotations


class ShadeFastError(ValueError):
    """Something that the caller can mend: an input, an option, a missing piece; the message names it and the mend."""
