"""From images with captions to what a generator is trained on: squares of one size, their latents, embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from shade_fast.encoders import Encoder
from shade_fast.images import UInt8Array, decode
from shade_fast.study.pool import Pair
from shade_fast.study.text import SentenceEncoder
from shade_fast.study.training import Examples
from shade_fast.terms.errors import ShadeFastError


def square(data: bytes | Path | UInt8Array, size: int, name: str | None = None) -> UInt8Array:
    """An image as uint8 [size, size, 3]: scaled to cover the square, aspect kept, and cropped at its centre."""
    pixels = decode(data, name).pixels[:, :, :3]
    if pixels.shape[:2] == (size, size):
        return pixels
    return np.asarray(ImageOps.fit(Image.fromarray(pixels), (size, size), method=Image.Resampling.BICUBIC))


def squares(pairs: Iterable[Pair], size: int) -> tuple[UInt8Array, list[str]]:
    """Images uint8 [N, size, size, 3] and captions of pairs. Raises ShadeFastError for one that cannot be decoded."""
    images, captions = [], []
    for pair in pairs:
        images.append(square(pair.read(), size, pair.key))
        captions.append(pair.caption)
    if not images:
        raise ShadeFastError("pairs: there are none")
    return np.stack(images), captions


def tensors(images: UInt8Array) -> torch.Tensor:
    """uint8 [N, h, w, 3] to float32 [N, 3, h, w] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2) / 255


#: Latents [C, h, w] of one encoder, by the hash of the image that they are of.
Known = dict[bytes, torch.Tensor]


@torch.no_grad()
def encode(encoder: Encoder, images: UInt8Array, known: Known | None = None, batch: int = 64) -> torch.Tensor:
    """Latents float32 [N, C, h, w] of images uint8 [N, H, W, 3]. known: latents of this encoder from before, which are
    not computed again; new ones are added."""
    known = {} if known is None else known
    keys = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
    places = {key: place for place, key in enumerate(keys) if key not in known}
    new = list(places.values())
    for at in range(0, len(new), batch):
        some = new[at : at + batch]
        known.update(zip((keys[place] for place in some), encoder.encode(tensors(images[some])), strict=True))
    return torch.stack([known[key] for key in keys])


@torch.no_grad()
def decode_latents(encoder: Encoder, latents: torch.Tensor, batch: int = 64) -> UInt8Array:
    """Latents [N, C, h, w] decoded to images uint8 [N, H, W, 3]."""
    parts = [(255 * encoder.decode(latents[at : at + batch])).round().byte() for at in range(0, len(latents), batch)]
    return torch.cat(parts).permute(0, 2, 3, 1).numpy()


def examples_of(
    images: UInt8Array,
    captions: Sequence[str],
    encoder: Encoder,
    sentences: SentenceEncoder,
    *,
    mirrored: bool = False,
    known: Known | None = None,
) -> Examples:
    """What a generator is trained on. mirrored: add each image with left and right exchanged. known: as for
    `encode`."""
    latents, texts = encode(encoder, images, known), sentences.embed(captions)
    if mirrored:
        latents = torch.cat([latents, encode(encoder, images[:, :, ::-1], known)])
        texts = torch.cat([texts, texts])
    facts = {
        "encoder": encoder.name,
        "encoder_sha256": encoder.sha256,
        "size": int(images.shape[1]),
        "sentences": sentences.name,
    }
    return Examples(latents, texts, facts)
