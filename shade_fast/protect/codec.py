"""What an image's file format does to its pixels, for the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import ExifTags, Image

from shade_fast.engine import Codec
from shade_fast.images import DecodedImage, Output, UInt8Array, decode
from shade_fast.images.jpeg import JpegSettings
from shade_fast.protect.outcome import Work


def codec(image: DecodedImage, output: Output, jpeg: JpegSettings) -> Codec:
    """The pixels that an image's file, written so, shows of uint8 pixels [3, H, W]."""

    # Only the metadata that turns pixels; the rest comes from outside, and is checked elsewhere.
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = image.orientation
    bare = replace(image, exif=exif.tobytes() if image.orientation > 1 else None, icc_profile=None, xmp=None)

    def through_the_file(pixels: torch.Tensor) -> torch.Tensor:
        data = output.encode(bare, to_array(pixels), jpeg)
        shown = decode(data, image.name, max_pixels=image.pixels.size).pixels
        return torch.tensor(shown).permute(2, 0, 1).to(pixels.device)

    return through_the_file


def through_files(clean: torch.Tensor, codecs: Sequence[Codec | None]) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """From perturbations [B, 3, H, W] to what the images' codecs leave of them; None where no codec loses anything."""
    if not any(codecs):
        return None

    def leave(delta: torch.Tensor) -> torch.Tensor:
        left = []
        for through_the_file, pixels, change in zip(codecs, clean, delta, strict=True):
            if through_the_file is None:
                left.append(change)
                continue
            perturbed = (pixels + 255 * change).round().clamp(0, 255).to(torch.uint8)
            left.append((through_the_file(perturbed).float() - pixels) / 255)
        return torch.stack(left)

    return leave


def visible_pixels(batch: Sequence[Work], device: torch.device) -> torch.Tensor | None:
    """bool [B, 1, H, W]: False where a pixel is fully transparent; None where none is."""
    if all(work.image.alpha is None or work.image.alpha.all() for work in batch):
        return None
    shown = [
        np.ones(work.image.pixels.shape[:2], dtype=bool) if work.image.alpha is None else work.image.alpha > 0
        for work in batch
    ]
    return torch.from_numpy(np.stack(shown))[:, None].to(device)


def to_array(pixels: torch.Tensor) -> UInt8Array:
    """uint8 [3, H, W] on any device -> [H, W, 3]."""
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())
