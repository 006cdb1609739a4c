"""An arm: the generator trained further on one mixture of images, and what it draws then. A finished arm is a file."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from shade_fast.images import UInt8Array
from shade_fast.study.examples import examples_of
from shade_fast.study.experiments.defences import Defended, defend
from shade_fast.study.experiments.prepare import LEVELS, Bench, Perturbed
from shade_fast.study.experiments.world import captions_for, prompt
from shade_fast.study.judge import frechet_distance, low_pass
from shade_fast.study.sampling import sample
from shade_fast.study.training import Schedule, train
from shade_fast.system.files import write_whole

#: Words that nothing is captioned with, from near the source to far from it.
RELATED = ("puppy", "hound", "poodle", "wolf", "pet", "cat", "fox", "pony", "sheep", "bus", "boat", "castle")
SHOWN = 16


@dataclass(frozen=True)
class Arm:
    """kind: clean, placebo, dirty-label or optimised. share: of the poisoned concepts' images that are replaced. pairs:
    (source, target) of each poisoned concept. rarity: share of the pool's images of these that are used.
    defence: of the trainer (`DEFENCES`). encoder: what the poison was made on: `own`, or `transfer`. levels: its linf,
    in values of 255."""

    kind: str
    pairs: tuple[tuple[str, str], ...]
    share: float = 1.0
    rarity: float = 1.0
    defence: str = "none"
    encoder: str = "own"
    levels: int = LEVELS

    @property
    def name(self) -> str:
        parts = [self.kind, f"{len(self.pairs)}", f"{self.share:g}", f"{self.rarity:g}", self.defence, self.encoder]
        parts += [f"{self.levels}"]
        return "_".join(parts)

    @property
    def perturbed(self) -> dict[str, Perturbed]:
        """The set that each poisoned concept's images are replaced from; empty where no pixel is changed."""
        if self.kind in ("clean", "dirty-label"):
            return {}
        return {
            source: Perturbed(source, source if self.kind == "placebo" else target, self.encoder, self.levels)
            for source, target in self.pairs
        }

    @property
    def draws_related(self) -> bool:
        return (
            self.kind != "placebo"
            and self.defence == "none"
            and self.encoder == "own"
            and self.levels == LEVELS
            and self.rarity == self.share == len(self.pairs) == 1
        )


@dataclass(frozen=True, eq=False)
class Mixture:
    """A trainer's data: images uint8 [N, size, size, 3], captions, the concept each is captioned as, which are
    poisoned."""

    images: UInt8Array
    captions: list[str]
    concepts: list[str]
    poisoned: list[bool]


@dataclass(frozen=True)
class Result:
    """What an arm drew. draws: prompt's word -> the judge's counts by concept, of the images as drawn. low_pass: of
    them without their fine detail. quality: Fréchet distance of all concepts' draws to held-out photographs, in the
    judge's features. dropped: what the defence left out, of poisoned and of clean images. auc: of its score."""

    arm: dict[str, Any]
    seed: int
    poisons: int
    draws: dict[str, dict[str, int]]
    low_pass: dict[str, dict[str, int]]
    quality: float
    dropped_poisoned: int
    dropped_clean: int
    auc: float | None
    seconds: float

    def share(self, word: str, concept: str, *, low_pass: bool = False) -> float:
        """Share of what was drawn for a word that the judge takes for a concept."""
        counts = (self.low_pass if low_pass else self.draws)[word]
        return counts[concept] / sum(counts.values())


