"""Signs of life: long work gives one at each of its steps, and the process's watcher is called."""

from __future__ import annotations

from collections.abc import Callable


def _nobody() -> None:
    pass


_report: Callable[[], None] = _nobody


def pulse() -> None:
    """A step is done: of an optimiser, of a measurement, of an anchor's images."""
    _report()


def listen(report: Callable[[], None]) -> None:
    """Call `report` at each step of this process, in the thread that takes it."""
    global _report
    _report = report
