"""What may happen to a file between its writing and the encoder, drawn at random and differentiable, for `View`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shade_fast.ops import Axis, axis, jpeg, separable
from shade_fast.terms.checks import number, whole
from shade_fast.terms.errors import ShadeFastError

#: Filters of `Resize`: name -> its value at a distance from the centre, and where it ends; as in Pillow.
FILTERS: dict[str, tuple[Callable[[NDArray[Any]], NDArray[Any]], float]] = {
    "bilinear": (lambda x: np.maximum(0, 1 - np.abs(x)), 1.0),
    "bicubic": (lambda x: _cubic(np.abs(x)), 2.0),
    "lanczos": (lambda x: np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0), 3.0),
}
#: The most that is cut off each side, and the largest deviation of noise, in [0, 1] units; `treatments` take these.
CROP, NOISE = 0.1, 0.03
#: Scales and widths are drawn from this many equal parts of their range, so that their matrices can be cached.
PARTS = 8

Map = Callable[[Tensor], Tensor]


class Draw(NamedTuple):
    """One transform as drawn: what it does to images [B, 3, h, w], and where it takes their latents (None: nowhere)."""

    image: Map
    latent: Map | None = None


class Transform(Protocol):
    """A random transform of images [1, 3, h, w] in [0, 1] that keeps their size."""

    def draw(self, random: np.random.Generator, height: int, width: int, backend: str) -> Draw:
        """The transform with its parameters drawn. backend: of the ops, `reference` or `native`."""


@dataclass(frozen=True)
class Resize:
    """Shrink to a scale in [smallest, largest] and enlarge back, with a filter drawn from `filters`."""

    smallest: float = 0.5
    largest: float = 0.95
    filters: tuple[str, ...] = ("bilinear", "bicubic", "lanczos")

    def __post_init__(self) -> None:
        _in_range("Resize", "smallest", self.smallest, 0.05, self.largest)
        _in_range("Resize", "largest", self.largest, self.smallest, 1)
        unknown = [name for name in self.filters if name not in FILTERS]
        if unknown or not self.filters:
            raise ShadeFastError(f"Resize filters={self.filters}: give some of {', '.join(FILTERS)}")

    def draw(self, random: np.random.Generator, height: int, width: int, backend: str) -> Draw:
        scale = _part(random, self.smallest, self.largest)
        name = self.filters[int(random.integers(len(self.filters)))]
        axes = [_there_and_back(side, scale, name) for side in (height, width)]
        return Draw(lambda images: separable(images, *axes, backend=backend))


@dataclass(frozen=True)
class Blur:
    """A Gaussian blur of up to `largest` pixels, which is about what WebP's loop filter leaves of fine texture."""

    largest: float = 1.0

    def __post_init__(self) -> None:
        _in_range("Blur", "largest", self.largest, 0.1, 10)

    def draw(self, random: np.random.Generator, height: int, width: int, backend: str) -> Draw:
        sigma = _part(random, self.largest / PARTS, self.largest)
        axes = [_gaussian(side, sigma) for side in (height, width)]
        return Draw(lambda images: separable(images, *axes, backend=backend))


@dataclass(frozen=True)
class Crop:
    """Cut off up to `largest` of each side, at a place drawn, and enlarge back; latents go the same way."""

    largest: float = CROP

    def __post_init__(self) -> None:
        _in_range("Crop", "largest", self.largest, 0.01, 0.5)

    def draw(self, random: np.random.Generator, height: int, width: int, backend: str) -> Draw:
        kept = 1 - _part(random, self.largest / PARTS, self.largest)
        top, left = (1 - kept) * random.integers(PARTS, size=2) / (PARTS - 1)
        crop = crop_map(float(top), float(left), kept, backend)
        return Draw(crop, crop)


@dataclass(frozen=True)
class Flip:
    """Left and right exchanged, in half of the draws; latents alike."""

    def draw(self, random: np.random.Generator, height: int, width: int, backend: str) -> Draw:
        if random.random() < 0.5:
            return Draw(lambda images: images)
        return Draw(lambda images: images.flip(3), lambda latents: latents.flip(3))


@dataclass(frozen=True)
class Noise:
    """Gaussian noise with a standard deviation of up to `largest`, in [0, 1] units."""

    largest: float = NOISE

    def __post_init__(self) -> None:
        _in_range("Noise", "largest", self.largest, 0.001, 1)

    def draw(self, random: np.random.Generator, height: int, width: int, backend: str) -> Draw:
        deviation, seed = random.uniform(0, self.largest), int(random.integers(2**62))

        def add(images: Tensor) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(images.shape, generator=generator).to(images)
            return (images + deviation * noise).clamp(0, 1)

        return Draw(add)


