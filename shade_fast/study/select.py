"""Which of a pool's images to protect for a concept: those that show it, and whose captions speak of little else.

The two sieves are those of the published code (github.com/Shawn-Shan/nightshade-release): images whose CLIP similarity
to "a photo of C" is above a threshold (0.24 for ViT-B/32), then the captions nearest to that text, and of these a
random sample. Without CLIP the captions' sentence embeddings sort alone.
"""

from __future__ import annotations

import csv
import heapq
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

from shade_fast.images import UInt8Array, decode
from shade_fast.study.clip import Clip
from shade_fast.study.pool import Pair, caption_of
from shade_fast.study.text import SentenceEncoder, batches
from shade_fast.terms.errors import ShadeFastError

IMAGE_THRESHOLD = 0.24
TOP = 5000
BATCH = 256
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selected:
    """A pair that was chosen. place: its number among the pool's pairs, from 0. key, caption: the pair's.
    caption_similarity, image_similarity: cosines with "a photo of C"; the image's is None where no CLIP looked."""

    place: int
    key: str
    caption: str
    caption_similarity: float
    image_similarity: float | None = None


def select(
    pool: Iterable[Pair],
    concept: str,
    *,
    count: int = 100,
    top: int = TOP,
    seed: int = 0,
    clip: Clip | None = None,
    image_threshold: float = IMAGE_THRESHOLD,
    sentences: SentenceEncoder | None = None,
) -> list[Selected]:
    """Choose `count` pairs for a concept, in the pool's order; the pool is read once, as a stream.

    clip: with it both sieves are CLIP's; without, `sentences` (by default the packaged MiniLM) compares captions alone.
    top: of the captions, how many of the nearest the sample is drawn from. seed: of that draw.
    Images that CLIP cannot be shown, as they cannot be read or decoded, are left out; their number is logged.
    Raises ShadeFastError for counts below 1, and where nothing passes.
    """
    if count < 1 or top < count:
        raise ShadeFastError(f"count={count}, top={top}: give a count of at least 1, and a top of at least that")
    texts: Callable[[Sequence[str]], torch.Tensor]
    texts = clip.embed_texts if clip is not None else (sentences or SentenceEncoder()).embed
    wanted = texts([caption_of(concept)])[0]
    nearest: list[tuple[float, int, Selected]] = []
    seen = passed = unread = 0
    for part in batches(enumerate(pool), BATCH):
        seen += len(part)
        images: list[float | None] = [None] * len(part)
        if clip is not None:
            pixels = [_pixels(pair) for _, pair in part]
            part = [entry for entry, shown in zip(part, pixels, strict=True) if shown is not None]
            unread += len(pixels) - len(part)
            if not part:
                continue
            images = (clip.embed_images([shown for shown in pixels if shown is not None]) @ wanted).tolist()
        captions = (texts([pair.caption for _, pair in part]) @ wanted).tolist()
        for (place, pair), image, caption in zip(part, images, captions, strict=True):
            if image is None or image >= image_threshold:
                passed += 1
                entry = (caption, -place, Selected(place, pair.key, pair.caption, caption, image))
                (heapq.heappush if len(nearest) < top else heapq.heappushpop)(nearest, entry)
    if unread:
        log.warning("%d of %d images cannot be read and are left out", unread, seen)
    if not nearest:
        raise ShadeFastError(
            f"concept {concept!r}: none of {seen} images is as near as {image_threshold}; lower the threshold, or give "
            "a pool that shows it"
        )
    chosen = sorted(nearest, reverse=True)
    picks = np.random.default_rng(seed).choice(len(chosen), min(count, len(chosen)), replace=False)
    return sorted((chosen[pick][2] for pick in picks), key=lambda selected: selected.place)


def _pixels(pair: Pair) -> UInt8Array | None:
    """uint8 [h, w, 3]; None for an image that cannot be read, which is logged."""
    try:
        return decode(pair.read(), pair.key).pixels[:, :, :3]
    except ShadeFastError as error:
        log.warning("left out: %s", error)
        return None


def write_selected(chosen: Sequence[Selected], path: Path) -> None:
    """Write a CSV with a row for each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Selected)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(selected) for selected in chosen)


def read_selected(path: Path) -> list[Selected]:
    """Read what `write_selected` wrote. Raises ShadeFastError for another file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                Selected(
                    place=int(row["place"]),
                    key=row["key"],
                    caption=row["caption"],
                    caption_similarity=float(row["caption_similarity"]),
                    image_similarity=float(row["image_similarity"]) if row["image_similarity"] else None,
                )
                for row in csv.DictReader(file)
            ]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ShadeFastError(f"{path}: no selection ({error}); make one with `shade-fast study select`") from error
