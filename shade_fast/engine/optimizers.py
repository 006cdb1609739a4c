"""The optimisers by name: our sign-momentum loop that holds both bounds, and the published loops run on a problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch

from shade_fast.engine.problem import Problem
from shade_fast.engine.slots import Optimized, Slots
from shade_fast.engine.step import Recipe
from shade_fast.engine.stopping import NEVER, Stopping
from shade_fast.reference import paper_loop, release_loop
from shade_fast.system.pulse import pulse
from shade_fast.terms.budget import Budget
from shade_fast.terms.errors import ShadeFastError
from shade_fast.views import View

History = list[torch.Tensor]


def check_optimizer(
    optimizer: str, budget: Budget, encoders: int, view: View = View(), stopping: Stopping = NEVER
) -> None:
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
    if optimizer != "momentum" and stopping != NEVER:
        raise ShadeFastError(
            f"optimizer {optimizer!r}: the published loops take all their steps; leave out stop_ratio, patience"
        )


def optimize(
    problem: Problem,
    optimizer: str,
    budget: Budget,
    steps: int,
    start: torch.Tensor | None = None,
    stopping: Stopping = NEVER,
    slots: Slots | None = None,
) -> Optimized:
    """Run an optimiser; what the file may hold is `project`'s to see to.

    start: what momentum begins with, float32 [B, 3, H, W] in units of linf; None for no perturbation.
    stopping: what ends an image of momentum early; the published loops take all their steps.
    slots: where momentum's images take their steps; None for as many slots as there are images.
    Raises ShadeFastError as `check_optimizer` does.
    """
    check_optimizer(optimizer, budget, len(problem.encoders))
    if optimizer == "momentum":
        return momentum(problem, budget, steps, start, stopping, slots)
    delta, history = PUBLISHED[optimizer](problem, budget, steps)
    return Optimized(delta, torch.stack(history), torch.full_like(problem.start, steps, dtype=torch.int64))


def momentum(
    problem: Problem,
    budget: Budget,
    steps: int,
    start: torch.Tensor | None = None,
    stopping: Stopping = NEVER,
    slots: Slots | None = None,
) -> Optimized:
    """Sign-momentum with a step that falls linearly, `shade_fast.engine.step.Step`.

    Where the view is the same in every step, the best iterate is kept instead of the last if it was better.
    """
    return (slots or Slots()).run(problem, Recipe(budget, steps, stopping), start)


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
        on_step=_told(history),
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
        on_step=_told(history),
    )
    return perturbed - clean, history


def _told(history: History) -> Callable[[int, torch.Tensor], None]:
    """What a published loop tells its distances to."""

    def told(_: int, distance: torch.Tensor) -> None:
        history.append(distance)
        pulse()

    return told


PUBLISHED: dict[str, Callable[[Problem, Budget, int], tuple[torch.Tensor, History]]] = {
    "release": release,
    "paper": paper,
}
OPTIMIZERS = ("momentum", *PUBLISHED)
