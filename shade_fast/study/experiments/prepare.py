"""What the experiments begin with, each made once and kept in the output: the generator before any attack, the judge,
and the perturbed images."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save

from shade_fast.anchors import Anchor, most_typical
from shade_fast.api.poisoner import Poisoner
from shade_fast.encoders import Encoder, load_encoder
from shade_fast.engine import run_by
from shade_fast.images import UInt8Array
from shade_fast.study.components import PATCH, check_components, with_components
from shade_fast.study.examples import Known, decode_latents, encode, examples_of
from shade_fast.study.experiments.scale import Scale
from shade_fast.study.experiments.world import World, captions_for, prompt
from shade_fast.study.judge import Classifier, accuracy, low_pass, train_classifier
from shade_fast.study.sampling import sample
from shade_fast.study.text import SentenceEncoder
from shade_fast.study.training import Checkpoint, Schedule, train
from shade_fast.system.files import write_whole
from shade_fast.terms.budget import Budget
from shade_fast.terms.errors import ShadeFastError
from shade_fast.views import View

#: linf of a protection, in the file's own values.
LEVELS = 16
#: Seed of the anchors' noise, which no arm uses.
ANCHORS = 1_000_000
#: The file that records a folder's settings.
BEGUN = "begun.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Perturbed:
    """A set of a concept's images, moved to another's anchors on an encoder (`own` or `transfer`), at linf
    levels/255."""

    source: str
    towards: str
    encoder: str = "own"
    levels: int = LEVELS

    @property
    def name(self) -> str:
        return f"{self.source}-to-{self.towards}-by-{self.encoder}-{self.levels}"


@dataclass(frozen=True, eq=False)
class Bench:
    """All that an arm needs: the world, the frozen encoder that is trained on, the generator before any attack, the
    judge, and where things are kept. own: that encoder as it was loaded, which poison is made on. transfer: another,
    that the poison of the transfer arms is made on; None: none. known: latents computed so far, since arms share most
    of their images."""

    scale: Scale
    world: World
    encoder: Encoder
    sentences: SentenceEncoder
    generator: Checkpoint
    judge: Classifier
    folder: Path
    own: Encoder
    transfer: Encoder | None = None
    known: Known = field(default_factory=dict)

    @functools.cached_property
    def real_features(self) -> torch.Tensor:
        """The judge's features of 100 held-out photographs of each concept, through the autoencoder."""
        held = np.concatenate([self.world.of("held_out", concept)[:100] for concept in self.world.concepts])
        return self.judge.features(decode_latents(self.encoder, encode(self.encoder, held, self.known)))

    def anchors(self, concept: str) -> UInt8Array:
        """The most typical images that the generator draws of a concept before any attack, uint8 [anchors, size, size,
        3]. As in the paper anchors are drawn, and those with latents nearest to the mean are taken. They are kept in
        the folder."""
        return _kept(self.folder / "anchors" / f"{concept}.safetensors", lambda: self._most_typical(concept))

    def _most_typical(self, concept: str) -> UInt8Array:
        scale = self.scale
        drawn = sample(self.generator, prompt(concept), scale.anchor_draws, self.encoder, self.sentences, seed=ANCHORS)
        anchors: UInt8Array = drawn[most_typical(encode(self.encoder, drawn), scale.anchors)]
        return anchors

    def perturbed(self, which: Perturbed) -> UInt8Array:
        """The pool's fresh images of a concept, uint8 [pool, size, size, 3], each moved to the nearest of another's
        anchors. They are kept in the folder."""
        return _kept(self._place(which), lambda: self._moved(which))

    def has_perturbed(self, which: Perturbed) -> bool:
        return self._place(which).exists()

    def _place(self, which: Perturbed) -> Path:
        return self.folder / "perturbed" / f"{which.name}.safetensors"

    def _moved(self, which: Perturbed) -> UInt8Array:
        chosen = self.own if which.encoder == "own" else self.transfer
        if chosen is None:
            raise ShadeFastError("transfer: no other encoder was given; name one with --transfer")
        images = self.world.of("fresh", which.source)[: self.scale.pool]
        anchor = Anchor(which.towards, list(self.anchors(which.towards)))
        poisoner = Poisoner(
            encoder=chosen,
            budget=Budget(linf=which.levels / 255, lpips=None),
            view=View(None),
            perceptual=None,
            steps=self.scale.poison_steps,
            devices="cpu",
        )
        moved = [protected.outcome.image for protected in poisoner.protect((image, anchor) for image in images)]
        if any(image is None for image in moved):
            raise ShadeFastError(
                f"{which.name}: {sum(image is None for image in moved)} of its images cannot be perturbed"
            )
        return np.stack([image for image in moved if image is not None])


