"""When an image needs no further step, and which of its iterates is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shade_fast.errors import ShadeFastError


@dataclass(frozen=True)
class Stopping:
    """What ends an image before its last step.

    ratio: the target: an image stops once at most this share of its distance is left inside its LPIPS bound.
    patience: an image stops once as many steps in a row brought it no nearer, by a thousandth at least.
    None for either leaves it out.
    """

    ratio: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ShadeFastError(f"stop_ratio={self.ratio!r}: give a share above 0, at most 1, or None")
        if self.patience is not None and (not isinstance(self.patience, int) or self.patience < 1):
            raise ShadeFastError(f"patience={self.patience!r}: give a number of steps, at least 1, or None")


#: Every image takes all its steps.
NEVER = Stopping()


class Progress:
    """Follows a batch: which images still move, how many steps each took, and the best iterate of each."""

    #: what counts as nearer
    NEARER = 1 - 1e-3

    def __init__(self, stopping: Stopping, start: torch.Tensor, steps: int, keep_best: bool) -> None:
        self.stopping = stopping
        self.moving = torch.ones_like(start, dtype=torch.bool)
        self.steps = torch.zeros_like(start, dtype=torch.int64)
        self._target = None if stopping.ratio is None else stopping.ratio * start
        self._total = steps
        self._keep_best = keep_best
        self._best = torch.full_like(start, torch.inf)
        self._best_delta: torch.Tensor | None = None
        self._last = torch.full_like(start, torch.inf)
        self._nearest = torch.full_like(start, torch.inf)
        self._idle = torch.zeros_like(self.steps)

    def met(self, step: int, delta: torch.Tensor, distance: torch.Tensor, held: torch.Tensor) -> bool:
        """Told what `delta` was found to reach before a step; whether any image takes it."""
        # Those that have stopped stand where they stood: they are not judged again.
        moving = self.moving
        self._last = torch.where(moving, torch.where(held, distance, torch.inf), self._last)
        if self._keep_best and (self.stopping != NEVER or step >= self._total // 2):
            better = moving & held & (distance < self._best)
            self._best = torch.where(better, distance, self._best)
            if self._best_delta is None:
                self._best_delta = delta.clone()
            elif bool(better.any()):
                self._best_delta[better] = delta[better]
        if self._target is not None:
            self.moving = self.moving & ~(held & (distance <= self._target))
        if self.stopping.patience is not None:
            nearer = held & (distance < self.NEARER * self._nearest)
            self._nearest = torch.where(nearer, distance, self._nearest)
            # Outside its bound an image is on its way back, not idle.
            self._idle = torch.where(nearer | ~held, 0, self._idle + 1)
            self.moving = self.moving & (self._idle < self.stopping.patience)
        self.steps += self.moving
        return bool(self.moving.any())

    def result(self, delta: torch.Tensor) -> torch.Tensor:
        """The last iterates, or the best ones where those were better by more than a thousandth."""
        if self._best_delta is None:
            return delta
        worse = torch.isfinite(self._best) & (self._best < self.NEARER * self._last)
        return torch.where(worse[:, None, None, None], self._best_delta, delta)
