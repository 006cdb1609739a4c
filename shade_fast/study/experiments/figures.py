"""Results of arms as tables: a row for each run, and what the runs of one arm have in common."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from shade_fast.study.experiments.arms import Arm, Result


@dataclass(frozen=True)
class Summary:
    """One share over an arm's seeds: its mean, the least and the most of a seed, and Wilson's 95% interval of all draws
    together (which ignores how seeds differ)."""

    mean: float
    least: float
    most: float
    low: float
    high: float

    def above(self, other: Summary) -> bool:
        """Whether every seed is above every one of the other, and the intervals do not touch."""
        return self.least > other.most and self.low > other.high

    def __str__(self) -> str:
        return f"{self.mean:.0%} ({self.least:.0%} to {self.most:.0%})"


@dataclass(frozen=True, eq=False)
class Figures:
    """The results of an experiment's arms, each with its seeds."""

    concepts: tuple[str, ...]
    source: str
    target: str
    results: Mapping[Arm, Sequence[Result]]

    def drawn(self, arm: Arm, concept: str, word: str | None = None, *, low_pass: bool = False) -> Summary:
        """Share of an arm's draws for a word (the source's, unless given) that the judge takes for a concept."""
        word = word or self.source
        results = self.results[arm]
        shares = [result.share(word, concept, low_pass=low_pass) for result in results]
        tables = [(result.low_pass if low_pass else result.draws)[word] for result in results]
        hits, total = sum(table[concept] for table in tables), sum(sum(table.values()) for table in tables)
        return Summary(fmean(shares), min(shares), max(shares), *wilson(hits, total))

    def rows(self) -> list[dict[str, Any]]:
        """A row for each run: the arm, and the shares of what it drew."""
        return [run_row(result, self.concepts) for results in self.results.values() for result in results]


def run_row(result: Result, concepts: Sequence[str]) -> dict[str, Any]:
    """One run in plain values. The shares are means over the poisoned concepts, and over the others."""
    pairs: list[tuple[str, str]] = [(source, target) for source, target in result.arm["pairs"]]
    others = [concept for concept in concepts if concept not in dict(pairs)]
    row = {name: value for name, value in result.arm.items() if name != "pairs"}
    return {
        **row,
        "concepts": len(pairs),
        "seed": result.seed,
        "poisons": result.poisons,
        "drawn_as_target": fmean(result.share(source, target) for source, target in pairs),
        "drawn_as_target_low_pass": fmean(result.share(source, target, low_pass=True) for source, target in pairs),
        "drawn_as_source": fmean(result.share(source, source) for source, _ in pairs),
        "others_drawn_right": fmean(result.share(concept, concept) for concept in others) if others else None,
        "frechet": round(result.quality, 4),
        "filter_auc": result.auc,
        "dropped_poisoned": result.dropped_poisoned,
        "dropped_clean": result.dropped_clean,
        "seconds": result.seconds,
    }


def wilson(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share, at 95% by default (E. B. Wilson, 1927)."""
    share, spread = hits / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write a CSV; the first row's keys are its columns."""
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
            writer.writerow(rounded)
