"""Anchors: images of the target concept, whose latents the protected images are moved to."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional

from shade_fast.encoders import Encoder
from shade_fast.images import ImageLike, decode
from shade_fast.system.pulse import pulse
from shade_fast.terms.errors import ShadeFastError

Target = ImageLike | torch.Tensor
_ONE_IMAGE = (str, Path, Image.Image, np.ndarray)

#: Latents of this many views are kept for each anchor: most archives have few shapes, but some have many.
CACHED_VIEWS = 32


class Anchor:
    """One target: images of a concept, or a latent.

    name: shown in results. images: one or more paths, PIL images or uint8 arrays [H, W, C], decoded when first used.
    latent: [C, h, w] or [1, C, h, w], instead of images; resampled where a view's latent has another size.
    paths: where images that are given as pixels came from.
    Raises ShadeFastError for neither or both, and for a latent that has another shape or is not finite.
    """

    def __init__(
        self,
        name: str,
        images: Iterable[ImageLike] | ImageLike = (),
        latent: torch.Tensor | None = None,
        *,
        paths: Sequence[str] | None = None,
    ) -> None:
        images = (images,) if isinstance(images, _ONE_IMAGE) else tuple(images)
        if bool(images) == (latent is not None):
            raise ShadeFastError(f"anchor {name!r}: give one or more images, or a latent")
        self.name = name
        self.paths: tuple[str | None, ...] = tuple(
            paths or (str(image) if isinstance(image, str | Path) else None for image in images)
        )
        self._images = images
        self._latent = None if latent is None else _checked_latent(latent, name)
        self._cache: dict[tuple[Any, ...], torch.Tensor] = {}
        self._checked = False

    def __len__(self) -> int:
        return max(1, len(self._images))

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled. Latents are left out, and computed again where they are needed."""
        return self.__dict__ | {"_cache": {}}

    def check(self) -> Anchor:
        """This anchor, its images having been decoded once. Raises ShadeFastError for one that cannot be."""
        if not self._checked:
            for image in self._images:
                decode(image)
            self._checked = True
        return self

    @property
    def is_latent(self) -> bool:
        """Whether this is a latent, which fits only encoders with as many channels."""
        return self._latent is not None

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the images as decoded, in order, or of the latent."""
        digest = hashlib.sha256()
        if self._latent is not None:
            digest.update(f"latent {list(self._latent.shape)}".encode())
            digest.update(self._latent.cpu().contiguous().numpy().tobytes())
        for image in self._images:
            pixels = decode(image).pixels
            digest.update(f"image {pixels.shape}".encode())
            digest.update(pixels.tobytes())
        return digest.hexdigest()

    def latents(self, encoder: Encoder, size: tuple[int, int]) -> torch.Tensor:
        """The candidates' latents [K, C, h, w] for a view of `size` (height, width) pixels; kept per encoder and size.

        An image is scaled to cover the view, aspect kept, and cropped at its centre.
        """
        # The hash covers weights alone, so networks of a caller's own architecture may share it.
        own = encoder.sha256 is None or encoder.kind in ("module", "callable")
        key = (encoder if own else encoder.sha256, encoder.name, encoder.factor, encoder.device, size)
        if key not in self._cache:
            while len(self._cache) >= CACHED_VIEWS:
                del self._cache[next(iter(self._cache))]
            self._cache[key] = self._encode(encoder, size)
        return self._cache[key]

    @torch.no_grad()
    def _encode(self, encoder: Encoder, size: tuple[int, int]) -> torch.Tensor:
        height, width = size
        if self._latent is not None:
            if self._latent.shape[1] != encoder.channels:
                raise ShadeFastError(
                    f"anchor {self.name!r}: a latent of {self._latent.shape[1]} channels; "
                    f"encoder {encoder.name!r} has {encoder.channels}"
                )
            latent = self._latent.to(encoder.device)
            return functional.interpolate(
                latent, size=(height // encoder.factor, width // encoder.factor), mode="bilinear", antialias=True
            )
        latents = []
        for image in self._images:
            pulse()
            picture = Image.fromarray(decode(image).pixels)
            covering = ImageOps.fit(picture, (width, height), method=Image.Resampling.BILINEAR)
            pixels = torch.frombuffer(bytearray(covering.tobytes()), dtype=torch.uint8).view(height, width, 3)
            latents.append(encoder.encode(pixels.to(encoder.device).permute(2, 0, 1)[None] / 255))
        return torch.cat(latents)


def _checked_latent(latent: torch.Tensor, name: str) -> torch.Tensor:
    if latent.ndim == 3:
        latent = latent[None]
    if latent.ndim != 4 or latent.shape[0] != 1 or latent.numel() == 0 or not latent.is_floating_point():
        raise ShadeFastError(
            f"anchor {name!r}: a {latent.dtype} tensor of shape {tuple(latent.shape)}; "
            "give a float latent [C, h, w] or [1, C, h, w]"
        )
    if not bool(torch.isfinite(latent).all()):
        raise ShadeFastError(f"anchor {name!r}: the latent holds NaN or infinite values; encode it again")
    return latent.detach().float()
