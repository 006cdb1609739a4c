"""Whole pools through the study's pieces: train a generator on them, write what was drawn as one, judge one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from shade_fast.encoders import Encoder
from shade_fast.errors import ShadeFastError
from shade_fast.images import UInt8Array
from shade_fast.study.examples import examples_of, square, squares
from shade_fast.study.generator import GeneratorShape
from shade_fast.study.judge import Classifier, Judge, accuracy, low_pass, train_classifier
from shade_fast.study.plots import write_sheet
from shade_fast.study.pool import read_pool
from shade_fast.study.text import SentenceEncoder
from shade_fast.study.training import Checkpoint, Schedule, train

#: What the small generator is trained with unless another is asked for.
SCHEDULE = Schedule(steps=2000, batch=96)
#: Pixels of the squares that it is trained on.
SIZE = 64


def train_on_pools(
    pools: Sequence[str | Path],
    out: Path,
    *,
    encoder: Encoder,
    sentences: SentenceEncoder,
    start: Path | None = None,
    size: int = SIZE,
    steps: int = SCHEDULE.steps,
    batch: int = SCHEDULE.batch,
    learning_rate: float = SCHEDULE.learning_rate,
    width: int = 128,
    depth: int = 6,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Checkpoint:
    """Train the small generator on pools of images with captions and keep it in `out`, a .safetensors file.

    Where `out` is there, it is gone on with to `steps`. start: another checkpoint, whose averaged weights are begun
    with. Raises ShadeFastError for a size that is no multiple of the encoder's factor, times 2.
    """
    if size % (2 * encoder.factor):
        raise ShadeFastError(f"size={size}: give a multiple of {2 * encoder.factor}")
    parts = [squares(read_pool(pool), size) for pool in pools]
    images = np.concatenate([some for some, _ in parts])
    captions = [caption for _, some in parts for caption in some]
    examples = examples_of(images, captions, encoder, sentences)
    if out.exists():
        checkpoint = Checkpoint.load(out)
    elif start is not None:
        checkpoint = Checkpoint.load(start).branch()
    else:
        shape = GeneratorShape(
            channels=encoder.channels, side=size // encoder.factor, text=sentences.width, width=width, depth=depth,
            heads=max(1, width // 32),
        )  # fmt: skip
        checkpoint = Checkpoint.fresh(shape, examples, seed)
    if checkpoint.facts.get("encoder_sha256") != examples.facts["encoder_sha256"]:
        raise ShadeFastError(f"encoder {encoder.name!r}: the checkpoint was trained on another; give that one")
    schedule = Schedule(steps, batch, learning_rate, warmup=min(200, steps // 10), seed=seed)
    losses: list[float] = []

    def on_step(step: int, loss: float) -> None:
        losses.append(loss)
        if step % 100 == 0 or step == steps:
            say(f"step {step} of {steps}, loss {np.mean(losses[-100:]):.3f}")

    trained = train(checkpoint, examples, schedule, path=out, every=250, progress=on_step)
    say(f"{out}: {trained.step} steps on {len(examples)} images")
    return trained


def write_samples(drawn: Sequence[tuple[str, UInt8Array]], out: Path) -> Path:
    """Write PNG files below out/PROMPT, a pool by folders, and a sheet of them; returns the sheet's path."""
    for prompt, images in drawn:
        name = "".join(letter if letter.isalnum() else "-" for letter in prompt).strip("-") or "prompt"
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{number:04d}.png")
    write_sheet(drawn, out / "sheet.png", min(16, max(len(images) for _, images in drawn)))
    return out / "sheet.png"


def judge_pool(pool: str | Path, judge: Judge, *, size: int = SIZE) -> dict[str, dict[str, int]]:
    """What a judge takes a pool's images for: concept of the pool (or folder) -> judged concept -> how many."""
    by_concept: dict[str, list[UInt8Array]] = {}
    for pair in read_pool(pool):
        by_concept.setdefault(pair.concept or "", []).append(square(pair.read(), size, pair.key))
    table = {}
    for shown, images in by_concept.items():
        decided = judge.probabilities(np.stack(images)).argmax(1).tolist()
        table[shown or "all"] = {concept: decided.count(number) for number, concept in enumerate(judge.concepts)}
    return table


def train_judge_on_pool(pool: str | Path, out: Path, *, size: int = SIZE, epochs: int = 8, seed: int = 0) -> Classifier:
    """Train a classifier on a pool's concepts and write it; a tenth, drawn from the seed, is kept to state its
    accuracy.

    Raises ShadeFastError for a pool with fewer than two concepts.
    """
    images, labels = [], []
    for pair in read_pool(pool):
        if pair.concept is not None:
            images.append(square(pair.read(), size, pair.key))
            labels.append(pair.concept)
    concepts = sorted(set(labels))
    if len(concepts) < 2 or len(images) < 10:
        raise ShadeFastError(
            f"{pool}: {len(images)} images of {len(concepts)} concepts; a judge needs at least two concepts"
        )
    stacked, numbers = np.stack(images), [concepts.index(label) for label in labels]
    order = np.random.default_rng(seed).permutation(len(stacked))
    held, rest = order[: len(order) // 10], order[len(order) // 10 :]
    judge = train_classifier(concepts, [stacked[rest]], [numbers[place] for place in rest], epochs=epochs, seed=seed)
    known = [numbers[place] for place in held]
    judge.accuracies = {
        "photographs": accuracy(judge, stacked[held], known),
        "photographs, low-pass": accuracy(judge, low_pass(stacked[held]), known),
    }
    judge.save(out)
    return judge
