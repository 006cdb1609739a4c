"""What may happen to a file: real codecs and filters on uint8 pixels, by Pillow. `transforms` has their differentiable
relatives, which a view draws at random."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from shade_fast.views.transforms import CROP, NOISE, Map, crop_map

Pixels = NDArray[np.uint8]

#: What noise is drawn from: the same for every image.
NOISE_SEED = 0
#: Passes of the median filter.
MEDIANS = 3


@dataclass(frozen=True)
class Treatment:
    """One of them: uint8 [H, W, 3] to the same shape, and where it takes latents (None: nowhere)."""

    apply: Callable[[Pixels], Pixels]
    latent: Map | None = None


def encoded(**options: Any) -> Treatment:
    """Written by Pillow with these options of `Image.save`, and read again."""

    def apply(pixels: Pixels) -> Pixels:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, **options)
        return np.asarray(Image.open(file).convert("RGB"))

    return Treatment(apply)


def resized(scale: float) -> Treatment:
    """Resized to a share of both sides and back, bicubic."""

    def apply(pixels: Pixels) -> Pixels:
        picture = Image.fromarray(pixels)
        smaller = (max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
        there = picture.resize(smaller, Image.Resampling.BICUBIC)
        return np.asarray(there.resize(picture.size, Image.Resampling.BICUBIC))

    return Treatment(apply)


def _cropped(pixels: Pixels) -> Pixels:
    picture = Image.fromarray(pixels)
    across, down = (CROP / 2 * side for side in picture.size)
    box = (across, down, picture.width - across, picture.height - down)
    return np.asarray(picture.resize(picture.size, Image.Resampling.BICUBIC, box=box))


def _noisy(pixels: Pixels) -> Pixels:
    noise = np.random.default_rng(NOISE_SEED).normal(0, 255 * NOISE, pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def _flipped(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels[:, ::-1])


def _denoised(pixels: Pixels) -> Pixels:
    picture = Image.fromarray(pixels)
    for _ in range(MEDIANS):
        picture = picture.filter(ImageFilter.MedianFilter(3))
    return np.asarray(picture)


#: Name -> treatment: what `survival` measures.
TREATMENTS: dict[str, Treatment] = {
    "JPEG 90": encoded(format="JPEG", quality=90),
    "JPEG 75": encoded(format="JPEG", quality=75),
    "JPEG 60": encoded(format="JPEG", quality=60),
    "WebP 80": encoded(format="WEBP", quality=80),
    "resize 75%": resized(0.75),
    "resize 50%": resized(0.5),
    f"crop {CROP:.0%}": Treatment(_cropped, crop_map(CROP / 2, CROP / 2, 1 - CROP)),
    f"noise {NOISE}": Treatment(_noisy),
    "flip": Treatment(_flipped, lambda latents: latents.flip(3)),
    "denoise": Treatment(_denoised),
}
