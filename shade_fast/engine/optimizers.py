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

#: Length of the first step, in units of linf, and the share of the momentum that is kept from step to step.
STEP_SIZE, DECAY = 0.3, 0.8
#: How fast the LPIPS term's weight follows the violation of its bound, and what it is kept between.
MULTIPLIER_RATE, MULTIPLIER_RANGE = 0.3, (0.01, 50.0)
#: Steps are sized as for this linf where none is given.
DEFAULT_UNIT = 16 / 255

History = list[torch.Tensor]


def check_optimizer(optimizer: str, budget: Budget, encoders: int) -> None:
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


def optimize(problem: Problem, optimizer: str, budget: Budget, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Run an optimiser: perturbation float32 [B, 3, H, W], and the objective before each step, [steps, B].

    The perturbation keeps the images in [0, 1], and inside linf where the optimiser knows one; what the file may hold
    is `project`'s to see to. Raises ShadeFastError as `check_optimizer` does.
    """
    check_optimizer(optimizer, budget, len(problem.encoders))
    delta, history = OPTIMIZERS[optimizer](problem, budget, steps)
    return delta, torch.stack(history)


def momentum(problem: Problem, budget: Budget, steps: int) -> tuple[torch.Tensor, History]:
    """Sign-momentum with a cosine step; the LPIPS bound is held by a multiplier of each image's own.

    m <- 0.8·m + g/mean|g|,   delta <- clamp(delta - a_i·sign(m), -linf, linf),   a_i: cosine from 0.3·linf to 0
    g = ∇objective/mean|∇objective| + multiplier·∇LPIPS/mean|∇LPIPS|
    multiplier <- multiplier·exp(0.3·clip(LPIPS/bound - 1, -1, 1)),  inside [0.01, 50]
    """
    delta = torch.zeros_like(problem.clean, dtype=torch.float32)
    momentum_buffer = torch.zeros_like(delta)
    # The file holds whole levels: a box between two of them would only be rounded away.
    box = budget.levels / 255
    unit = DEFAULT_UNIT if budget.linf is None else box
    multiplier = None
    if budget.lpips is not None:
        multiplier = torch.ones(len(delta), device=delta.device)
    history = []
    for i in range(steps):
        gradient, distance, lpips = problem.gradient(delta, multiplier)
        history.append(distance)
        if multiplier is not None and lpips is not None and budget.lpips is not None:
            violation = (lpips / budget.lpips - 1).clamp(-1, 1)
            multiplier = (multiplier * torch.exp(MULTIPLIER_RATE * violation)).clamp(*MULTIPLIER_RANGE)
        step_size = STEP_SIZE * unit * (1 + math.cos(math.pi * i / steps)) / 2
        optimizer_update(
            delta,
            momentum_buffer,
            gradient,
            problem.clean,
            step=step_size,
            decay=DECAY,
            linf=box,
            backend=kernels(problem.backend),
        )
    return delta, history


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