@dataclass(frozen=True)
class Jpeg:
    """JPEG of a quality in [worst, best], colours at half the resolution, with the gradient passed through rounding."""

    worst: int = 60
    best: int = 95

    def __post_init__(self) -> None:
        for name, value in (("worst", self.worst), ("best", self.best)):
            if whole(value) is None:
                raise ShadeFastError(f"Jpeg {name}={value!r}: give a whole number from 1 to 100")
        _in_range("Jpeg", "worst", self.worst, 1, self.best)
        _in_range("Jpeg", "best", self.best, self.worst, 100)

    def draw(self, random: np.random.Generator, height: int, width: int, backend: str) -> Draw:
        quality = int(random.integers(self.worst, self.best + 1))
        return Draw(lambda images: jpeg(images, quality, backend=backend))


@dataclass(frozen=True)
class Rounding:
    """Rounding to whole uint8 values, with the gradient passed through."""

    def draw(self, random: np.random.Generator, height: int, width: int, backend: str) -> Draw:
        return Draw(lambda images: images + ((255 * images.detach()).round().clamp(0, 255) / 255 - images.detach()))


@dataclass(frozen=True, init=False)
class OneOf:
    """One of several transforms, drawn with equal chances."""

    transforms: tuple[Transform, ...]

    def __init__(self, *transforms: Transform) -> None:
        if not transforms:
            raise ShadeFastError("OneOf: give at least one transform")
        object.__setattr__(self, "transforms", checked_transforms("OneOf", transforms))

    def draw(self, random: np.random.Generator, height: int, width: int, backend: str) -> Draw:
        transform = self.transforms[int(random.integers(len(self.transforms)))]
        return transform.draw(random, height, width, backend)


def checked_transforms(where: str, transforms: Any) -> tuple[Transform, ...]:
    """Transforms as a tuple. Raises ShadeFastError for what is not a transform, and for one outside a tuple."""
    if not isinstance(transforms, Iterable):
        raise ShadeFastError(f"{where}: {transforms!r}; give a tuple of them, such as (Jpeg(),)")
    checked = tuple(transforms)
    for transform in checked:
        if isinstance(transform, type):
            raise ShadeFastError(f"{where}: {transform.__name__} is a class; give {transform.__name__}()")
        if not callable(getattr(transform, "draw", None)):
            raise ShadeFastError(f"{where}: {transform!r} has no draw(); see shade_fast.views.transforms")
    return checked


def compose(draws: Sequence[Draw]) -> Draw:
    """One draw after the other."""

    def through(maps: Sequence[Map]) -> Map:
        return lambda tensor: functools.reduce(lambda value, change: change(value), maps, tensor)

    latents = [draw.latent for draw in draws if draw.latent is not None]
    return Draw(through([draw.image for draw in draws]), through(latents) if latents else None)


def crop_map(top: float, left: float, kept: float, backend: str = "reference") -> Map:
    """The map that keeps a share of both sides, from `top` and `left` on (shares too), and enlarges it back."""

    def crop(images: Tensor) -> Tensor:
        axes = [_cut(side, start, kept) for side, start in zip(images.shape[2:], (top, left), strict=True)]
        return separable(images, *axes, backend=backend)

    return crop


def resample(inputs: int, outputs: int, name: str, start: float = 0, length: float | None = None) -> NDArray[Any]:
    """The matrix [outputs, inputs] that resamples the part [start, start + length) of an axis, antialiased.

    As in Pillow: when shrinking, the filter is as wide as the part of one output; rows sum to 1.
    """
    value, reach = FILTERS[name]
    ratio = (inputs if length is None else length) / outputs
    width = max(ratio, 1.0)
    centre = start + ratio * (np.arange(outputs) + 0.5)
    distance = (np.arange(inputs) + 0.5 - centre[:, None]) / width
    weights = np.where(np.abs(distance) <= reach, value(distance), 0)
    normalized: NDArray[Any] = weights / weights.sum(axis=1, keepdims=True)
    return normalized


@functools.lru_cache(maxsize=512)
def _there_and_back(side: int, scale: float, name: str) -> Axis:
    smaller = max(1, round(scale * side))
    return axis(resample(smaller, side, name) @ resample(side, smaller, name))


@functools.lru_cache(maxsize=512)
def _cut(side: int, start: float, kept: float) -> Axis:
    return axis(resample(side, side, "bilinear", start * side, kept * side))


@functools.lru_cache(maxsize=128)
def _gaussian(side: int, sigma: float) -> Axis:
    distance = np.arange(side) - np.arange(side)[:, None]
    weights = np.where(np.abs(distance) <= 3 * sigma + 1, np.exp(-0.5 * (distance / sigma) ** 2), 0)
    return axis(weights / weights.sum(axis=1, keepdims=True))


def _cubic(x: NDArray[Any]) -> NDArray[Any]:
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _part(random: np.random.Generator, smallest: float, largest: float) -> float:
    return smallest + (largest - smallest) * int(random.integers(PARTS)) / (PARTS - 1)


def _in_range(transform: str, name: str, value: Any, least: float, most: float) -> None:
    checked = number(value)
    if checked is None or not least <= checked <= most:
        raise ShadeFastError(f"{transform} {name}={value!r}: give a number from {least:g} to {most:g}")