def prepare(
    scale: Scale,
    pool: str | Path,
    folder: Path,
    *,
    encoder: str = "embedded",
    transfer: str | None = None,
    components: int | None = None,
    say: Say = print,
) -> Bench:
    """Read the world and make, or take from the folder, what the arms share. components: of the latents, see
    `with_components`; None for the latents as they are. Raises ShadeFastError for a pool that lacks a concept, for an
    encoder without a decoder, through which nothing can be drawn, or that does not take the world's size, and for a
    folder that was begun with another scale, pool, encoder or count of components."""
    settings: dict[str, str | int | None] = {"scale": str(scale)}
    check_same(folder, settings)
    chosen = load_encoder(encoder)
    chosen.check_decoder()
    factor = chosen.factor
    if components is not None:
        check_components(chosen, components)
        factor *= PATCH
    if scale.size % factor:
        raise ShadeFastError(f"encoder {chosen.name!r}: takes multiples of {factor} pixels here, not {scale.size}")
    other = None if transfer is None else load_encoder(transfer)
    world = World.read(pool, scale.concepts, scale.size, scale.counts)
    settings |= {"pool": world.sha256, "encoder": chosen.sha256, "components": components}
    if other is not None:
        settings["transfer"] = other.sha256
    # Last, after all other checks: from here on the folder belongs to these settings.
    write_whole(folder / BEGUN, json.dumps(check_same(folder, settings), indent=1).encode() + b"\n")
    if components is not None:
        images = np.concatenate([world.of("training", concept)[:300] for concept in world.concepts])
        chosen = with_components(chosen, components, images, folder / "components.safetensors")
    own, chosen = chosen, run_by("auto", chosen)
    sentences, known = SentenceEncoder(), Known()
    say(f"world: {len(world.concepts)} concepts, {scale.counts} photographs of each")
    generator = trained_generator(scale, world, chosen, sentences, folder / "generator.safetensors", say, known)
    judge = trained_judge(scale, world, chosen, folder / "judge.safetensors", say, known)
    return Bench(scale, world, chosen, sentences, generator, judge, folder, own, other, known)


def check_same(folder: Path, settings: Mapping[str, str | int | None]) -> dict[str, str | int | None]:
    """Refuse a folder that was begun with other settings, whose files would be mistaken for these ones'. Returns all
    settings of the folder."""
    path = folder / BEGUN
    if not path.exists() and (folder / "generator.safetensors").exists():
        raise ShadeFastError(f"{folder}: has no record of its pool and encoders ({path}); give another folder")
    begun: dict[str, str | int | None] = json.loads(path.read_text()) if path.exists() else {}
    for name, value in settings.items():
        if begun.setdefault(name, value) != value:
            raise ShadeFastError(
                f"{folder}: was begun with another {name} ({begun[name]}, in {path}; now {value}); give that one, or "
                "another folder"
            )
    return begun


def trained_generator(
    scale: Scale,
    world: World,
    encoder: Encoder,
    sentences: SentenceEncoder,
    path: Path,
    say: Say = print,
    known: Known | None = None,
) -> Checkpoint:
    """The generator trained on the world's first part; resumed from `path` where that is there."""
    schedule = Schedule(scale.training_steps, scale.training_batch, warmup=min(200, scale.training_steps // 4))
    checkpoint = Checkpoint.load(path) if path.exists() else None
    if checkpoint is not None and checkpoint.step >= schedule.steps:
        return checkpoint
    images, labels = _part(world, "training")
    captions = [
        caption
        for seed, concept in enumerate(world.concepts)
        for caption in captions_for(concept, labels.count(seed), seed)
    ]
    examples = examples_of(images, captions, encoder, sentences, mirrored=True, known=known)
    if checkpoint is None:
        side = scale.size // encoder.factor
        # Tokens of 2x2 latent elements, unless there would be very few.
        patch = 2 if side % 2 == 0 and side >= 8 else 1
        shape = replace(scale.shape, channels=encoder.channels, side=side, patch=patch)
        checkpoint = Checkpoint.fresh(shape, examples, seed=0)
    losses: list[float] = []

    def on_step(step: int, loss: float) -> None:
        losses.append(loss)
        if step % 250 == 0 or step == schedule.steps:
            say(f"generator: step {step} of {schedule.steps}, loss {np.mean(losses[-250:]):.3f}")

    return train(checkpoint, examples, schedule, path=path, every=250, progress=on_step)


def trained_judge(
    scale: Scale, world: World, encoder: Encoder, path: Path, say: Say = print, known: Known | None = None
) -> Classifier:
    """The judge, from `path` where that is there, with its accuracy on the photographs that are held out."""
    if path.exists():
        return Classifier.load(path)
    images, labels = _part(world, "training")
    through = decode_latents(encoder, encode(encoder, images, known))
    judge = train_classifier(
        world.concepts,
        [images, through],
        labels,
        epochs=scale.judge_epochs,
        progress=lambda epoch, loss: say(f"judge: epoch {epoch} of {scale.judge_epochs}, loss {loss:.3f}"),
    )
    held, labels = _part(world, "held_out")
    through = decode_latents(encoder, encode(encoder, held, known))
    judge.accuracies = {
        "photographs": accuracy(judge, held, labels),
        "through the autoencoder": accuracy(judge, through, labels),
        "through the autoencoder, low-pass": accuracy(judge, low_pass(through), labels),
    }
    say("judge: " + ", ".join(f"{name} {value:.1%}" for name, value in judge.accuracies.items()))
    judge.save(path)
    return judge


def _part(world: World, part: str) -> tuple[UInt8Array, list[int]]:
    """All images of a part, and the numbers of their concepts."""
    images = [world.of(part, concept) for concept in world.concepts]
    labels = [number for number, some in enumerate(images) for _ in some]
    return np.concatenate(images), labels


def _kept(path: Path, make: Callable[[], UInt8Array]) -> UInt8Array:
    """Images from a file, or else made and kept in it."""
    if path.exists():
        images: UInt8Array = load_file(path)["images"].numpy()
        return images
    images = make()
    write_whole(path, save({"images": torch.from_numpy(np.ascontiguousarray(images))}))
    return images
