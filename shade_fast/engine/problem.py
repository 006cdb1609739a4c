"""The objective and the perceptual distance of a batch of images, both taken through the view."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from shade_fast.encoders import Encoder
from shade_fast.engine.devices import kernels
from shade_fast.ops import latent_distance
from shade_fast.perceptual import Perceptual
from shade_fast.view import ViewPlan


class Problem:
    """What is minimised for a batch of clean images of one size, and what bounds it.

    With one encoder the objective is ‖E(view(x)) - anchor_latent‖₂; with several it is the mean of these, each over
    its own value at the clean image.

    clean: uint8 [B, 3, H, W]. anchor_latents: one [B, C, h, w] for each encoder. perceptual: None where LPIPS is
    neither bounded nor measured. Everything is on one device. visible: bool [B, 1, H, W], False where the image is
    fully transparent and stays as it is; None where it is nowhere. through: from perturbations [B, 3, H, W] to those
    that the images' codecs leave of them, for files that lose something; the gradient is then taken there.
    """

    def __init__(
        self,
        clean: torch.Tensor,
        plan: ViewPlan,
        encoders: Sequence[Encoder],
        anchor_latents: Sequence[torch.Tensor],
        perceptual: Perceptual | None,
        backend: str = "reference",
        *,
        visible: torch.Tensor | None = None,
        through: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.clean = clean
        self.plan = plan
        self.encoders = tuple(encoders)
        self.anchor_latents = tuple(anchor_latents)
        self.perceptual = perceptual
        self.backend = backend
        self.visible = visible
        self.through = through
        with torch.no_grad():
            self._clean_view = view = self.see(clean / 255)
            self._starts = [self._encoder_distance(index, view) for index in range(len(self.encoders))]
            #: objective at the clean images, [B]
            self.start = self.distance(view)
            self._clean_features = None if perceptual is None else perceptual.features(view)

    def see(self, images: torch.Tensor) -> torch.Tensor:
        """The view of images or perturbations, [B, 3, H, W] -> [B, 3, h, w]; linear and differentiable."""
        return self.plan.apply(images, backend=kernels(self.backend))

    def distance(self, view: torch.Tensor) -> torch.Tensor:
        """The objective [B] of what the encoders see, [B, 3, h, w]; differentiable."""
        if len(self.encoders) == 1:
            return self._encoder_distance(0, view)
        terms = [
            self._encoder_distance(index, view) / start.clamp_min(torch.finfo(start.dtype).tiny)
            for index, start in enumerate(self._starts)
        ]
        return torch.stack(terms).mean(dim=0)

    def lpips(self, view: torch.Tensor) -> torch.Tensor | None:
        """LPIPS distance [B] of a view to the clean images' view; differentiable. None without a network."""
        if self.perceptual is None or self._clean_features is None:
            return None
        return self.perceptual.distance(view, self._clean_features)

    @torch.no_grad()
    def measure(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Objective [B] and LPIPS [B] of uint8 images [B, 3, H, W]."""
        view = self.see(pixels / 255)
        return self.distance(view), self.lpips(view)

    def gradient(
        self, delta: torch.Tensor, weigh: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Descent direction at clean + delta, [B, 3, H, W], and the objective there, [B].

        weigh: from the LPIPS distances [B] there to the weights [B] of their gradients; None leaves LPIPS out.

        Each term's gradient is taken where the encoder sees it and divided by its mean magnitude, so that the weights
        have no unit; the sum is then led back through the view. The view is linear, so the clean image's part of it is
        kept, and clean + delta is never made at the file's size.
        """
        delta = delta.detach().requires_grad_(True)
        kept = delta if self.visible is None else delta * self.visible
        if self.through is not None:
            # Straight through: the codec's rounding has no useful derivative, its place in the image is what counts.
            kept = kept + (self.through(kept.detach()) - kept.detach())
        seen = self.see(kept)
        view = (self._clean_view + seen).detach().requires_grad_(True)
        distance = self.distance(view)
        direction = _normalized(torch.autograd.grad(distance.sum(), view)[0])
        lpips = None if weigh is None else self.lpips(view)
        if weigh is not None and lpips is not None:
            constraint = _normalized(torch.autograd.grad(lpips.sum(), view)[0])
            direction = direction + weigh(lpips.detach())[:, None, None, None] * constraint
        (gradient,) = torch.autograd.grad(seen, delta, direction)
        return gradient, distance.detach()

    def _encoder_distance(self, index: int, view: torch.Tensor) -> torch.Tensor:
        latents = self.encoders[index].encode(view)
        return latent_distance(latents, self.anchor_latents[index], backend=kernels(self.backend))


def _normalized(gradient: torch.Tensor) -> torch.Tensor:
    """Each image's gradient over its mean magnitude; zero stays zero."""
    mean = gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
    return gradient / torch.where(mean > 0, mean, 1)
