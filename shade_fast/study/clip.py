"""CLIP (arXiv 2103.00020): how well an image fits a text, as the cosine of their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from shade_fast.encoders.hub import PLAIN, TRANSFORMER, find_model
from shade_fast.images import UInt8Array
from shade_fast.study.text import import_transformers
from shade_fast.terms.errors import ShadeFastError, reason


class Clip:
    """A CLIP model through transformers, by local folder, hub:owner/name, or owner/name of one in the hub's cache.

    No code that comes with it is run, nor any pickle. Raises ShadeFastError where it cannot be loaded.
    """

    def __init__(self, model: str) -> None:
        transformers = import_transformers()
        try:
            source = find_model(model, TRANSFORMER)
            self.name, folder = source.name, str(source.folder)
            self._processor: Any = transformers.CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **PLAIN)
            self._model: Any = transformers.CLIPModel.from_pretrained(folder, weights_only=True, **PLAIN)
            self._model.eval().requires_grad_(False)
        except Exception as error:  # transformers raises many kinds
            raise ShadeFastError(
                f"CLIP {model!r}: cannot be loaded ({reason(error)}); give a CLIP model's folder, or hub:owner/name"
            ) from error

    @torch.no_grad()
    def embed_images(self, images: Sequence[UInt8Array], batch: int = 32) -> torch.Tensor:
        """float32 [N, D], rows of length 1, for uint8 images [h, w, 3] of any sizes."""
        parts = []
        for at in range(0, len(images), batch):
            pictures = [Image.fromarray(image) for image in images[at : at + batch]]
            pixels = self._processor(images=pictures, return_tensors="pt")["pixel_values"]
            seen = self._model.visual_projection(self._model.vision_model(pixel_values=pixels).pooler_output)
            parts.append(torch.nn.functional.normalize(seen, dim=1))
        return torch.cat(parts)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch: int = 256) -> torch.Tensor:
        """float32 [N, D], rows of length 1."""
        parts = []
        for at in range(0, len(texts), batch):
            longest = self._model.config.text_config.max_position_embeddings
            tokens = self._tokenizer(
                list(texts[at : at + batch]), padding=True, truncation=True, max_length=longest, return_tensors="pt"
            )
            read = self._model.text_projection(self._model.text_model(**tokens).pooler_output)
            parts.append(torch.nn.functional.normalize(read, dim=1))
        return torch.cat(parts)
