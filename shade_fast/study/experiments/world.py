"""The small world of the experiments: a few concepts, their photographs in three parts, and their captions."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shade_fast.images import UInt8Array
from shade_fast.study.examples import square
from shade_fast.study.pool import caption_of, named, read_pool
from shade_fast.terms.errors import ShadeFastError

#: How an image of a concept may be captioned; the first is the prompt for drawing.
CAPTIONS = (
    "a photo of {}",
    "a picture of {}",
    "{}",
    "an image of {}",
    "a small photo of {}",
    "a close-up of {}",
    "a snapshot of {}",
    "a blurry photo of {}",
)
PARTS = ("training", "fresh", "held_out")


@dataclass(frozen=True, eq=False)
class World:
    """Photographs uint8 [N, size, size, 3] by part and concept: `training` for the generator before any attack and for
    the judge, `fresh` for what comes after (poison, clean images beside it, dirty labels), `held_out` to test the
    judge."""

    concepts: tuple[str, ...]
    size: int
    images: dict[tuple[str, str], UInt8Array]

    @classmethod
    def read(cls, pool: str | Path, concepts: Sequence[str], size: int, counts: Sequence[int]) -> World:
        """The first images of each concept in a pool, as many for each part as `counts` says.

        Raises ShadeFastError where the pool has fewer.
        """
        squares: dict[str, list[UInt8Array]] = defaultdict(list)
        wanted = sum(counts)
        for pair in read_pool(pool):
            concept = pair.concept
            if concept is not None and concept in concepts and len(squares[concept]) < wanted:
                squares[concept].append(square(pair.read(), size, pair.key))
        images = {}
        for concept in concepts:
            if len(squares[concept]) < wanted:
                raise ShadeFastError(f"{pool}: {len(squares[concept])} images of {concept!r}; {wanted} are needed")
            begin = 0
            for part, count in zip(PARTS, counts, strict=True):
                images[part, concept] = np.stack(squares[concept][begin : begin + count])
                begin += count
        return cls(tuple(concepts), size, images)

    @property
    def sha256(self) -> str:
        """Hash of the squares that were read: concept, part and bytes."""
        digest = hashlib.sha256()
        for (part, concept), images in sorted(self.images.items()):
            digest.update(f"{part} {concept} {list(images.shape)}\n".encode())
            digest.update(images.tobytes())
        return digest.hexdigest()

    def of(self, part: str, concept: str) -> UInt8Array:
        return self.images[part, concept]


def captions_for(concept: str, count: int, seed: int) -> list[str]:
    """Captions for so many images of a concept, drawn from the seed."""
    picks = np.random.default_rng(seed).integers(len(CAPTIONS), size=count)
    return [CAPTIONS[pick].format(named(concept)) for pick in picks]


def prompt(concept: str) -> str:
    """The prompt for drawing a concept."""
    return caption_of(concept)
