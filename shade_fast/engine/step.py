"""One step of sign-momentum, in tensors that stay where they are: what is recorded once can be played again."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from shade_fast.engine.devices import kernels
from shade_fast.engine.lpips_control import LpipsControl
from shade_fast.engine.masking import step_shares
from shade_fast.engine.problem import Problem
from shade_fast.engine.stopping import NEVER, Progress, Stopping
from shade_fast.ops import optimizer_update
from shade_fast.terms.budget import Budget

#: Length of the first step, in units of linf: with L∞ alone, and with an LPIPS bound, which keeps most pixels well
#: inside the box; and the share of the momentum that is kept from step to step.
STEP_SIZE, BOUNDED_STEP_SIZE, DECAY = 0.6, 0.4, 0.8
#: Steps are sized as for this linf where none is given.
DEFAULT_UNIT = 16 / 255


@dataclass(frozen=True)
class Recipe:
    """How images are moved: inside which bounds, in how many steps, and what ends one early."""

    budget: Budget
    steps: int
    stopping: Stopping = NEVER

    @property
    def box(self) -> float:
        """The bound of each pixel, in whole levels: a file holds no others."""
        return self.budget.levels / 255

    @property
    def unit(self) -> float:
        """What step lengths are multiples of."""
        return DEFAULT_UNIT if self.budget.linf is None else self.box


class Step:
    """Sign-momentum with a step that falls linearly; an LPIPS bound is held by `LpipsControl`.

    m <- 0.8·m + g/mean|g|,   delta <- clamp(k·delta - a_i·s·t·sign(m), -linf, linf),   a_i = a·linf·(1 - i/steps)
    g = ∇objective/mean|∇objective| + weight·∇LPIPS/mean|∇LPIPS|,   s the control's length, k the share it keeps
    a = 0.6, with an LPIPS bound 0.4;   t = 1, with an LPIPS bound each value's share by its texture (`step_shares`)

    i counts each image's own steps. A call is one step of all images that still move, in place.

    problem: the images, whose tensors others may be copied into. delta: float32 [B, 3, H, W], their perturbations.
    history: the objective before each step, [steps, B], NaN where none was taken.
    """

    def __init__(self, problem: Problem, recipe: Recipe) -> None:
        self.problem = problem
        self.recipe = recipe
        self.delta = torch.zeros_like(problem.clean, dtype=torch.float32)
        self.history = problem.start.new_full((recipe.steps, len(self.delta)), torch.nan)
        self._momentum = torch.zeros_like(self.delta)
        lpips = recipe.budget.lpips
        self._control = None if lpips is None else LpipsControl(lpips, len(self.delta), self.delta.device)
        self._shares = None if lpips is None else torch.empty_like(problem.clean)
        self._held = torch.ones(len(self.delta), dtype=torch.bool, device=self.delta.device)
        self._progress = Progress(recipe.stopping, self.delta, recipe.steps, keep_best=not problem.plan.transforms)

    def begin(self, image: int, start: torch.Tensor | None = None) -> None:
        """The image in this place of the problem takes its first step next.

        start: float32 [3, H, W], what it begins with in units of linf; None for no perturbation.
        """
        self.delta[image] = 0
        if start is not None:
            self.delta[image] = inside(self.recipe.unit * start.to(self.delta), self.problem.clean[image])
        self._momentum[image] = 0
        self.history[:, image] = torch.nan
        if self._control is not None:
            self._control.begin(image)
        if self._shares is not None:
            self._shares[image] = step_shares(self.problem.clean[image : image + 1], self.problem.plan.resized)[0]
        self._progress.begin(image, self.problem.start[image])

    def __call__(self) -> None:
        progress, control, recipe = self._progress, self._control, self.recipe
        share = (1 - progress.meetings / recipe.steps).float()
        # An image that may stop at any step is held to the bound at every step.
        left = share if recipe.stopping == NEVER else 0.0
        weigh = None if control is None else functools.partial(control, left=left)
        gradient, distance = self.problem.gradient(self.delta, weigh)
        row = progress.meetings.clamp(max=recipe.steps - 1)[None]
        # An image that has ended keeps its perturbation.
        had = self.history.gather(0, row)
        self.history.scatter_(0, row, torch.where(progress.unfinished(), distance, had))
        progress.met(self.delta, distance, self._held if control is None else control.held)
        length = (STEP_SIZE if control is None else BOUNDED_STEP_SIZE) * recipe.unit * share
        if control is not None:
            length = length * control.length
            self.delta.mul_(torch.where(progress.moving, control.kept, 1)[:, None, None, None])
        optimizer_update(
            self.delta,
            self._momentum,
            gradient,
            self.problem.clean,
            step=torch.where(progress.moving, length, 0).float(),
            decay=DECAY,
            linf=recipe.box,
            share=self._shares,
            backend=kernels(self.problem.backend),
        )

    def unfinished(self) -> list[bool]:
        """Which images have a further step to take."""
        flags: list[bool] = self._progress.unfinished().tolist()
        return flags

    def result(self, image: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """An image's perturbation [3, H, W], its history [steps], and how many steps it took: copies."""
        chosen = slice(image, image + 1)
        delta = self._progress.result(self.delta)[chosen]
        return delta[0].clone(), self.history[:, image].clone(), self._progress.steps[image].clone()


def inside(delta: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """A perturbation that keeps uint8 images in their range."""
    shown = clean / 255
    return torch.maximum(torch.minimum(delta, 1 - shown), -shown)
