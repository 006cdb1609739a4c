"""Fitting a warm start: one perturbation that moves many images' latents towards an anchor's at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from shade_fast.anchors import Anchor, Target
from shade_fast.api.poisoner import Poisoner
from shade_fast.engine import Problem, kernels, optimize_together
from shade_fast.images import ImageLike, decode
from shade_fast.images.batch import listed
from shade_fast.protect.warm_start import Size, WarmStart, encoder_hashes
from shade_fast.terms.checks import at_least
from shade_fast.terms.errors import ShadeFastError
from shade_fast.views import View

#: Images whose gradients are added up for a step, drawn anew for each.
SHARE = 8


def fit_start(
    images: Sequence[ImageLike] | torch.Tensor,
    target: Target | Anchor,
    poisoner: Poisoner,
    *,
    steps: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> WarmStart:
    """Fit a warm start to a sample of an archive, for `Poisoner(start=...)` and `poison_batch(start=...)`.

    It has one perturbation for each size of view in the sample and each of the anchor's images. Sign-momentum moves it
    along the sum of the images' normalised gradients; each costs about `8·steps` gradients.

    images: the sample, some dozens, as for `poison_batch`; sizes that few images have are fitted to those few.
    target: as for `poison_batch`. poisoner: the encoders, budget, view (without its random transforms) and seed to fit
        for; the fit runs on the first of its devices.
    progress: called with (done, total) after each step.

    Raises ShadeFastError for no images, one that cannot be decoded or seen, and an encoder without a hash.
    """
    images, steps = listed(images), at_least("steps", steps)
    hashes = encoder_hashes(poisoner.encoders)
    anchor = poisoner.anchor(target)
    views: dict[Size, list[torch.Tensor]] = {}
    with torch.no_grad():
        for image in images:
            decoded = decode(image)
            pixels = torch.tensor(decoded.pixels).permute(2, 0, 1)[None].to(poisoner.device)
            try:
                plan = poisoner.view.plan(pixels.shape[2], pixels.shape[3], poisoner.factor)
            except ShadeFastError as error:
                raise ShadeFastError(f"{decoded.name}: {error}") from error
            seen = plan.apply(pixels / 255, backend=kernels(poisoner.backend))
            views.setdefault(plan.crop, []).append((255 * seen).round().to(torch.uint8))
    total, done = len(views) * len(anchor) * steps, 0

    def count() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    perturbations = {}
    budget, seed = poisoner.options.budget, poisoner.options.seed
    encoders, perceptual = poisoner.protector.moving
    for size, clean in views.items():
        candidates = [anchor.latents(encoder, size) for encoder in poisoner.encoders]
        fitted = []
        for pick in range(len(anchor)):
            problems = [
                Problem(
                    image,
                    View(None).plan(*size, poisoner.factor),
                    encoders,
                    [latents[pick : pick + 1] for latents in candidates],
                    perceptual,
                    poisoner.backend,
                    weights=poisoner.weights,
                )
                for image in clean
            ]
            fitted.append(optimize_together(problems, budget, steps, SHARE, seed, count))
        perturbations[size] = torch.cat(fitted).cpu()
    return WarmStart(
        perturbations=perturbations,
        anchor_sha256=anchor.sha256,
        encoder_sha256=hashes,
        images=len(images),
        steps=steps,
    )
