"""Signed gradient descent inside an L∞ box: the loops of PhotoGuard and of Mist, as functions of an encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Encode = Callable[[torch.Tensor], torch.Tensor]
OnStep = Callable[[int, torch.Tensor], None]


def photoguard_loop(
    encode: Encode,
    x: torch.Tensor,
    anchor_latent: torch.Tensor,
    linf: float = 0.03,
    step_size: float = 0.01,
    steps: int = 200,
    *,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Move each image's latent towards the anchor's by PhotoGuard's encoder attack; returns the last iterate.

        x_adv <- project(x_adv - a_i·sign(g)),  a_i = step_size - (step_size - step_size/100)·i/steps

    It starts from uniform noise in the box, the same for every image. Published for [-1, 1] pixels, where the bound is
    0.06 and the first step 0.02, and for 1000 or 200 steps.

    encode, x, anchor_latent, linf, on_step: as for `release_loop`. step_size: the first step, in [0, 1] units.
    Returns float [N, 3, H, W] in [0, 1]. Source: arXiv 2302.06588, section 4 (its encoder attack).
    """
    noise = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=x.dtype).to(x.device)
    sizes = [step_size - (step_size - step_size / 100) / steps * i for i in range(steps)]
    return _descend(encode, x, x + (2 * noise - 1) * linf, anchor_latent, linf, sizes, on_step)


def mist_loop(
    encode: Encode,
    x: torch.Tensor,
    anchor_latent: torch.Tensor,
    linf: float = 16 / 255,
    step_size: float = 1 / 255,
    steps: int = 100,
    *,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Move each image's latent towards the anchor's by the latent term of Mist alone; returns the last iterate.

        x_adv <- project(x_adv - step_size·sign(g))

    Mist adds a diffusion model's loss to this term, and with its weight at 0 it is this loop.

    encode, x, anchor_latent, linf, on_step: as for `release_loop`. step_size: of every step, in [0, 1] units.
    Returns float [N, 3, H, W] in [0, 1]. Source: arXiv 2305.12683 (its textural loss).
    """
    return _descend(encode, x, x, anchor_latent, linf, [step_size] * steps, on_step)


def _descend(
    encode: Encode,
    x: torch.Tensor,
    start: torch.Tensor,
    anchor_latent: torch.Tensor,
    linf: float,
    step_sizes: Sequence[float],
    on_step: OnStep | None,
) -> torch.Tensor:
    """Signed steps down ‖encode(x_adv) - anchor_latent‖₂; x_adv stays in the box around x and in [0, 1]."""
    low, high = (x - linf).clamp(0, 1), (x + linf).clamp(0, 1)
    perturbed = start.clamp(low, high)
    for i, step_size in enumerate(step_sizes):
        perturbed.requires_grad_(True)
        distance = (encode(perturbed) - anchor_latent).flatten(1).norm(dim=1)
        (gradient,) = torch.autograd.grad(distance.sum(), perturbed)
        if on_step is not None:
            on_step(i, distance.detach())
        perturbed = (perturbed.detach() - step_size * gradient.sign()).clamp(low, high)
    return perturbed
