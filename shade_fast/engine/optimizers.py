"""The optimisers by name: our sign-momentum loop that holds both bounds, and the published loops run on a problem.

One more is a function and a row of `OPTIMIZERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Optimizer:
    """A loop, and what it can do.

    run: takes a problem, budget, steps, start, stopping and slots, as `optimize`. needs: the bound that the budget must
    have for it, and why. published: whether it is a published loop, which knows one encoder, one view and no warm
    start, and takes all its steps. keeps_networks: whether all networks' steps are in memory at the same time.
    """

    run: Callable[[Problem, Budget, int, torch.Tensor | None, Stopping, Slots | None], Optimized]
    needs: tuple[str, str] | None = None
    published: bool = False
    keeps_networks: bool = False


def check_optimizer(
    optimizer: str,
    budget: Budget,
    encoders: int,
    view: View = View(),
    stopping: Stopping = NEVER,
    *,
    start: bool = False,
) -> None:
    """Raise ShadeFastError for an unknown optimiser, and for what a published loop cannot do, with the fix.

    encoders: how many. start: whether there is a warm start.
    """
    if not isinstance(optimizer, str) or optimizer not in OPTIMIZERS:
        raise ShadeFastError(f"optimizer {optimizer!r}: give one of {', '.join(OPTIMIZERS)}")
    known = OPTIMIZERS[optimizer]
    if known.needs is not None and getattr(budget, known.needs[0]) is None:
        raise ShadeFastError(f"optimizer {optimizer!r}: {known.needs[1]}")
    if not known.published:
        return
    for asked, refusal in (
        (encoders != 1, "know one encoder; use 'momentum' for several"),
        (view.transforms, "know no random view; use 'momentum', or a view without transforms"),
        (stopping != NEVER, "take all their steps; leave out stop_ratio, patience"),
        (start, "have no warm start; leave it out"),
    ):
        if asked:
            raise ShadeFastError(f"optimizer {optimizer!r}: the published loops {refusal}")


def optimize(
    problem: Problem,
    optimizer: str,
    budget: Budget,
    steps: int,
    start: torch.Tensor | None = None,
    stopping: Stopping = NEVER,
    slots: Slots | None = None,
) -> Optimized:
    """Run an optimiser; rounding to what a file can hold is left to `project`.

    start: what momentum begins with, float32 [B, 3, H, W] in units of linf; None for no perturbation.
    stopping: what ends an image of momentum early; the published loops take all their steps.
    slots: where momentum's images take their steps; None for as many slots as there are images.
    Raises ShadeFastError as `check_optimizer` does.
    """
    check_optimizer(optimizer, budget, len(problem.encoders))
    return OPTIMIZERS[optimizer].run(problem, budget, steps, start, stopping, slots)


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


def release(problem: Problem, budget: Budget, steps: int, *_: object) -> Optimized:
    """`shade_fast.reference.release_loop` through the problem's view."""
    history: History = []
    clean = problem.clean / 255
    perturbed = release_loop(
        lambda images: problem.encoders[0].encode(problem.see(images)),
        clean,
        problem.anchor_latents[0],
        cast(float, budget.linf),
        steps,
        on_step=_recorder(history),
    )
    return _published(problem, perturbed - clean, history, steps)


def paper(problem: Problem, budget: Budget, steps: int, *_: object) -> Optimized:
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
        on_step=_recorder(history),
    )
    return _published(problem, perturbed - clean, history, steps)


def _published(problem: Problem, delta: torch.Tensor, history: History, steps: int) -> Optimized:
    return Optimized(delta, torch.stack(history), torch.full_like(problem.start, steps, dtype=torch.int64))


def _recorder(history: History) -> Callable[[int, torch.Tensor], None]:
    """What a published loop calls at each step: it keeps the distances."""

    def record(_: int, distance: torch.Tensor) -> None:
        history.append(distance)
        pulse()

    return record


OPTIMIZERS = {
    "momentum": Optimizer(momentum),
    "release": Optimizer(release, ("linf", "its steps are sized by linf; give the budget one"), published=True),
    "paper": Optimizer(
        paper,
        ("lpips", "it minimises an LPIPS penalty; give the budget an lpips bound"),
        published=True,
        keeps_networks=True,
    ),
}