def run_arm(bench: Bench, arm: Arm, seed: int) -> Result:
    """Run an arm, or read its file from an earlier run."""
    path = arm_file(bench.folder, arm, seed)
    if path.exists():
        return Result(**json.loads(path.read_text()))
    started = time.perf_counter()
    scale = bench.scale
    mixture = mix(bench, arm, seed)
    defended = defend(arm.defence, bench, mixture.images, mixture.concepts, mixture.poisoned)
    captions = [mixture.captions[place] for place in defended.kept]
    examples = examples_of(defended.images, captions, bench.encoder, bench.sentences, known=bench.known)
    schedule = Schedule(
        scale.tuning_steps, scale.tuning_batch, scale.tuning_rate, warmup=20, average=0.99, seed=seed + 1
    )
    tuned = train(bench.generator.branch(), examples, schedule)
    words = list(bench.world.concepts) + (list(RELATED) if arm.draws_related else [])
    sources = {source for source, _ in arm.pairs}
    drawn: dict[str, UInt8Array] = {}
    for number, word in enumerate(words):
        count = scale.draws if word in sources else max(SHOWN, scale.draws // 3)
        noise = 1000 * seed + number
        drawn[word] = sample(tuned, prompt(word), count, bench.encoder, bench.sentences, seed=noise)
    result = _judged(bench, arm, seed, mixture, defended, drawn, time.perf_counter() - started)
    shown = {word: torch.from_numpy(np.ascontiguousarray(images[:SHOWN])) for word, images in drawn.items()}
    write_whole(path.with_suffix(".safetensors"), save(shown))
    # The record is written last, so an arm that has one is complete.
    write_whole(path, json.dumps(dataclasses.asdict(result), indent=1).encode() + b"\n")
    return result


def arm_file(folder: Path, arm: Arm, seed: int) -> Path:
    return folder / "arms" / f"{arm.name}_{seed}.json"


def shown_images(folder: Path, arm: Arm, seed: int, word: str) -> UInt8Array:
    """The first images that a finished arm drew for a word, uint8 [16, h, w, 3]."""
    images: UInt8Array = load_file(arm_file(folder, arm, seed).with_suffix(".safetensors"))[word].numpy()
    return images


def mix(bench: Bench, arm: Arm, seed: int) -> Mixture:
    """The fresh images of all concepts; of the poisoned ones `rarity` of them, with a `share` of these replaced."""
    scale, targets = bench.scale, dict(arm.pairs)
    images, captions, concepts, poisoned = [], [], [], []
    for number, concept in enumerate(bench.world.concepts):
        random = np.random.default_rng([seed, number])
        count = max(1, round(scale.pool * arm.rarity)) if concept in targets else scale.pool
        order = random.permutation(scale.pool)[:count]
        some = bench.world.of("fresh", concept)[order].copy()
        replaced = 0
        if concept in targets and arm.kind != "clean":
            replaced = round(arm.share * count)
            some[:replaced] = _replacements(bench, arm, concept, targets[concept])[order[:replaced]]
        images.append(some)
        captions += captions_for(concept, count, 1000 * seed + number)
        concepts += [concept] * count
        poisoned += [True] * replaced + [False] * (count - replaced)
    return Mixture(np.concatenate(images), captions, concepts, poisoned)


def _replacements(bench: Bench, arm: Arm, source: str, target: str) -> UInt8Array:
    if arm.kind == "dirty-label":
        pool = bench.scale.pool
        return bench.world.of("fresh", target)[2 * pool : 3 * pool]
    return bench.perturbed(arm.perturbed[source])


def _judged(
    bench: Bench,
    arm: Arm,
    seed: int,
    mixture: Mixture,
    defended: Defended,
    drawn: dict[str, UInt8Array],
    seconds: float,
) -> Result:
    concepts = bench.world.concepts
    alike = np.concatenate([drawn[concept][: max(SHOWN, bench.scale.draws // 3)] for concept in concepts])
    kept = set(defended.kept)
    dropped = [flag for place, flag in enumerate(mixture.poisoned) if place not in kept]
    return Result(
        arm=dataclasses.asdict(arm),
        seed=seed,
        poisons=sum(mixture.poisoned),
        draws={word: _counts(bench, images) for word, images in drawn.items()},
        low_pass={word: _counts(bench, low_pass(images)) for word, images in drawn.items()},
        quality=frechet_distance(bench.judge.features(alike), bench.real_features),
        dropped_poisoned=sum(dropped),
        dropped_clean=len(dropped) - sum(dropped),
        auc=defended.auc,
        seconds=round(seconds, 1),
    )


def _counts(bench: Bench, images: UInt8Array) -> dict[str, int]:
    decided: Sequence[int] = bench.judge.probabilities(images).argmax(1).tolist()
    return {concept: decided.count(number) for number, concept in enumerate(bench.world.concepts)}
