"""The objective and the perceptual distance of a batch of images, both taken through the view."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from shade_fast import runtime
from shade_fast.encoders import Encoder
from shade_fast.engine.devices import kernels
from shade_fast.ops import latent_distance
from shade_fast.ops.layout import memory_order
from shade_fast.perceptual import Perceptual
from shade_fast.system.pulse import pulse
from shade_fast.views import ViewPlan
from shade_fast.views.transforms import Draw


class Problem:
    """What is minimised for a batch of clean images of one size, and what bounds it.

    With one encoder the objective is ‖E(view(x)) - anchor_latent‖₂; with several it is the weighted mean of these, each
    over its own value at the clean image.

    clean: uint8 [B, 3, H, W]. anchor_latents: one [B, C, h, w] for each encoder. perceptual: None where LPIPS is
    neither bounded nor measured. Everything is on one device. randoms: one for each image where the plan has
    transforms, else none. weights: of the encoders, None for equal ones; positive. visible: bool [B, 1, H, W], False
    where the image is fully transparent and stays as it is; None where it is nowhere. through: from perturbations
    [B, 3, H, W] to those that the images' codecs leave of them, for files that lose something; the gradient is then
    taken there.
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
        randoms: Sequence[np.random.Generator] = (),
        weights: Sequence[float] | None = None,
        visible: torch.Tensor | None = None,
        through: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.clean = clean
        self.plan = plan
        self.encoders = tuple(encoders)
        self.anchor_latents = tuple(anchor_latents)
        self.perceptual = perceptual
        self.backend = backend
        weights = [1.0] * len(self.encoders) if weights is None else list(weights)
        self.weights = [weight / sum(weights) for weight in weights]
        self._randoms = tuple(randoms)
        self.visible = visible
        self.through = through
        #: by the encoder's place, the tensors that its last distance and gradient were written to
        self._written: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        with torch.no_grad(), runtime.exact_products(clean.device):
            self._clean_view = view = self.see(clean / 255)
            #: each encoder's distance at the clean images, [B]
            self.starts = tuple(self.distances(view))
            #: objective there, [B]
            self.start = self.objective(self.starts)
            self._clean_features = None if perceptual is None else perceptual.features(view)

    @property
    def alike(self) -> tuple[object, ...]:
        """What two problems must share for their images to take each other's place."""
        networks = (*(id(encoder.module) for encoder in self.encoders), id(self.perceptual))
        return (tuple(self.clean.shape[1:]), self.plan, networks, tuple(self.weights), self.backend)

    @property
    def fixed(self) -> bool:
        """Whether all steps run the same operations: nothing is drawn anew, and no file's codec is used."""
        return not self._randoms and self.through is None and self.visible is None

    def room(self, count: int) -> Problem:
        """A problem with room for `count` images; until others are put in, all are copies of this one's first."""
        problem = copy.copy(self)
        problem._written = {}
        for name, value in self._of_images().items():
            several = isinstance(value, tuple)
            rooms = tuple(_room(tensor, count) for tensor in (value if several else (value,)))
            setattr(problem, name, rooms if several else rooms[0])
        return problem

    def put(self, place: int, other: Problem, image: int) -> None:
        """One image takes the place of another, in the tensors that are there."""
        theirs = other._of_images()
        for name, value in self._of_images().items():
            if isinstance(value, tuple):
                for mine, source in zip(value, theirs[name], strict=True):
                    mine[place].copy_(source[image])
            else:
                value[place].copy_(theirs[name][image])

    def _of_images(self) -> dict[str, Any]:
        """The images' data by attribute: tensors and tuples of tensors, images first."""
        names = ("clean", "anchor_latents", "_clean_view", "starts", "start", "_clean_features")
        return {name: vars(self)[name] for name in names if vars(self)[name] is not None}

    def see(self, images: torch.Tensor) -> torch.Tensor:
        """The view of images or perturbations, [B, 3, H, W] -> [B, 3, h, w]; linear and differentiable."""
        return self.plan.apply(images, backend=kernels(self.backend))

    def distances(self, view: torch.Tensor, draws: Sequence[Draw] = ()) -> list[torch.Tensor]:
        """Each encoder's latent distance [B] of what it sees, [B, 3, h, w]; differentiable.

        draws: the transforms drawn for this view, for the latents that move with it.
        """
        return [
            self._latent_distance(encoder, view, _drawn(latents, draws))
            for encoder, latents in zip(self.encoders, self.anchor_latents, strict=True)
        ]

    def _latent_distance(self, encoder: Encoder, view: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        pulse()
        encoder.check_images(view)
        joint = runtime.latent_distance(encoder.module, view, latents)
        return latent_distance(encoder.encode(view), latents, backend=kernels(self.backend)) if joint is None else joint

    def _latent_gradient(
        self, index: int, view: torch.Tensor, draws: Sequence[Draw]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One encoder's latent distance [B] and its gradient in what it sees; the next call may write over them."""
        pulse()
        encoder, latents = self.encoders[index], _drawn(self.anchor_latents[index], draws)
        encoder.check_images(view)
        joint = runtime.latent_gradient(encoder.module, view, latents, self._written.get(index))
        if joint is not None:
            self._written[index] = joint
            return joint
        view = view.requires_grad_(True)
        distance = self._latent_distance(encoder, view, latents)
        return distance.detach(), torch.autograd.grad(distance.sum(), view)[0]

    def distance(self, view: torch.Tensor) -> torch.Tensor:
        """The objective [B] of what the encoders see, [B, 3, h, w]; differentiable."""
        return self.objective(self.distances(view))

    def objective(self, distances: Sequence[torch.Tensor]) -> torch.Tensor:
        """The objective [B] of the encoders' distances."""
        if len(distances) == 1:
            return distances[0]
        tiny = torch.finfo(distances[0].dtype).tiny
        return torch.stack(
            [
                weight * distance / start.clamp_min(tiny)
                for weight, distance, start in zip(self.weights, distances, self.starts, strict=True)
            ]
        ).sum(dim=0)

    def lpips(self, view: torch.Tensor) -> torch.Tensor | None:
        """LPIPS distance [B] of a view to the clean images' view; differentiable. None without a network."""
        if self.perceptual is None or self._clean_features is None:
            return None
        return self.perceptual.distance(view, self._clean_features)

    @torch.no_grad()
    def measure(self, pixels: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Each encoder's distance [B], and LPIPS [B], of uint8 images [B, 3, H, W]."""
        with runtime.exact_products(self.clean.device):
            view = self.see(pixels / 255)
            return self.distances(view), self.lpips(view)

    def gradient(
        self, delta: torch.Tensor, weigh: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Descent direction at clean + delta, [B, 3, H, W], and the objective there, [B].

        weigh: from the LPIPS distances [B] there to the weights [B] of their gradients; None leaves LPIPS out.

        Each term's gradient, of every encoder and of LPIPS, is taken where it is seen and divided by its mean
        magnitude, so that the weights have no unit; an encoder's is multiplied by its start over its distance. The sum
        is then led back through the view. The view is linear, so the clean image's part of it is kept, and clean +
        delta is never made at the file's size. Where the plan has transforms, the encoders see one draw of them; LPIPS
        does not.
        """
        delta = delta.detach().requires_grad_(True)
        kept = delta if self.visible is None else delta * self.visible
        if self.through is not None:
            # Straight through: the codec's rounding has no useful derivative, so the gradient is taken at what it
            # leaves.
            kept = kept + (self.through(kept.detach()) - kept.detach())
        seen = self.see(kept)
        view = (self._clean_view + seen).detach().requires_grad_(True)
        draws = [self.plan.draw(random, backend=kernels(self.backend)) for random in self._randoms]
        shown = view
        if draws:
            shown = torch.cat([draw.image(view[index : index + 1]) for index, draw in enumerate(draws)])
        distances: list[torch.Tensor] = []
        terms: list[torch.Tensor] = []
        for index, (weight, start) in enumerate(zip(self.weights, self.starts, strict=True)):
            distance, gradient = self._latent_gradient(index, shown.detach(), draws)
            distances.append(distance.clone())
            if len(self.encoders) > 1:
                # Steps count as shares of the remaining distance: an encoder that is moved easily does not pay for the
                # others.
                least = 1e-3 * start.clamp_min(torch.finfo(start.dtype).tiny)
                share = start / torch.maximum(distance, least)
                gradient = (weight * share)[:, None, None, None] * _normalized(gradient)
            terms.append(gradient)
        direction = functools.reduce(torch.add, terms)
        if draws:
            (direction,) = torch.autograd.grad(shown, view, direction)
        direction = _normalized(direction)
        lpips = None if weigh is None else self.lpips(view)
        if weigh is not None and lpips is not None:
            constraint = _normalized(torch.autograd.grad(lpips.sum(), view)[0])
            direction = direction + weigh(lpips.detach())[:, None, None, None] * constraint
        (gradient,) = torch.autograd.grad(seen, delta, direction)
        return gradient, self.objective(distances)


def _drawn(latents: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Latents [B, C, h, w] where the images' draws take them."""
    if all(draw.latent is None for draw in draws):
        return latents
    moved = [latents[index : index + 1] for index in range(len(latents))]
    moved = [latent if draw.latent is None else draw.latent(latent) for draw, latent in zip(draws, moved, strict=True)]
    return torch.cat(moved)


def _room(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """A tensor for as many images as asked for, filled with the first, in its memory order."""
    order = memory_order(tensor) if tensor.ndim == 4 else torch.contiguous_format
    copies = torch.empty((count, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device, memory_format=order)
    return copies.copy_(tensor[:1])


def _normalized(gradient: torch.Tensor) -> torch.Tensor:
    """Each image's gradient over its mean magnitude; zero stays zero."""
    mean = gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
    return gradient / torch.where(mean > 0, mean, 1)
