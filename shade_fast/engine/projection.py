"""From a perturbation to the pixels of a file that holds both bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch.nn import functional

from shade_fast.engine.devices import kernels
from shade_fast.engine.problem import Problem
from shade_fast.ops import bisect_scale, quantize
from shade_fast.ops.bisect_scale import start as first_interval
from shade_fast.terms.budget import Budget

#: What a file's codec makes of an image: uint8 [3, H, W] -> uint8 [3, H, W], decoded again.
Codec = Callable[[torch.Tensor], torch.Tensor]

#: LPIPS is held to this share of its bound, so that it also holds in another machine's arithmetic.
LPIPS_MARGIN = 1 - 1e-4
#: How often pixels that a codec moves out of the box are pulled back before it.
PULLS = 4
#: How often, and to which share, the perturbation is shrunk around pixels that are still outside: as far as a JPEG's
#: block reaches.
SHRINKS, SHRINK, BLOCK = 8, 0.6, 4
#: Halvings of the interval that the scale is known to lie in.
BISECTIONS = 6
#: The share of the latent's shift that a codec has to keep; below it the next, finer one is tried.
KEPT_SHIFT = 0.75


@dataclass(frozen=True)
class Projected:
    """Pixels and what was measured on them, for a batch.

    stored: uint8 [B, 3, H, W], what the codec is given. pixels: what it makes of them (the same without one).
    levels: largest change of a uint8 value, [B]. distances: each encoder's, [B, encoders]. distance (the objective),
    lpips (None without a network), scale (the share of the perturbation that was kept): float [B]. held: bool [B],
    whether the budget is held.
    """

    stored: torch.Tensor
    pixels: torch.Tensor
    levels: torch.Tensor
    distance: torch.Tensor
    distances: torch.Tensor
    lpips: torch.Tensor | None
    scale: torch.Tensor
    held: torch.Tensor


@torch.no_grad()
def project(
    problem: Problem,
    delta: torch.Tensor,
    budget: Budget,
    codecs: Sequence[Codec | None] | None = None,
) -> Projected:
    """Round clean + scale·delta to uint8, with the largest scale in [0, 1] (by bisection) that holds the budget.

    Both bounds are judged on what the file will show: the rounded pixels, after the image's codec where it has one.
    `held` is False only where a codec breaks a bound by itself; the pixels are then the codec's of the clean image.
    """

    def attempt(scale: torch.Tensor) -> Projected:
        stored = pixels = quantize(problem.clean, delta, scale, levels=budget.levels, backend=kernels(problem.backend))
        if codecs is not None:
            fitted = [
                _fit(image, clean, codec, budget.levels) if codec else (image, image)
                for image, clean, codec in zip(stored, problem.clean, codecs, strict=True)
            ]
            stored, pixels = (torch.stack(images) for images in zip(*fitted, strict=True))
        change = (pixels.to(torch.int16) - problem.clean.to(torch.int16)).abs()
        levels = change.flatten(1).amax(dim=1)
        distances, lpips = problem.measure(pixels)
        distance = problem.objective(distances)
        held = levels <= budget.levels
        if budget.lpips is not None and lpips is not None:
            held = held & (lpips <= budget.lpips * LPIPS_MARGIN)
        return Projected(stored, pixels, levels, distance, torch.stack(distances, dim=1), lpips, scale, held)

    best = attempt(torch.ones(len(delta), device=delta.device))
    if bool(best.held.all()):
        return best
    if codecs is None and problem.backend == "cuda" and budget.lpips is not None and best.lpips is not None:
        best = _choose(best.held, best, attempt(_largest_scale(problem, delta, budget, best.lpips)))
        if bool(best.held.all()):
            return best
    if codecs is not None:
        # Pixels inside the box stay there when the perturbation shrinks, except a few.
        fitted_delta = (best.stored.float() - problem.clean) / 255
        coded = torch.tensor([codec is not None for codec in codecs], device=delta.device)
        delta = torch.where(coded.view(-1, 1, 1, 1), fitted_delta, delta)
    low, high = torch.zeros_like(best.scale), best.scale
    # LPIPS grows at least in proportion to the scale near its bound: a scale of bound/LPIPS starts close below it.
    guess = 0.5 * high
    if budget.lpips is not None and best.lpips is not None:
        guess = torch.where(best.lpips > budget.lpips, high * (budget.lpips / best.lpips), guess)
    done = best.held
    best = _choose(done, best, attempt(torch.where(done, 1.0, low)))
    for _ in range(BISECTIONS + 1):
        middle = attempt(torch.where(done, 1.0, guess))
        better = middle.held & ~done
        best = _choose(better, middle, best)
        low = torch.where(better, guess, low)
        high = torch.where(better | done, high, guess)
        guess = (low + high) / 2
    return best


@torch.no_grad()
def project_to_files(
    problem: Problem, delta: torch.Tensor, budget: Budget, attempts: Sequence[Sequence[Codec]]
) -> tuple[Projected, list[int]]:
    """`project` through the first of each image's codecs that holds the budget and keeps `KEPT_SHIFT` of the shift that
    the perturbation has without one; through the best where none does. Also which one that is, of each image.

    attempts: each image's codecs, from the coarsest to the finest; none where its file is lossless.
    """
    best = project(problem, delta, budget)
    places = [0] * len(delta)
    pending = torch.tensor([bool(codecs) for codecs in attempts], device=delta.device)
    wanted = problem.start - KEPT_SHIFT * (problem.start - best.distance)
    for place in range(max(map(len, attempts), default=0)):
        if not bool(pending.any()):
            break
        codecs = [
            codecs[place] if waits and place < len(codecs) else None
            for codecs, waits in zip(attempts, pending.tolist(), strict=True)
        ]
        tried = project(problem, delta, budget, codecs)
        better = pending & ((tried.held & (~best.held | (tried.distance < best.distance))) if place else True)
        best = _choose(better, tried, best)
        places = [place if taken else before for taken, before in zip(better.tolist(), places, strict=True)]
        pending = pending & ~(best.held & (best.distance <= wanted))
    return best, places


def _largest_scale(problem: Problem, delta: torch.Tensor, budget: Budget, lpips: torch.Tensor) -> torch.Tensor:
    """The largest scales [B] that hold the LPIPS bound, by LPIPS alone and without a decision on the host.

    lpips: at scale 1. The images tried are bfloat16, up to a quarter of a level from those of a file, so the result has
    yet to be judged.
    """
    bound = cast(float, budget.lpips) * LPIPS_MARGIN
    interval, distance = first_interval(len(delta), delta.device), lpips.float()
    for number in range(BISECTIONS + 1):
        interval, images = bisect_scale(
            *(problem.clean, delta, distance, interval),
            bound=bound,
            levels=budget.levels,
            guess=number == 0,
            backend=kernels(problem.backend),
        )
        distance = cast(torch.Tensor, problem.lpips(problem.see((images.float() + 1) / 2))).float()
    low, _, scale = interval.unbind(1)
    return torch.where(distance <= bound, scale, low)


def _fit(stored: torch.Tensor, clean: torch.Tensor, codec: Codec, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels to store, and what the codec makes of them, so that the latter lie inside the box where that can be had.

    What lies outside is pulled back by as much before the codec, several times. Where a coarse codec rounds that away,
    the perturbation is shrunk around those pixels only, because shrinking all of it would waste it.
    """
    stored, clean = stored.to(torch.int16), clean.to(torch.int16)
    for pull in range(PULLS + 1):
        shown = codec(stored.to(torch.uint8))
        excess = shown.to(torch.int16) - torch.clamp(shown.to(torch.int16), clean - levels, clean + levels)
        if pull == PULLS or not bool(excess.any()):
            break
        stored = (stored - excess).clamp(0, 255)
    for _ in range(SHRINKS):
        outside = (shown.to(torch.int16) - clean).abs() > levels
        if not bool(outside.any()):
            break
        around = functional.max_pool2d(outside.any(dim=0)[None].float(), 2 * BLOCK + 1, 1, BLOCK)
        kept = 1 - (1 - SHRINK) * around
        stored = clean + ((stored - clean) * kept).round().to(torch.int16)
        shown = codec(stored.to(torch.uint8))
    return stored.to(torch.uint8), shown


def _choose(mask: torch.Tensor, chosen: Projected, other: Projected) -> Projected:
    """The images of `chosen` where mask [B] is true, of `other` elsewhere."""

    def pick(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, b)

    return Projected(
        stored=pick(chosen.stored, other.stored),
        pixels=pick(chosen.pixels, other.pixels),
        levels=pick(chosen.levels, other.levels),
        distance=pick(chosen.distance, other.distance),
        distances=pick(chosen.distances, other.distances),
        lpips=None if chosen.lpips is None or other.lpips is None else pick(chosen.lpips, other.lpips),
        scale=pick(chosen.scale, other.scale),
        held=pick(chosen.held, other.held),
    )
