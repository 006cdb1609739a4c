"""One perturbation for many images: what a warm start is fitted by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from shade_fast.engine.devices import kernels
from shade_fast.engine.lpips_control import LpipsControl
from shade_fast.engine.problem import Problem
from shade_fast.engine.step import DECAY, DEFAULT_UNIT, STEP_SIZE, inside
from shade_fast.ops import optimizer_update
from shade_fast.terms.budget import Budget


def optimize_together(
    problems: Sequence[Problem],
    budget: Budget,
    steps: int,
    share: int,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """A perturbation that moves many images at once, float32 [1, 3, H, W] in units of linf, inside [-1, 1].

    `momentum`'s recipe along the sum of `share` images' gradients a step, drawn anew for each; an LPIPS bound is held
    in each image by a control of its own. problems: of one image each, all of one size.
    """
    random = np.random.default_rng(seed)
    box = DEFAULT_UNIT if budget.linf is None else budget.levels / 255
    delta = torch.zeros_like(problems[0].clean, dtype=torch.float32)
    momentum_buffer = torch.zeros_like(delta)
    # Middle grey: no single image's range should bound a perturbation for all.
    grey = torch.full_like(problems[0].clean, 128)
    controls = [None if budget.lpips is None else LpipsControl(budget.lpips, 1, delta.device) for _ in problems]
    for i in range(steps):
        total = torch.zeros_like(delta)
        for index in random.choice(len(problems), min(share, len(problems)), replace=False):
            problem = problems[index]
            gradient, _ = problem.gradient(inside(delta, problem.clean), controls[index])
            total += gradient / gradient.abs().mean().clamp_min(torch.finfo(gradient.dtype).tiny)
        optimizer_update(
            delta,
            momentum_buffer,
            total,
            grey,
            step=STEP_SIZE * box * (1 - i / steps),
            decay=DECAY,
            linf=box,
            backend=kernels(problems[0].backend),
        )
        on_step()
    return delta / box
