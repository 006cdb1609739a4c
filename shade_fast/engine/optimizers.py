"""The optimisers by name: our sign-momentum loop that holds both bounds, and the published loops run on a problem."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch

from shade_fast.budget import Budget
from shade_fast.engine.devices import kernels
from shade_fast.engine.problem import Problem
from shade_fast.errors import ShadeFastError
from shade_fast.ops import optimizer_update
from shade_fast.reference import paper_loop, release_loop
from shade_fast.view import View

#: Length of the first step, in units of linf, and the share of the momentum that is kept from step to step.
STEP_SIZE, DECAY = 0.6, 0.8
#: Steps are sized as for this linf where none is given.
DEFAULT_UNIT = 16 / 255

History = list[torch.Tensor]


class LpipsControl:
    """Holds the LPIPS bound of each image of a batch: the weight of the LPIPS gradient, and the length of the steps.

        v = clip(LPIPS/bound - 1, -1, 1),   weight = w·exp(2·v)
        w <- w·exp(0.1·v), inside [0.01, 50];   length <- 0.8·length where v > 0, else min(1.05·length, 1)

    The response exp(2·v) damps what the accumulated w alone would swing through. The length is for images with wide
    flat areas: signed steps of full length are noise there that breaks the bound by itself, and no weight mends that.
    """

    ACCUMULATION, RANGE, RESPONSE = 0.1, (0.01, 50.0), 2.0
    SHORTEN, LENGTHEN = 0.8, 1.05

    def __init__(self, bound: float, count: int, device: torch.device) -> None:
        self.bound = bound
        self.length = torch.ones(count, device=device)
        self._accumulated = torch.ones(count, device=device)

    def __call__(self, lpips: torch.Tensor) -> torch.Tensor:
        """The weights [count] for the LPIPS distances [count] that a step has met; `length` is then that step's."""
        violation = (lpips / self.bound - 1).clamp(-1, 1)
        self._accumulated = (self._accumulated * torch.exp(self.ACCUMULATION * violation)).clamp(*self.RANGE)
        self.length = torch.where(violation > 0, self.SHORTEN, self.LENGTHEN).mul(self.length).clamp(max=1)
        return self._accumulated * torch.exp(self.RESPONSE * violation)


def check_optimizer(optimizer: str, budget: Budget, encoders: int, view: View = View()) -> None:
    """Raise ShadeFastError for an unknown optimiser, and for what a published loop cannot do, with the mend."""
    if optimizer not in OPTIMIZERS:
        raise ShadeFastError(f"optimizer {optimizer!r}: give one of {', '.join(OPTIMIZERS)}")
    if optimizer == "release" and budget.linf is None:
        raise ShadeFastError("optimizer 'release': its steps are sized by linf; give the budget one")
    if optimizer == "paper" and budget.lpips is None:
        raise ShadeFastError("optimizer 'paper': it minimises an LPIPS penalty; give the budget an lpips bound")
    if optimizer != "momentum" and encoders != 1:
        raise ShadeFastError(
            f"optimizer {optimizer!r}: the published loops know one encoder; use 'momentum' for several"
        )
    if optimizer != "momentum" and view.transforms:
        raise ShadeFastError(
            f"optimizer {optimizer!r}: the published loops know no random view; use 'momentum', or a view without "
            "transforms"
        )


def optimize(
    problem: Problem, optimizer: str, budget: Budget, steps: int, start: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run an optimiser: perturbation float32 [B, 3, H, W], and the objective before each step, [steps, B].

    start: what momentum begins with, float32 [B, 3, H, W] in units of linf; None for no perturbation.
    The perturbation keeps the images in [0, 1], and inside linf where the optimiser knows one; what the file may hold
    is `project`'s to see to. Raises ShadeFastError as `check_optimizer` does.
    """
    check_optimizer(optimizer, budget, len(problem.encoders))
    if optimizer == "momentum":
        delta, history = momentum(problem, budget, steps, start)
    else:
        delta, history = OPTIMIZERS[optimizer](problem, budget, steps)
    return delta, torch.stack(history)


def momentum(
    problem: Problem, budget: Budget, steps: int, start: torch.Tensor | None = None
) -> tuple[torch.Tensor, History]:
    """Sign-momentum with a cosine step; an LPIPS bound is held by `LpipsControl`.

    m <- 0.8·m + g/mean|g|,   delta <- clamp(delta - a_i·s·sign(m), -linf, linf),   a_i: cosine from 0.6·linf to 0
    g = ∇objective/mean|∇objective| + weight·∇LPIPS/mean|∇LPIPS|,   s the control's length
    """
    delta = torch.zeros_like(problem.clean, dtype=torch.float32)
    if start is not None:
        delta = inside(start.to(delta) * (DEFAULT_UNIT if budget.linf is None else budget.levels / 255), problem.clean)
    momentum_buffer = torch.zeros_like(delta)
    # The file holds whole levels: a box between two of them would only be rounded away.
    box = budget.levels / 255
    unit = DEFAULT_UNIT if budget.linf is None else box
    control = None if budget.lpips is None else LpipsControl(budget.lpips, len(delta), delta.device)
    history = []
    for i in range(steps):
        gradient, distance = problem.gradient(delta, control)
        history.append(distance)
        cosine = (1 + math.cos(math.pi * i / steps)) / 2
        optimizer_update(
            delta,
            momentum_buffer,
            gradient,
            problem.clean,
            step=STEP_SIZE * unit * cosine * (1.0 if control is None else control.length),
            decay=DECAY,
            linf=box,
            backend=kernels(problem.backend),
        )
    return delta, history


def inside(delta: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """A perturbation that keeps uint8 images in their range."""
    shown = clean / 255
    return torch.maximum(torch.minimum(delta, 1 - shown), -shown)


def release(problem: Problem, budget: Budget, steps: int) -> tuple[torch.Tensor, History]:
    """`shade_fast.reference.release_loop` through the problem's view."""
    history: History = []
    clean = problem.clean / 255
    perturbed = release_loop(
        lambda images: problem.encoders[0].encode(problem.see(images)),
        clean,
        problem.anchor_latents[0],
        cast(float, budget.linf),
        steps,
        on_step=lambda _, distance: history.append(distance),
    )
    return perturbed - clean, history


def paper(problem: Problem, budget: Budget, steps: int) -> tuple[torch.Tensor, History]:
    """`shade_fast.reference.paper_loop` through the problem's view."""
    history: History = []
    clean = problem.clean / 255
    perturbed = paper_loop(
        lambda images: problem.encoders[0].encode(problem.see(images)),
        lambda images, _: cast(torch.Tensor, problem.lpips(problem.see(images))),
        clean,
        problem.anchor_latents[0],
        cast(float, budget.lpips),
        steps=steps,
        on_step=lambda _, distance: history.append(distance),
    )
    return perturbed - clean, history


OPTIMIZERS: dict[str, Callable[[Problem, Budget, int], tuple[torch.Tensor, History]]] = {
    "momentum": momentum,
    "release": release,
    "paper": paper,
}
