"""An image to protect, its outcome, and the outcomes of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from statistics import fmean
from typing import Literal, overload

import numpy as np

from shade_fast.anchors import Anchor
from shade_fast.images import DecodedImage, ImageLike, Output, UInt8Array, decode, name_of
from shade_fast.images.jpeg import JpegSettings
from shade_fast.terms.errors import ShadeFastError, TransientError

Status = Literal["ok", "below_target", "failed"]


@dataclass(frozen=True, eq=False)
class PoisonedImage:
    """One image's outcome. All figures are measured on the rounded pixels in `image`.

    image: uint8 [H, W, 3], upright, or [H, W, 4] where the input has alpha (untouched); None where it failed.
    status: `ok`; `below_target`, inside the budget, but the latent moved too little; `failed`, the reason in `error`.
    linf: largest change of a channel, in [0, 1] units. lpips: distance between the views of the clean and the
    perturbed image, None where no network is loaded.
    distance_before, distance_after: latent distance to the anchor, ‖E(x) - anchor_latent‖₂ through the view; for an
    ensemble the weighted mean over the encoders of each one's distance over its own start (1.0 before).
    encoder_distances: (before, after) of each encoder, in latent units.
    steps: optimiser steps taken. history: the distance before each step. anchor: path of the anchor's image, or None.
    seconds: the image's share of the time that its batch took.
    survival: treatment -> share of the latent shift that is left after it (see `shade_fast.survival`); None unasked.
    transient: whether what failed may succeed another time (a lack of memory, a process that died).
    """

    image: UInt8Array | None
    status: Status
    linf: float | None = None
    lpips: float | None = None
    distance_before: float | None = None
    distance_after: float | None = None
    encoder_distances: tuple[tuple[float, float], ...] = ()
    steps: int = 0
    error: str | None = None
    name: str = ""
    anchor: str | None = None
    history: tuple[float, ...] = field(default=(), repr=False)
    seconds: float = 0.0
    survival: Mapping[str, float] | None = None
    transient: bool = False

    @property
    def ratio(self) -> float | None:
        """distance_after over distance_before: the share of the way that is left; None where the image failed."""
        if self.status == "failed" or self.distance_before is None or self.distance_after is None:
            return None
        return self.distance_after / self.distance_before if self.distance_before > 0 else 1.0


@dataclass(frozen=True, eq=False)
class PoisonResult(Sequence[PoisonedImage]):
    """A run's outcomes, in the order of the input.

    backend: what executed. encoder, perceptual: the networks' names. device: where. seconds: wall clock of the run,
    loading of networks excluded.
    """

    images: tuple[PoisonedImage, ...]
    backend: str
    encoder: str
    perceptual: str | None
    device: str
    seconds: float

    @overload
    def __getitem__(self, index: int) -> PoisonedImage: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[PoisonedImage, ...]: ...
    def __getitem__(self, index: int | slice) -> PoisonedImage | tuple[PoisonedImage, ...]:
        return self.images[index]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def images_per_second(self) -> float:
        """Images over seconds, failed ones included."""
        return len(self.images) / self.seconds if self.seconds > 0 else 0.0

    def summary(self) -> str:
        """A few lines of text: how many ended how, the figures at their worst, the speed, and every failure."""
        return summarize(
            self.images, seconds=self.seconds, encoder=self.encoder, perceptual=self.perceptual, backend=self.backend
        )


def mean_share(shares: Iterable[float]) -> float:
    """The mean of survival's shares, without the NaN of images that were not moved; NaN where none is left."""
    return fmean([share for share in shares if isfinite(share)] or [nan])


def summarize(
    images: Sequence[PoisonedImage], *, seconds: float, encoder: str, perceptual: str | None, backend: str
) -> str:
    """`PoisonResult.summary` for outcomes whose pixels need not be at hand."""
    counts = Counter(image.status for image in images)
    lines = [
        f"{len(images)} images: {counts['ok']} ok, {counts['below_target']} below target, {counts['failed']} failed",
        f"encoder {encoder}, perceptual {perceptual or 'none'}, backend {backend}",
    ]
    ratios = [image.ratio for image in images if image.ratio is not None]
    if ratios:
        lines.append(f"latent distance left: mean {fmean(ratios):.1%}, from {min(ratios):.1%} to {max(ratios):.1%}")
        protected = [image for image in images if image.status != "failed"]
        worst = max(image.linf for image in protected if image.linf is not None)
        line = f"largest linf {round(255 * worst)}/255"
        lpips = [image.lpips for image in protected if image.lpips is not None]
        lines.append(line + (f", largest lpips {max(lpips):.4f}" if lpips else ""))
    measured = [image.survival for image in images if image.survival is not None]
    if measured:
        means = ", ".join(f"{name} {mean_share(survival[name] for survival in measured):.0%}" for name in measured[0])
        lines.append(f"shift left after {means}")
    if seconds > 0:
        lines.append(f"{seconds:.1f} s, {len(images) / seconds:.3f} images/s")
    lines += [f"failed: {image.error}" for image in images if image.status == "failed"]
    return "\n".join(lines)


Encode = Callable[[Output, DecodedImage, UInt8Array, JpegSettings | None], bytes]


Decode = Callable[[bytes, str], DecodedImage]


@dataclass(frozen=True, eq=False)
class Work:
    """An image to protect, and the anchor that it is moved to."""

    image: DecodedImage
    anchor: Anchor


@dataclass(frozen=True, eq=False)
class Protected:
    """An image as decoded (None where it could not be) and its outcome.

    stored: uint8 [H, W, 3], upright, what the file's encoder is given; jpeg: how, where the file is a JPEG.
    """

    image: DecodedImage | None
    outcome: PoisonedImage
    stored: UInt8Array | None = None
    jpeg: JpegSettings | None = None

    def encode(self, output: Output, encode: Encode = Output.encode, decode: Decode = decode) -> bytes:
        """The bytes of the file, after decoding them again to check that they show the pixels (and alpha) that were
        measured.

        encode, decode: the functions to use, which may run in another process.
        Raises ShadeFastError where they do not, where the image failed, and where the format cannot hold it.
        """
        if self.image is None or self.stored is None or self.outcome.image is None:
            raise ShadeFastError(self.outcome.error or f"{self.outcome.name}: failed")
        data = encode(output, self.image, self.stored, self.jpeg)
        shown = decode(data, self.image.name)
        if not (np.array_equal(shown.pixels, self.outcome.image[..., :3]) and shown.has_alpha_of(self.image)):
            raise ShadeFastError(f"{self.image.name}: the encoded file does not decode to the pixels measured")
        return data


def failed(error: Exception, image: ImageLike | DecodedImage | ShadeFastError) -> PoisonedImage:
    """The outcome of an image that an error ended, which names it."""
    if isinstance(image, ShadeFastError):
        name = ""
    elif isinstance(image, DecodedImage):
        name = image.name
    else:
        name = name_of(image)
    message = str(error)
    return PoisonedImage(
        image=None,
        status="failed",
        error=message if name in message else f"{name}: {message}",
        name=name,
        transient=isinstance(error, TransientError),
    )
