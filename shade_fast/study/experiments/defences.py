"""What a trainer may do against poison: leave images out that look odd to it, or change all of them a little."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from shade_fast.images import UInt8Array
from shade_fast.study.examples import examples_of
from shade_fast.study.experiments.prepare import Bench
from shade_fast.study.experiments.world import prompt
from shade_fast.study.generator import flow_loss
from shade_fast.terms.errors import ShadeFastError
from shade_fast.views.treatments import TREATMENTS

#: Share of all images that a filter leaves out.
DROPPED = 0.2


@dataclass(frozen=True, eq=False)
class Defended:
    """images: uint8 [M, h, w, 3], those that are left. kept: their places before. auc: how well the filter's score
    tells poisoned images from clean ones of the same concepts (0.5: not at all); None where there is no score."""

    images: UInt8Array
    kept: list[int]
    auc: float | None = None


def defend(name: str, bench: Bench, images: UInt8Array, concepts: Sequence[str], poisoned: Sequence[bool]) -> Defended:
    """Images uint8 [N, h, w, 3], captioned as `concepts`, after a defence of `DEFENCES`. `poisoned` is looked at for
    the AUC alone. Raises ShadeFastError for an unknown name."""
    if name not in DEFENCES:
        raise ShadeFastError(f"defence {name!r}: give one of {', '.join(DEFENCES)}")
    if name in _CHANGES:
        treated = np.stack([_CHANGES[name](image) for image in images])
        return Defended(treated, list(range(len(images))))
    scores = FILTERS[name](bench, images, concepts)
    count = round(DROPPED * len(images))
    kept = sorted(scores.argsort(descending=True)[count:].tolist())
    hit = {concept for concept, flag in zip(concepts, poisoned, strict=True) if flag}
    among = torch.tensor([concept in hit for concept in concepts])
    return Defended(images[kept], kept, area_under_curve(scores[among], torch.tensor(poisoned)[among]))


def area_under_curve(scores: torch.Tensor, flags: torch.Tensor) -> float | None:
    """Probability that a flagged score is above one that is not, ties counting half; None where there are not both."""
    high, low = scores[flags], scores[~flags]
    if not len(high) or not len(low):
        return None
    above = (high[:, None] > low).double() + 0.5 * (high[:, None] == low).double()
    return float(above.mean())


@torch.no_grad()
def _loss(bench: Bench, images: UInt8Array, concepts: Sequence[str]) -> torch.Tensor:
    """Each image's training loss under the generator before any attack, over the same times and noises."""
    checkpoint = bench.generator
    prompts = [prompt(concept) for concept in concepts]
    examples = examples_of(images, prompts, bench.encoder, bench.sentences, known=bench.known)
    latents = (examples.latents - checkpoint.mean) / checkpoint.deviation
    random = torch.Generator().manual_seed(0)
    total = torch.zeros(len(latents))
    for time in (0.2, 0.4, 0.6, 0.8):
        noise = torch.randn((1, *latents.shape[1:]), generator=random).expand_as(latents)
        total += flow_loss(checkpoint.averaged, latents, examples.texts, torch.full((len(latents),), time), noise)
    return total


def _misalignment(bench: Bench, images: UInt8Array, concepts: Sequence[str]) -> torch.Tensor:
    """How little the judge sees of what the caption says, as an image-text model would be asked."""
    numbers = [bench.world.concepts.index(concept) for concept in concepts]
    return 1 - bench.judge.probabilities(images)[torch.arange(len(images)), torch.tensor(numbers)]


#: Defences that change every image.
_CHANGES: dict[str, Callable[[UInt8Array], UInt8Array]] = {
    "none": lambda image: image,
    "jpeg": TREATMENTS["JPEG 75"].apply,
    "resize": TREATMENTS["resize 75%"].apply,
}
#: Defences that leave images out: a score of each, of which the highest go.
FILTERS: dict[str, Callable[[Bench, UInt8Array, Sequence[str]], torch.Tensor]] = {
    "loss": _loss,
    "alignment": _misalignment,
}
DEFENCES = (*_CHANGES, *FILTERS)
