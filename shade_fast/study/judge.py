"""The judge of drawn images: which concept each shows, by a small classifier or by CLIP."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor, nn
from torch.nn import functional

from shade_fast.images import UInt8Array
from shade_fast.study.clip import Clip
from shade_fast.study.examples import tensors
from shade_fast.study.pool import caption_of
from shade_fast.system.files import write_whole
from shade_fast.terms.checks import at_least
from shade_fast.terms.errors import ShadeFastError

#: Side of the images that the classifier sees.
SIDE = 32
FORMAT = "shade_fast_judge"


class Judge(Protocol):
    """What gives each image a probability for each concept."""

    concepts: tuple[str, ...]

    def probabilities(self, images: UInt8Array | Sequence[UInt8Array]) -> Tensor:
        """float32 [N, concepts] of images uint8 [N, h, w, 3], or for CLIP a list of [h, w, 3] of any sizes."""


class ClipJudge:
    """CLIP, asked which of the concepts' captions an image fits best (the paper's measure of success)."""

    def __init__(self, model: str | Clip, concepts: Sequence[str]) -> None:
        self.concepts = tuple(concepts)
        self._clip = Clip(model) if isinstance(model, str) else model
        self._texts = self._clip.embed_texts([caption_of(concept) for concept in concepts])

    def probabilities(self, images: UInt8Array | Sequence[UInt8Array]) -> Tensor:
        return (100 * self._clip.embed_images(list(images)) @ self._texts.T).softmax(1)


class Classifier(nn.Module):
    """A residual network on 32x32 pixels. concepts: what it distinguishes. accuracies: its own, by the treatment of
    images that it was not trained on."""

    def __init__(self, concepts: Sequence[str], width: int = 24) -> None:
        super().__init__()
        self.concepts, self.width = tuple(concepts), width
        self.accuracies: dict[str, float] = {}
        self.layers = nn.Sequential(
            _convolution(3, width), _Residual(width),
            _convolution(width, 2 * width, 2), _Residual(2 * width),
            _convolution(2 * width, 4 * width, 2), _Residual(4 * width),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.decide = nn.Linear(4 * width, len(concepts))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, concepts] of float images [N, 3, 32, 32] in [0, 1]."""
        decided: Tensor = self.decide(self.layers(images * 2 - 1))
        return decided

    @torch.no_grad()
    def probabilities(self, images: UInt8Array | Sequence[UInt8Array], batch: int = 250) -> Tensor:
        images = np.asarray(images)
        parts = [self(_seen(images[at : at + batch])).softmax(1) for at in range(0, len(images), batch)]
        return torch.cat(parts)

    @torch.no_grad()
    def features(self, images: UInt8Array, batch: int = 250) -> Tensor:
        """The features behind the decision, float32 [N, 4·width]."""
        return torch.cat([self.layers(_seen(images[at : at + batch]) * 2 - 1) for at in range(0, len(images), batch)])

    def save(self, path: Path) -> None:
        """Write a .safetensors file."""
        facts = {"concepts": self.concepts, "width": self.width, "accuracies": self.accuracies}
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        write_whole(path, serialized(weights, {FORMAT: json.dumps(facts)}))

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """Read what `save` wrote. Raises ShadeFastError for another file."""
        try:
            with safe_open(str(path), "pt") as file:
                facts = json.loads((file.metadata() or {})[FORMAT])
                names = file.keys()
                weights = {name: file.get_tensor(name) for name in names}
            judge = cls(facts["concepts"], facts["width"])
            judge.load_state_dict(weights)
            judge.accuracies = facts["accuracies"]
            return judge.eval().requires_grad_(False)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise ShadeFastError(
                f"{path}: no judge that can be read ({error}); train one with `shade-fast study judge --train`"
            ) from error


