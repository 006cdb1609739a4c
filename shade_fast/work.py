"""An image on its way through the engine: what is to be done, what became of it, and what its file makes of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import ExifTags, Image

from shade_fast.anchors import Anchor, ImageLike
from shade_fast.engine import Codec
from shade_fast.errors import ShadeFastError, TransientError
from shade_fast.images import DecodedImage, Output, UInt8Array, decode, name_of
from shade_fast.jpeg import JpegSettings
from shade_fast.results import PoisonedImage

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
        """The bytes of the file, decoded again and found to show the pixels (and alpha) that were measured.

        encode, decode: what does it, in a process of its own for example.
        Raises ShadeFastError where they do not, where the image failed, and where the format cannot hold it.
        """
        if self.image is None or self.stored is None or self.outcome.image is None:
            raise ShadeFastError(self.outcome.error or f"{self.outcome.name}: failed")
        data = encode(output, self.image, self.stored, self.jpeg)
        shown = decode(data, self.image.name)
        if not (np.array_equal(shown.pixels, self.outcome.image[..., :3]) and shown.has_alpha_of(self.image)):
            raise ShadeFastError(f"{self.image.name}: the encoded file does not decode to the pixels measured")
        return data


def listed(images: Sequence[ImageLike] | torch.Tensor, name: str = "images") -> Sequence[ImageLike]:
    """The images of a batch. Raises ShadeFastError, which names the argument, for none and for what is something
    else."""
    if isinstance(images, torch.Tensor):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ShadeFastError(
                f"{name}: a {images.dtype} tensor of shape {tuple(images.shape)}; give uint8 [N, 3, H, W], 0 to 255"
            )
        images = list(images.permute(0, 2, 3, 1).cpu().numpy())
    if isinstance(images, np.ndarray) and images.ndim == 4:
        images = list(images)
    if isinstance(images, str | bytes) or not isinstance(images, Sequence):
        raise ShadeFastError(
            f"{name}: give a sequence of images or a uint8 tensor [N, 3, H, W]; got {type(images).__name__}"
        )
    if not images:
        raise ShadeFastError(f"{name}: none were given; give at least one")
    return images


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


def codec(image: DecodedImage, output: Output, jpeg: JpegSettings) -> Codec:
    """What an image's file, written so, makes of uint8 pixels [3, H, W]."""

    # Of the file's metadata only what turns its pixels: the rest is others' bytes, and is looked at elsewhere.
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = image.orientation
    bare = replace(image, exif=exif.tobytes() if image.orientation > 1 else None, icc_profile=None, xmp=None)

    def through_the_file(pixels: torch.Tensor) -> torch.Tensor:
        data = output.encode(bare, to_array(pixels), jpeg)
        shown = decode(data, image.name, max_pixels=image.pixels.size).pixels
        return torch.tensor(shown).permute(2, 0, 1).to(pixels.device)

    return through_the_file


def through_files(clean: torch.Tensor, codecs: Sequence[Codec | None]) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """From perturbations [B, 3, H, W] to those that the images' codecs leave; None where that is all of them."""
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
    """bool [B, 1, H, W]: where the images are not fully transparent; None where they nowhere are."""
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
