"""When an image needs no further step, and which of its iterates is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shade_fast.terms.checks import share, whole
from shade_fast.terms.errors import ShadeFastError


@dataclass(frozen=True)
class Stopping:
    """What ends an image before its last step.

    ratio: the target: an image stops once at most this share of its distance is left inside its LPIPS bound.
    patience: an image stops once as many steps in a row brought it no nearer, by a thousandth at least.
    None leaves a rule out.
    """

    ratio: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.ratio is not None:
            object.__setattr__(self, "ratio", share("stop_ratio", self.ratio, ", or None"))
        if self.patience is not None:
            patience = whole(self.patience)
            if patience is None or patience < 1:
                raise ShadeFastError(f"patience={self.patience!r}: give a number of steps, at least 1, or None")
            object.__setattr__(self, "patience", patience)


#: Every image takes all its steps.
NEVER = Stopping()


class Progress:
    """Follows a batch: which images still move, how many steps each took, and the best iterate of each.

    Everything is kept in tensors that stay where they are, and nothing is decided on the host: a step that is recorded
    once may be played again.
    """

    #: what counts as nearer
    NEARER = 1 - 1e-3

    def __init__(self, stopping: Stopping, delta: torch.Tensor, steps: int, keep_best: bool) -> None:
        """delta: the perturbations [B, 3, H, W] that are followed. keep_best: whether the best of each is."""
        self.stopping = stopping
        self._total = steps
        count, device = len(delta), delta.device
        self.moving = torch.zeros(count, dtype=torch.bool, device=device)
        #: steps that each image took, and how often it was judged
        self.steps = torch.zeros(count, dtype=torch.int64, device=device)
        self.meetings = torch.zeros_like(self.steps)
        self._target = torch.zeros(count, device=device)
        self._last = torch.zeros(count, device=device)
        self._best = torch.zeros(count, device=device)
        self._nearest = torch.zeros(count, device=device)
        self._idle = torch.zeros_like(self.steps)
        self._best_delta = torch.zeros_like(delta) if keep_best else None

    def begin(self, image: int, start: torch.Tensor) -> None:
        """Another image takes the place of one; start: its objective without a perturbation."""
        self.moving[image] = True
        for counts in (self.steps, self.meetings, self._idle):
            counts[image] = 0
        for distances in (self._last, self._best, self._nearest):
            distances[image] = torch.inf
        if self.stopping.ratio is not None:
            self._target[image] = self.stopping.ratio * start

    def met(self, delta: torch.Tensor, distance: torch.Tensor, held: torch.Tensor) -> None:
        """Record what `delta` reaches before a step; `moving` then says which images take the step."""
        # Images that have stopped are not judged again.
        judged = self.moving & (self.meetings < self._total)
        self._last.copy_(torch.where(judged, torch.where(held, distance, torch.inf), self._last))
        if self._best_delta is not None:
            late = judged if self.stopping != NEVER else judged & (self.meetings >= self._total // 2)
            better = late & held & (distance < self._best)
            self._best.copy_(torch.where(better, distance, self._best))
            self._best_delta.copy_(torch.where(better[:, None, None, None], delta, self._best_delta))
        moving = judged
        if self.stopping.ratio is not None:
            moving = moving & ~(held & (distance <= self._target))
        if self.stopping.patience is not None:
            nearer = held & (distance < self.NEARER * self._nearest)
            self._nearest.copy_(torch.where(nearer, distance, self._nearest))
            # Outside its bound an image is on its way back, not idle.
            self._idle.copy_(torch.where(nearer | ~held, 0, self._idle + 1))
            moving = moving & (self._idle < self.stopping.patience)
        self.moving.copy_(moving)
        self.steps.add_(moving)
        self.meetings.add_(judged)

    def unfinished(self) -> torch.Tensor:
        """Which images have a further step to take, bool [B]."""
        return self.moving & (self.meetings < self._total)

    def result(self, delta: torch.Tensor) -> torch.Tensor:
        """The last iterates, or the best ones where those were better by more than a thousandth."""
        if self._best_delta is None:
            return delta
        worse = torch.isfinite(self._best) & (self._best < self.NEARER * self._last)
        return torch.where(worse[:, None, None, None], self._best_delta, delta)
