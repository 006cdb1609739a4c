"""Slots in which images take their steps: when an image is done, the next takes its slot, and the others continue."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from shade_fast.engine.capture import captured
from shade_fast.engine.problem import Problem
from shade_fast.engine.step import Recipe, Step
from shade_fast.system.pulse import pulse
from shade_fast.terms.errors import ShadeFastError

log = logging.getLogger(__name__)

#: Recorded steps that are kept, each with its memory.
MOST_RECORDED = 4


@dataclass(frozen=True)
class Optimized:
    """What an optimiser made of a batch.

    delta: float32 [B, 3, H, W]; keeps the images in [0, 1], and inside linf where the optimiser knows one. history:
    the objective before each step, [steps, B], NaN past an image's last. steps: taken by each image, int64 [B].
    """

    delta: torch.Tensor
    history: torch.Tensor
    steps: torch.Tensor


class Slots:
    """Runs momentum for any number of images, `count` at a time.

    count: of slots; None for one for each image. The step of a shape bucket is built once in static buffers: on a GPU
    it is recorded as a CUDA graph, where it can be, and played again, on the CPU it is called. It is kept for the next
    images of the bucket. A problem whose steps differ (random views, lossy files, transparent pixels) is neither kept
    nor recorded.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count
        self._recorded: OrderedDict[Any, tuple[Step, Callable[[], None]]] = OrderedDict()

    def run(self, problem: Problem, recipe: Recipe, start: torch.Tensor | None = None) -> Optimized:
        """All images of a problem by a recipe. start: [B, 3, H, W] in units of linf; None for no perturbation.

        Each image takes the same steps, and gets the same result, as it would alone.
        """
        total = len(problem.clean)
        if not problem.fixed or self.count is None:
            # All at once and in the problem's own tensors, because an image's draws belong to its place.
            step = Step(problem, recipe)
            play: Callable[[], None] = step
        else:
            step, play = self._prepared(problem, recipe, min(self.count, total))
        count = len(step.delta)
        waiting = iter(range(total))
        places: list[int | None] = [None] * count
        results: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        while len(results) < total:
            for place in range(count):
                image = next(waiting, None) if places[place] is None else None
                if image is not None:
                    if step.problem is not problem:
                        step.problem.put(place, problem, image)
                    step.begin(place, None if start is None else start[image])
                    places[place] = image
            play()
            unfinished = step.unfinished()
            pulse()
            for place, goes_on in enumerate(unfinished):
                image = places[place]
                if image is not None and not goes_on:
                    results[image] = step.result(place)
                    places[place] = None
        delta, history, steps = (torch.stack(parts) for parts in zip(*(results[i] for i in range(total)), strict=True))
        met = int(torch.isfinite(history).any(dim=0).sum())
        return Optimized(delta, history.T[: max(met, 1)], steps)

    @property
    def recorded(self) -> int:
        """How many steps are kept, each with its memory."""
        return len(self._recorded)

    @property
    def all_recorded(self) -> bool:
        """Whether all of them are recorded."""
        return all(step is not play for step, play in self._recorded.values())

    def release(self) -> None:
        """Give back the memory of the recorded steps."""
        self._recorded.clear()

    def _prepared(self, problem: Problem, recipe: Recipe, count: int) -> tuple[Step, Callable[[], None]]:
        """The step for problems like this one, in buffers of its own for so many images."""
        key = (problem.alike, recipe, count)
        if key not in self._recorded:
            while len(self._recorded) >= MOST_RECORDED:
                self._recorded.popitem(last=False)
            step = Step(problem.room(count), recipe)
            self._recorded[key] = (step, played(step, problem.clean.device))
        self._recorded.move_to_end(key)
        return self._recorded[key]


def played(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A step's recording; a step that cannot be recorded runs as it is, and the log says why."""
    try:
        return captured(step, device)
    except ShadeFastError as error:
        log.warning("%s; each of its launches is the host's now, which is slower", str(error))
        return step
