"""The study on whole pools: train a generator on them, write drawn images as one, judge one."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shade_fast.encoders import Encoder
from shade_fast.images import UInt8Array, decode
from shade_fast.study.examples import examples_of, square, squares
from shade_fast.study.generator import GeneratorShape
from shade_fast.study.judge import Classifier, ClipJudge, Judge, accuracy, low_pass, train_classifier
from shade_fast.study.plots import write_sheet
from shade_fast.study.pool import read_pool, require_empty
from shade_fast.study.text import SentenceEncoder, batches
from shade_fast.study.training import Checkpoint, Schedule, train
from shade_fast.terms.errors import ShadeFastError, reason

#: What the small generator is trained with unless another is asked for.
SCHEDULE = Schedule(steps=2000, batch=96)
#: Pixels of the squares that it is trained on.
SIZE = 64
#: Width and depth of its transformer.
WIDTH = 128
DEPTH = 6
#: Letters of a prompt in its folder's name, which in any script fit into a file system's 255 bytes; images of each
#: prompt on a sheet.
NAME = 60
SHOWN = 16


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
    width: int | None = None,
    depth: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Checkpoint:
    """Train the small generator on pools of images with captions and keep it in `out`, a .safetensors file.

    Where `out` is there, its training resumes, up to `steps`. start: another checkpoint, whose averaged weights are
    the start. width, depth: of the transformer; by default the checkpoint's that is there, or else `WIDTH` and `DEPTH`.
    Raises ShadeFastError for a size that is no multiple of the encoder's factor, times 2, and for anything but `steps`
    that differs from what `out` or `start` was trained with.
    """
    if size % (2 * encoder.factor):
        raise ShadeFastError(f"size={size}: give a multiple of {2 * encoder.factor}")
    parts = [squares(read_pool(pool), size) for pool in pools]
    images = np.concatenate([some for some, _ in parts])
    captions = [caption for _, some in parts for caption in some]
    examples = examples_of(images, captions, encoder, sentences)
    training = {
        "pools": _digest(images, captions),
        "start": None if start is None else hashlib.sha256(_read(start)).hexdigest(),
        "batch": batch,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    if out.exists():
        checkpoint = Checkpoint.load(out)
        _refuse_other(out, checkpoint.facts.get("training", {}), training)
    elif start is not None:
        checkpoint = Checkpoint.load(start).branch()
    else:
        layers = WIDTH if width is None else width, DEPTH if depth is None else depth
        checkpoint = Checkpoint.fresh(_shape(encoder, sentences, size, *layers), examples, seed)
    begun = checkpoint.generator.shape
    known = {**checkpoint.facts, "width": begun.width, "depth": begun.depth}
    asked = {"width": width, "depth": depth}
    wanted = {**examples.facts, **{name: value for name, value in asked.items() if value is not None}}
    del wanted["encoder"]  # a name: the weights' hash says whether it is another
    _refuse_other(out if start is None or out.exists() else start, known, wanted)
    if checkpoint.step >= steps:
        say(f"{out}: already at step {checkpoint.step}; nothing was trained, ask for more --steps to go on")
        return checkpoint
    checkpoint.facts["training"] = training
    schedule = Schedule(steps, batch, learning_rate, warmup=min(200, steps // 10), seed=seed)
    losses: list[float] = []

    def on_step(step: int, loss: float) -> None:
        losses.append(loss)
        if step % 100 == 0 or step == steps:
            say(f"step {step} of {steps}, loss {np.mean(losses[-100:]):.3f}")

    trained = train(checkpoint, examples, schedule, path=out, every=250, progress=on_step)
    say(f"{out}: {trained.step} steps on {len(examples)} images")
    return trained


def _shape(encoder: Encoder, sentences: SentenceEncoder, size: int, width: int, depth: int) -> GeneratorShape:
    return GeneratorShape(
        channels=encoder.channels, side=size // encoder.factor, text=sentences.width, width=width, depth=depth,
        heads=max(1, width // 32),
    )  # fmt: skip


def _digest(images: UInt8Array, captions: Sequence[str]) -> str:
    """Hash of the pools' squares and captions in their order."""
    digest = hashlib.sha256(json.dumps(captions).encode())
    digest.update(images.tobytes())
    return digest.hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ShadeFastError(f"{path}: cannot be read ({reason(error)}); give a checkpoint of `study train`") from error


def _refuse_other(path: Path, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ShadeFastError where something differs from what a checkpoint was trained with."""
    for name, value in wanted.items():
        if known.get(name) != value:
            raise ShadeFastError(
                f"{path}: was trained with another {name} ({known.get(name)}; now {value}); give that one, or another "
                "--out to begin anew"
            )


def write_samples(drawn: Iterable[tuple[str, Iterable[UInt8Array]]], out: Path) -> Path:
    """Write prompts' images uint8 [h, w, 3] as PNG files below out/PROMPT, a pool by folders, each as soon as it is
    drawn; and a sheet of them. Returns the sheet's path.

    A folder has the first `NAME` letters of its prompt; prompts that give the same name are numbered: `a-dog`,
    `a-dog-2`. Raises ShadeFastError for a folder that is not empty.
    """
    require_empty(out)
    shown = []
    for prompt, images in drawn:
        name = "".join(letter if letter.isalnum() else "-" for letter in prompt)[:NAME].strip("-") or "prompt"
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        folder = next(out / name for name in names if not (out / name).exists())
        folder.mkdir(parents=True)
        first = []
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{number:04d}.png")
            if number < SHOWN:
                first.append(image)
        shown.append((prompt, np.stack(first)))
    write_sheet(shown, out / "sheet.png", max(len(images) for _, images in shown))
    return out / "sheet.png"


def judge_pool(pool: str | Path, judge: Judge, *, size: int = SIZE) -> dict[str, dict[str, int]]:
    """A judge's verdicts on a pool's images: concept of the pool (or folder) -> judged concept -> how many.

    size: of the squares that a classifier's images are scaled to; CLIP is given them whole, as its own processor
        prepares them.
    """
    table: dict[str, dict[str, int]] = {}
    for part in batches(read_pool(pool), 64):
        images = [
            decode(pair.read(), pair.key).pixels[:, :, :3]
            if isinstance(judge, ClipJudge)
            else square(pair.read(), size, pair.key)
            for pair in part
        ]
        for pair, decided in zip(part, judge.probabilities(images).argmax(1).tolist(), strict=True):
            counts = table.setdefault(pair.concept or "all", dict.fromkeys(judge.concepts, 0))
            counts[judge.concepts[decided]] += 1
    return table


def train_judge_on_pool(pool: str | Path, out: Path, *, size: int = SIZE, epochs: int = 8, seed: int = 0) -> Classifier:
    """Train a classifier on a pool's concepts and write it; a tenth, drawn from the seed, is kept to state its
    accuracy.

    Raises ShadeFastError for a pool with fewer than two concepts or ten images.
    """
    images, labels = [], []
    for pair in read_pool(pool):
        if pair.concept is not None:
            images.append(square(pair.read(), size, pair.key))
            labels.append(pair.concept)
    concepts = sorted(set(labels))
    if len(concepts) < 2 or len(images) < 10:
        raise ShadeFastError(
            f"{pool}: {len(images)} images of {len(concepts)} concepts; a judge needs at least ten images of at least "
            "two concepts"
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
