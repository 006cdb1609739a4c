"""The loop of the published Nightshade release: signed gradient steps of falling length inside an L∞ box."""

from __future__ import annotations

from collections.abc import Callable

import torch


def release_loop(
    encode: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    anchor_latent: torch.Tensor,
    linf: float,
    steps: int = 500,
    *,
    on_step: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Move each image's latent towards the anchor's by the release's loop; returns the last iterate.

        delta <- clamp(delta - a_i·sign(g), -linf, linf),  a_i = linf - (linf - linf/100)·i/steps
        g = gradient in delta of ‖encode(clamp(x + delta, 0, 1)) - anchor_latent‖₂

    The release works on [-1, 1] pixels with a box of 2·linf. Everything in its loop but the encoder scales with the
    range, so the same steps are taken here on [0, 1] pixels directly, and no conversion can drift.

    encode: [N, 3, H, W] in [0, 1] -> latents [N, C, h, w]; each image's latent must depend on that image alone.
    x: clean images, float [N, 3, H, W] in [0, 1]. anchor_latent: [C, h, w] or [N, C, h, w].
    linf: half the box's side, in [0, 1] units. on_step(i, distances [N]) is called before step i.
    Returns float [N, 3, H, W] in [0, 1]. Source: arXiv 2310.13828, the authors' release.
    """
    delta = torch.zeros_like(x)
    for i in range(steps):
        step_size = linf - (linf - linf / 100) / steps * i
        delta.requires_grad_(True)
        latent = encode(torch.clamp(x + delta, 0, 1))
        distance = (latent - anchor_latent).flatten(1).norm(dim=1)
        (gradient,) = torch.autograd.grad(distance.sum(), delta)
        if on_step is not None:
            on_step(i, distance.detach())
        delta = torch.clamp(delta.detach() - step_size * gradient.sign(), -linf, linf)
    return torch.clamp(x + delta, 0, 1)
