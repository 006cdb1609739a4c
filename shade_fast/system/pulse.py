"""Signs of life: long work gives one at each of its steps, and whoever watches the process is told."""

from __future__ import annotations

from collections.abc import Callable


def _nobody() -> None:
    pass


_told: Callable[[], None] = _nobody


def pulse() -> None:
    """A step is done: of an optimiser, of a measurement, of an anchor's images."""
    _told()


def listen(told: Callable[[], None]) -> None:
    """Be told of each step of this process, in the thread that takes it."""
    global _told
    _told = told
