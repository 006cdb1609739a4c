"""The loop of the Nightshade paper: Adam on the latent distance with an LPIPS penalty."""

from __future__ import annotations

from collections.abc import Callable

import torch


def paper_loop(
    encode: Callable[[torch.Tensor], torch.Tensor],
    lpips: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    anchor_latent: torch.Tensor,
    lpips_bound: float = 0.07,
    alpha: float = 30.0,
    lr: float = 0.01,
    steps: int = 500,
    *,
    on_step: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Move each image's latent towards the anchor's by the paper's loop; returns the last iterate.

        minimise ‖encode(x + delta) - anchor_latent‖² + alpha·max(LPIPS(x + delta, x) - lpips_bound, 0)  with Adam

    lr is the paper's, for [-1, 1] pixels: delta is kept in that range's units and halved where it meets x.
    The penalty is soft and no L∞ bound is held: neither bound is promised of the result.

    encode, x, anchor_latent, on_step: as for `release_loop`. lpips: two [N, 3, H, W] in [0, 1] -> [N].
    Returns float [N, 3, H, W] in [0, 1]. Source: arXiv 2310.13828, section 5.
    """
    delta = torch.zeros_like(x, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=lr)
    for i in range(steps):
        perturbed = torch.clamp(x + delta / 2, 0, 1)
        squared = (encode(perturbed) - anchor_latent).flatten(1).square().sum(dim=1)
        penalty = torch.clamp(lpips(perturbed, x) - lpips_bound, min=0)
        (delta.grad,) = torch.autograd.grad((squared + alpha * penalty).sum(), delta)
        if on_step is not None:
            on_step(i, squared.detach().sqrt())
        adam.step()
    return torch.clamp(x + delta.detach() / 2, 0, 1)
