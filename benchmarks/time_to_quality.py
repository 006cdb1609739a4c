"""Seconds until momentum, on the native engine, has reached what the published release loop reaches in plain torch.

    python -m benchmarks time-to-quality

The release loop runs through the eager encoder (backend `reference`), momentum through the frozen one (`native`), on
the same centre squares under the same linf bound, without LPIPS; the two take turns, photograph by photograph. What is
compared is the mean latent distance of the rounded pixels, those of the file. Momentum runs with each of a fixed list
of steps. The fewest that reach the release's distance count, and their seconds alone: whoever uses it chooses once.
Seconds are those of the whole call, but networks and the anchor are loaded, and each side has run shortly, before.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.environment import Environment, environment
from benchmarks.photographs import squares
from shade_fast import Budget, View
from shade_fast.images import UInt8Array
from shade_fast.poison import Poisoner

RELEASE_STEPS = (500, 100)
MOMENTUM_STEPS = (10, 15, 20, 25, 30, 35, 40, 50, 60)
WARMUP_STEPS = 2
BACKENDS = {"release": "reference", "momentum": "native"}

Run = tuple[str, int]


@dataclass(frozen=True)
class QualityRow(Environment):
    """One optimiser with so many steps, over all photographs.

    start, distance: mean latent distance at the clean images, and reached, on the rounded pixels. seconds: of all
    photographs together.
    """

    optimizer: str
    steps: int
    backend: str
    encoder: str
    photographs: int
    size: int
    linf: float
    start: float
    distance: float
    seconds: float
    step_ms: float


@dataclass(frozen=True)
class Comparison:
    """A release run, and the shortest momentum run that reaches its distance; None where none does."""

    release: Mapping[str, str]
    momentum: Mapping[str, str] | None

    @property
    def faster(self) -> float | None:
        return None if self.momentum is None else float(self.release["seconds"]) / float(self.momentum["seconds"])


@dataclass(frozen=True)
class Trial:
    """What all runs share."""

    encoder: str
    target: str = "cat"
    linf: float = 0.05
    size: int = 256

    def measure(
        self,
        paths: Sequence[Path],
        count: int | None = None,
        release: Sequence[int] = RELEASE_STEPS,
        momentum: Sequence[int] = MOMENTUM_STEPS,
    ) -> list[QualityRow]:
        """A row for each run over the first `count` photographs in files and folders."""
        images = squares(paths, self.size, count)
        runs: list[Run] = [*(("release", steps) for steps in release), *(("momentum", steps) for steps in momentum)]
        poisoners = {optimizer: self._poisoner(optimizer) for optimizer in BACKENDS}
        for optimizer, poisoner in poisoners.items():
            self._protect(poisoner, (optimizer, WARMUP_STEPS), images[0])
        results: dict[Run, list[tuple[float, float, float]]] = {run: [] for run in runs}
        for number, image in enumerate(images):
            for run in runs if number % 2 == 0 else reversed(runs):
                results[run].append(self._protect(poisoners[run[0]], run, image))
        return [self._row(run, poisoners[run[0]], results[run]) for run in runs]

    def _poisoner(self, optimizer: str) -> Poisoner:
        return Poisoner(
            encoder=self.encoder,
            budget=Budget(linf=self.linf, lpips=None),
            view=View(size=None),
            perceptual=None,
            optimizer=optimizer,
            backend=BACKENDS[optimizer],
            devices="cpu",
        )

    def _protect(self, poisoner: Poisoner, run: Run, image: UInt8Array) -> tuple[float, float, float]:
        """Distance at the start and reached, and the seconds that it took."""
        poisoner.steps = run[1]
        anchor = poisoner.anchor(self.target)
        start = time.perf_counter()
        (protected,) = poisoner.protect([(image, anchor)])
        seconds = time.perf_counter() - start
        outcome = protected.outcome
        if outcome.distance_before is None or outcome.distance_after is None:
            raise ValueError(f"{run[0]} with {run[1]} steps failed: {outcome.error}")
        return outcome.distance_before, outcome.distance_after, seconds

    def _row(self, run: Run, poisoner: Poisoner, results: list[tuple[float, float, float]]) -> QualityRow:
        starts, distances, seconds = np.array(results).T
        return QualityRow(
            optimizer=run[0],
            steps=run[1],
            backend=poisoner.backend,
            encoder=poisoner.encoder_name,
            photographs=len(results),
            size=self.size,
            linf=self.linf,
            start=float(starts.mean()),
            distance=float(distances.mean()),
            seconds=float(seconds.sum()),
            step_ms=1e3 * float(seconds.mean()) / run[1],
            **environment(),  # type: ignore[arg-type]
        )


def compare(rows: Iterable[Mapping[str, str]]) -> list[Comparison]:
    """Each release run with the momentum run of the fewest steps that reaches its distance."""
    rows = list(rows)
    others = sorted((row for row in rows if row["optimizer"] == "momentum"), key=lambda row: int(row["steps"]))
    return [
        Comparison(row, next((other for other in others if float(other["distance"]) <= float(row["distance"])), None))
        for row in rows
        if row["optimizer"] == "release"
    ]


def describe(rows: Iterable[QualityRow]) -> str:
    """Lines for the terminal: every run, and what they come to."""
    rows = list(rows)
    lines = [
        f"{row.optimizer:9} {row.steps:4} steps  {row.backend:9}  distance {row.start:.3f} -> {row.distance:.3f}  "
        f"{row.seconds:8.2f} s for {row.photographs} photographs, {row.step_ms:.1f} ms a step"
        for row in rows
    ]
    for found in compare({name: str(value) for name, value in asdict(row).items()} for row in rows):
        goal = f"release's {found.release['steps']} steps: "
        if found.momentum is None:
            lines.append(f"{goal}no momentum run reached them")
        else:
            lines.append(f"{goal}momentum reached them in {found.momentum['steps']}, {found.faster:.1f} times faster")
    return "\n".join(lines)
