"""How much of a caption corpus mentions a concept: what is rare there is cheap to protect.

Two figures, as the paper has them (arXiv 2310.13828, section 3): the share of captions with the concept's word, and the
share whose meaning is near it, here a cosine of sentence embeddings with the concept's own caption above a threshold.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from shade_fast.study.plots import import_pyplot
from shade_fast.study.pool import caption_of
from shade_fast.study.text import SentenceEncoder, batches
from shade_fast.terms.errors import ShadeFastError

THRESHOLD = 0.5
BATCH = 4096


@dataclass(frozen=True)
class Sparsity:
    """A concept's captions in a corpus. words: with the word or its plural. meanings: near it. Frequencies are shares
    of `captions`, the whole corpus."""

    concept: str
    captions: int
    words: int
    meanings: int
    word_frequency: float
    semantic_frequency: float


def sparsity(
    captions: Iterable[str],
    concepts: Sequence[str],
    *,
    threshold: float = THRESHOLD,
    sentences: SentenceEncoder | None = None,
) -> list[Sparsity]:
    """Count concepts in captions, read once as a stream; the rarest in meaning first.

    Raises ShadeFastError for no concepts, no captions, and a threshold that is no cosine.
    """
    if not concepts or not all(concept.strip() for concept in concepts):
        raise ShadeFastError("concepts: give one or more words")
    if not -1 < threshold < 1:
        raise ShadeFastError(f"threshold={threshold}: give a cosine between -1 and 1")
    sentences = sentences or SentenceEncoder()
    wanted = sentences.embed([caption_of(concept) for concept in concepts])
    patterns = [re.compile(rf"\b{re.escape(concept)}(s|es)?\b", re.IGNORECASE) for concept in concepts]
    total, words, meanings = 0, [0] * len(concepts), torch.zeros(len(concepts), dtype=torch.long)
    for part in batches(captions, BATCH):
        total += len(part)
        for index, pattern in enumerate(patterns):
            words[index] += sum(pattern.search(caption) is not None for caption in part)
        meanings += (sentences.embed(part) @ wanted.T >= threshold).sum(0)
    if not total:
        raise ShadeFastError("captions: there are none")
    rows = [
        Sparsity(concept, total, word, int(meaning), word / total, int(meaning) / total)
        for concept, word, meaning in zip(concepts, words, meanings, strict=True)
    ]
    return sorted(rows, key=lambda row: (row.meanings, row.words, row.concept))


def sparsity_table(rows: Sequence[Sparsity]) -> str:
    """Lines of text, the rarest first."""
    width = max(len("concept"), *(len(row.concept) for row in rows))
    lines = [f"{'concept':<{width}}  {'word':>9}  {'meaning':>9}  of {rows[0].captions} captions"]
    lines += [
        f"{row.concept:<{width}}  {row.word_frequency:>9.3%}  {row.semantic_frequency:>9.3%}  {row.meanings}"
        for row in rows
    ]
    return "\n".join(lines)


def write_sparsity(rows: Sequence[Sparsity], folder: Path) -> list[Path]:
    """Write sparsity.csv and, drawn, sparsity.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    table, plot = folder / "sparsity.csv", folder / "sparsity.svg"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Sparsity)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(6, 0.6 + 0.35 * len(rows)), layout="constrained")
    places = range(len(rows))
    least = 0.5 / rows[0].captions
    for name, values, offset in (
        ("by meaning", [row.semantic_frequency for row in rows], -0.2),
        ("by word", [row.word_frequency for row in rows], 0.2),
    ):
        axes.barh([place + offset for place in places], [max(least, value) for value in values], 0.4, label=name)
    axes.set_yticks(list(places), [row.concept for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(f"share of {rows[0].captions} captions")
    axes.legend()
    figure.savefig(plot)
    pyplot.close(figure)
    return [table, plot]
