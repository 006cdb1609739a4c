"""Checks of options' values; NumPy's numbers become Python's."""

from __future__ import annotations

import math
import numbers
from typing import Any

from shade_fast.terms.errors import ShadeFastError


def whole(value: Any) -> int | None:
    """A whole number as an int; None for anything else, True and 2.0 among them."""
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None


def number(value: Any) -> float | None:
    """A finite number as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def share(name: str, value: Any, otherwise: str = "") -> float:
    """An option that is a share above 0, at most 1. Raises ShadeFastError for anything else; otherwise: what may be
    given instead."""
    checked = number(value)
    if checked is None or not 0 < checked <= 1:
        raise ShadeFastError(f"{name}={value!r}: give a share above 0, at most 1{otherwise}")
    return checked


def at_least(name: str, value: Any, least: int = 1) -> int:
    """An option that is a whole number. Raises ShadeFastError for anything else, and below the least."""
    checked = whole(value)
    if checked is None or checked < least:
        raise ShadeFastError(f"{name}={value!r}: give a whole number, at least {least}")
    return checked