def train_classifier(
    concepts: Sequence[str],
    variants: Sequence[UInt8Array],
    labels: Sequence[int],
    *,
    epochs: int = 8,
    batch: int = 128,
    learning_rate: float = 3e-3,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> Classifier:
    """Train a judge. variants: the same photographs uint8 [N, h, w, 3] in one or more forms (as they are, through the
    autoencoder that what is drawn comes through), of which each epoch shows each photograph in one; mirrored, moved by
    up to 3 pixels, and one time in four without its fine detail, all at random. labels: numbers of `concepts`.
    progress: called with (epoch, mean loss). Raises ShadeFastError for concepts without images, and
    for epochs below 1.
    """
    at_least("epochs", epochs)
    if sorted(set(labels)) != list(range(len(concepts))):
        raise ShadeFastError("judge: some concepts have no images to train on")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        judge = Classifier(concepts).train()
    forms = torch.stack(
        [torch.cat([_seen(variant[at : at + 500]) for at in range(0, len(variant), 500)]) for variant in variants]
    )
    forms = (255 * forms).round().byte()
    wanted = torch.tensor(labels)
    random = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(labels) // batch)
    optimizer = torch.optim.AdamW(judge.parameters(), learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps)
    for epoch in range(epochs):
        order, total = torch.randperm(len(labels), generator=random), 0.0
        for at in range(0, len(order), batch):
            picks = order[at : at + batch]
            form = torch.randint(len(variants), (len(picks),), generator=random)
            images = _varied(forms[form, picks] / 255, random)
            loss = functional.cross_entropy(judge(images), wanted[picks], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(picks)
        if progress is not None:
            progress(epoch + 1, total / len(order))
    return judge.eval().requires_grad_(False)


def accuracy(judge: Judge, images: UInt8Array, labels: Sequence[int]) -> float:
    """Share of images uint8 [N, h, w, 3] whose likeliest concept is the labelled one."""
    return float((judge.probabilities(images).argmax(1) == torch.tensor(labels)).float().mean())


def low_pass(images: UInt8Array, side: int = 16) -> UInt8Array:
    """Images without their fine detail: shrunk to `side` pixels and back. A texture that only a network reads is
    gone."""
    small = functional.interpolate(tensors(images), (side, side), mode="area")
    large = functional.interpolate(small, images.shape[1:3], mode="bicubic", antialias=True).clamp(0, 1)
    return (255 * large).round().byte().permute(0, 2, 3, 1).numpy()


def frechet_distance(features: Tensor, other: Tensor) -> float:
    """Fréchet distance of two sets of features [N, D], taken as normal (arXiv 1706.08500):
    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2)."""
    features, other = features.double(), other.double()
    first, second = torch.cov(features.T), torch.cov(other.T)
    # tr (C1 C2)^1/2 is the sum of the roots of the eigenvalues of C1 C2, which are those of a symmetric matrix.
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    distance = (features.mean(0) - other.mean(0)).square().sum() + first.trace() + second.trace() - 2 * mixed
    return float(distance.clamp(min=0))


def _seen(images: UInt8Array) -> Tensor:
    return functional.interpolate(tensors(images), (SIDE, SIDE), mode="area")


def _varied(images: Tensor, random: torch.Generator) -> Tensor:
    count = len(images)
    mirrored = torch.rand(count, 1, 1, 1, generator=random) < 0.5
    images = torch.where(mirrored, images.flip(3), images)
    blurred = functional.interpolate(functional.avg_pool2d(images, 2), (SIDE, SIDE), mode="bicubic").clamp(0, 1)
    images = torch.where(torch.rand(count, 1, 1, 1, generator=random) < 0.25, blurred, images)
    down, right = torch.randint(-3, 4, (2,), generator=random).tolist()
    padded = functional.pad(images, (3, 3, 3, 3), mode="replicate")
    return padded[:, :, 3 + down : 3 + down + SIDE, 3 + right : 3 + right + SIDE]


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, values: Tensor) -> Tensor:
        summed: Tensor = values + self.layers(values)
        return summed
