"""The optimisers by name: our sign-momentum loop that holds both bounds, and the published loops run on a problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch

from shade_fast.budget import Budget
from shade_fast.engine.devices import kernels
from shade_fast.engine.lpips_control import LpipsControl
from shade_fast.engine.problem import Problem
from shade_fast.engine.stopping import NEVER, Progress, Stopping
from shade_fast.errors import ShadeFastError
from shade_fast.ops import optimizer_update
from shade_fast.reference import paper_loop, release_loop
from shade_fast.view import View

#: Length of the first step, in units of linf: with L∞ alone, and with an LPIPS bound, which keeps most pixels well
#: inside the box; and the share of the momentum that is kept from step to step.
STEP_SIZE, BOUNDED_STEP_SIZE, DECAY = 0.6, 0.4, 0.8
#: Steps are sized as for this linf where none is given.
DEFAULT_UNIT = 16 / 255

History = list[torch.Tensor]


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


@dataclass(frozen=True)
class Optimized:
    """What an optimiser made of a batch.

    delta: float32 [B, 3, H, W]; keeps the images in [0, 1], and inside linf where the optimiser knows one. history:
    the objective before each step that the batch took, [steps, B]. steps: taken by each image, int64 [B].
    """

    delta: torch.Tensor
    history: torch.Tensor
    steps: torch.Tensor


def optimize(
    problem: Problem,
    optimizer: str,
    budget: Budget,
    steps: int,
    start: torch.Tensor | None = None,
    stopping: Stopping = NEVER,
) -> Optimized:
    """Run an optimiser; what the file may hold is `project`'s to see to.

    start: what momentum begins with, float32 [B, 3, H, W] in units of linf; None for no perturbation.
    stopping: what ends an image of momentum early; the published loops take all their steps.
    Raises ShadeFastError as `check_optimizer` does.
    """
    check_optimizer(optimizer, budget, len(problem.encoders))
    if optimizer == "momentum":
        return momentum(problem, budget, steps, start, stopping)
    delta, history = PUBLISHED[optimizer](problem, budget, steps)
    return Optimized(delta, torch.stack(history), torch.full_like(problem.start, steps, dtype=torch.int64))


def momentum(
    problem: Problem,
    budget: Budget,
    steps: int,
    start: torch.Tensor | None = None,
    stopping: Stopping = NEVER,
) -> Optimized:
    """Sign-momentum with a step that falls linearly; an LPIPS bound is held by `LpipsControl`.

    m <- 0.8·m + g/mean|g|,   delta <- clamp(k·delta - a_i·s·sign(m), -linf, linf),   a_i = a·linf·(1 - i/steps)
    g = ∇objective/mean|∇objective| + weight·∇LPIPS/mean|∇LPIPS|,   s the control's length, k the share it keeps
    a = 0.6, with an LPIPS bound 0.4

    Where the view is the same in every step, the best iterate is kept instead of the last if it was better.
    """
    # The file holds whole levels: a box between two of them would only be rounded away.
    box = budget.levels / 255
    unit = DEFAULT_UNIT if budget.linf is None else box
    delta = torch.zeros_like(problem.clean, dtype=torch.float32)
    if start is not None:
        delta = inside(unit * start.to(delta), problem.clean)
    momentum_buffer = torch.zeros_like(delta)
    control = None if budget.lpips is None else LpipsControl(budget.lpips, len(delta), delta.device)
    progress = Progress(stopping, problem.start, steps, keep_best=not problem.plan.transforms)
    step_size = STEP_SIZE if control is None else BOUNDED_STEP_SIZE
    history = []
    for i in range(steps):
        gradient, distance = problem.gradient(delta, control)
        history.append(distance)
        held = torch.ones_like(progress.moving) if control is None else control.held
        if not progress.met(i, delta, distance, held):
            break
        length = torch.full_like(distance, step_size * unit * (1 - i / steps))
        if control is not None:
            length *= control.length
            if not bool((control.kept == 1).all()):
                delta *= torch.where(progress.moving, control.kept, 1)[:, None, None, None]
        optimizer_update(
            delta,
            momentum_buffer,
            gradient,
            problem.clean,
            step=torch.where(progress.moving, length, 0).float(),
            decay=DECAY,
            linf=box,
            backend=kernels(problem.backend),
        )
    return Optimized(progress.result(delta), torch.stack(history), progress.steps)


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


PUBLISHED: dict[str, Callable[[Problem, Budget, int], tuple[torch.Tensor, History]]] = {
    "release": release,
    "paper": paper,
}
OPTIMIZERS = ("momentum", *PUBLISHED)
