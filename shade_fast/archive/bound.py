"""A bound on the bytes of images that a run holds in memory."""

from __future__ import annotations

import threading
import weakref


class MemoryBound:
    """Counts the bytes of images that are in memory, until the objects that hold them are gone.

    One thread waits for room; what else has to happen before there is any is up to another, which asks `is_full`.
    """

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._changed = threading.Condition()
        self._admits_one = self._waits = self._lifted = False

    def hold(self, holder: object, size: int) -> None:
        """Count bytes as long as an object lives."""
        if size:
            with self._changed:
                self._held += size
            weakref.finalize(holder, self._free, size).atexit = False

    def wait(self, stop: threading.Event) -> None:
        """Wait until no more are held than may be, or until `admit_one` or `lift` ends the wait."""
        with self._changed:
            self._waits = True
            while self._held > self._most and not (self._lifted or self._admits_one or stop.is_set()):
                self._changed.wait(0.2)
            self._admits_one = self._waits = False

    @property
    def is_full(self) -> bool:
        """Whether somebody waits."""
        return self._waits

    def admit_one(self) -> None:
        """Let in the next image all the same: nothing is left that could make room."""
        with self._changed:
            self._admits_one = True
            self._changed.notify_all()

    def lift(self) -> None:
        """Nobody is to wait any more."""
        with self._changed:
            self._lifted = True
            self._changed.notify_all()

    def _free(self, size: int) -> None:
        with self._changed:
            self._held -= size
            self._changed.notify_all()
