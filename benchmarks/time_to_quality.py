"""Seconds until momentum, on the native engine, has reached what each published loop reaches in plain torch.

A published loop runs through the eager encoder (backend `reference`) under the bound it is published with, momentum
through the frozen encoder (`native`) under the same bound; the paper's loop, whose LPIPS bound says nothing of single
pixels, has momentum beside it under the same LPIPS bound and an L∞ bound besides. All protect the same centre squares,
and take turns, photograph by photograph. What is compared is the mean latent distance of the rounded pixels, those of
the file, with the bound held by the same projection; LPIPS is measured on them too. Momentum runs with each of a fixed
list of steps. The fewest that reach the loop's distance count, and their seconds alone: whoever uses it chooses once.
Seconds are of the optimisation and the projection; networks and the anchor are loaded, and each side has run shortly,
before; the figures are measured after.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import options as shared
from benchmarks.environment import Environment, environment
from benchmarks.networks import trained
from benchmarks.photographs import FOLDER, squares
from benchmarks.rows import csv_file
from shade_fast import Budget, View
from shade_fast.api.poisoner import Poisoner
from shade_fast.engine import Problem, optimize, project
from shade_fast.reference import mist_loop, photoguard_loop

MOMENTUM = "momentum"
MOMENTUM_STEPS = (10, 20, 30, 40, 60)
WARMUP_STEPS = 2


@dataclass(frozen=True)
class Published:
    """A published loop: its bounds, those of momentum beside it, and the numbers of steps it is published with."""

    budget: Budget
    steps: tuple[int, ...]
    beside: Budget


def _published(budget: Budget, *steps: int, beside: Budget | None = None) -> Published:
    return Published(budget, steps, beside or budget)


#: By name; `release` and `paper` also with fewer steps than they are published with.
PUBLISHED = {
    "release": _published(Budget(linf=0.05, lpips=None), 500, 100),
    "paper": _published(Budget(linf=None, lpips=0.07), 500, 100, beside=Budget(linf=16 / 255, lpips=0.07)),
    "photoguard": _published(Budget(linf=0.03, lpips=None), 1000, 200),
    "mist": _published(Budget(linf=16 / 255, lpips=None), 100),
}


@dataclass(frozen=True)
class QualityRow(Environment):
    """One loop with so many steps, over all photographs.

    optimizer: `momentum`, or a published loop; beside: the published loop that it is compared with, or itself. linf,
    lpips_bound: the bounds that hold, None for none. start, distance: mean latent distance at the clean images, and
    reached; lpips: mean LPIPS distance; levels: the largest change of a uint8 value; all on the rounded pixels.
    seconds: of all photographs together.
    """

    optimizer: str
    beside: str
    steps: int
    backend: str
    encoder: str
    perceptual: str
    photographs: int
    size: int
    linf: float | None
    lpips_bound: float | None
    start: float
    distance: float
    lpips: float
    levels: int
    seconds: float
    step_ms: float


def arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    loops = ", ".join(PUBLISHED)
    add("loop", nargs="*", type=_loop, metavar="LOOP[:STEPS]", help=f"{loops}; as release:500,100 (default: all)")
    add("--encoder", default=trained(), help="what load_encoder takes (default: TAEF2 where it is, else embedded)")
    add("--photographs", type=Path, default=FOLDER, help="files and folders of images")
    add("--count", type=int, default=2, help="how many of the photographs, from the first (default: 2)")
    add("--size", type=int, default=128, help="side of the centre squares that are protected (default: 128)")
    add("--target", default="cat", help="the anchor (default: cat)")
    add("--momentum", type=shared.numbers, default=MOMENTUM_STEPS, help="steps tried with momentum")
    shared.machine(parser)


def run(options: Namespace) -> int:
    """The command."""
    trial = Trial(options.encoder, options.target, options.size)
    rows = trial.measure([options.photographs], options.count, dict(options.loop) or None, options.momentum)
    print(f"encoder {rows[0].encoder}, {rows[0].size} x {rows[0].size} pixels")
    print(describe(rows))
    with csv_file(options.csv) as write:
        write(rows)
    return 0


def _loop(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, steps = text.partition(":")
    return name, shared.numbers(steps) if steps else ()


@dataclass(frozen=True)
class Run:
    """A loop under a budget, with so many steps."""

    optimizer: str
    beside: str
    steps: int
    budget: Budget

    @property
    def backend(self) -> str:
        return "native" if self.optimizer == MOMENTUM else "reference"


@dataclass(frozen=True)
class Comparison:
    """A published loop's run, and the shortest momentum run that reaches its distance; None where none does."""

    published: dict[str, str]
    momentum: dict[str, str] | None

    @property
    def faster(self) -> float | None:
        return None if self.momentum is None else float(self.published["seconds"]) / float(self.momentum["seconds"])


@dataclass(frozen=True)
class Trial:
    """What all runs share."""

    encoder: str
    target: str = "cat"
    size: int = 128

    def measure(
        self,
        paths: Sequence[Path],
        count: int | None = None,
        loops: Mapping[str, Sequence[int]] | None = None,
        momentum: Sequence[int] = MOMENTUM_STEPS,
    ) -> list[QualityRow]:
        """A row for each run over the first `count` photographs in files and folders.

        loops: the published loops and their steps; by default those of `PUBLISHED`.
        """
        images = [
            torch.tensor(pixels).permute(2, 0, 1)[None].contiguous() for pixels in squares(paths, self.size, count)
        ]
        runs = plan({name: loop.steps for name, loop in PUBLISHED.items()} if loops is None else loops, momentum)
        for run in {(run.optimizer, run.beside): run for run in runs}.values():
            self._protect(Run(run.optimizer, run.beside, WARMUP_STEPS, run.budget), images[0])
        results: dict[Run, list[tuple[float, float, float, int, float]]] = {run: [] for run in runs}
        for number, image in enumerate(images):
            for run in runs if number % 2 == 0 else reversed(runs):
                pixels, seconds = self._protect(run, image)
                results[run].append((*self._figures(image, pixels), seconds))
        return [self._row(run, results[run]) for run in runs]

    @cached_property
    def _poisoners(self) -> dict[str, Poisoner]:
        """What loads and freezes the networks."""
        return {
            backend: Poisoner(encoder=self.encoder, view=View(size=None), backend=backend, devices="cpu")
            for backend in ("reference", "native")
        }

    def _problem(self, image: Tensor, backend: str, lpips: bool) -> Problem:
        poisoner = self._poisoners[backend]
        plan_of_view = View(size=None).plan(self.size, self.size, poisoner.factor)
        anchors = [
            poisoner.anchor(self.target).latents(encoder, plan_of_view.crop)[:1] for encoder in poisoner.encoders
        ]
        perceptual = poisoner.perceptual if lpips else None
        return Problem(image, plan_of_view, poisoner.encoders, anchors, perceptual, backend)

    def _protect(self, run: Run, image: Tensor) -> tuple[Tensor, float]:
        """The rounded pixels, uint8 [1, 3, size, size], and the seconds that it took."""
        start = time.perf_counter()
        problem = self._problem(image, run.backend, run.budget.lpips is not None)
        if run.optimizer in PEERS:
            delta = _peer(PEERS[run.optimizer], problem, run.budget, run.steps)
        else:
            delta = optimize(problem, run.optimizer, run.budget, run.steps).delta
        pixels = project(problem, delta, run.budget).pixels
        return pixels, time.perf_counter() - start

    @torch.no_grad()
    def _figures(self, clean: Tensor, pixels: Tensor) -> tuple[float, float, float, int]:
        """Latent distance of clean and of perturbed pixels, LPIPS between them, and the largest change."""
        problem = self._problem(clean, "reference", lpips=True)
        shown = problem.see(pixels / 255)
        lpips = problem.lpips(shown)
        if lpips is None:
            raise ValueError("time to quality measures LPIPS, and its network was not loaded")
        levels = (pixels.to(torch.int16) - clean.to(torch.int16)).abs().max()
        return float(problem.start), float(problem.distance(shown)), float(lpips), int(levels)

    def _row(self, run: Run, results: list[tuple[float, float, float, int, float]]) -> QualityRow:
        starts, distances, lpips, levels, seconds = np.array(results).T
        poisoner = self._poisoners[run.backend]
        return QualityRow(
            optimizer=run.optimizer,
            beside=run.beside,
            steps=run.steps,
            backend=poisoner.backend,
            encoder=poisoner.encoder_name,
            perceptual="" if poisoner.perceptual is None else poisoner.perceptual.name,
            photographs=len(results),
            size=self.size,
            linf=run.budget.linf,
            lpips_bound=run.budget.lpips,
            start=float(starts.mean()),
            distance=float(distances.mean()),
            lpips=float(lpips.mean()),
            levels=int(levels.max()),
            seconds=float(seconds.sum()),
            step_ms=1e3 * float(seconds.mean()) / run.steps,
            **environment(),  # type: ignore[arg-type]
        )


def plan(loops: Mapping[str, Sequence[int]], momentum: Sequence[int]) -> list[Run]:
    """Each published loop's runs, and momentum's beside it. Raises ValueError for an unknown loop."""
    runs = []
    for name, steps in loops.items():
        if name not in PUBLISHED:
            raise ValueError(f"no published loop {name!r}; there are {', '.join(PUBLISHED)}")
        runs += [Run(name, name, count, PUBLISHED[name].budget) for count in steps or PUBLISHED[name].steps]
        runs += [Run(MOMENTUM, name, count, PUBLISHED[name].beside) for count in momentum]
    return runs


#: Published loops that the engine does not offer.
PEERS: dict[str, Callable[..., Tensor]] = {"photoguard": photoguard_loop, "mist": mist_loop}


def _peer(loop: Callable[..., Tensor], problem: Problem, budget: Budget, steps: int) -> Tensor:
    """The perturbation that one of `PEERS` makes through the problem's view."""
    clean = problem.clean / 255
    (encoder,), (latents,) = problem.encoders, problem.anchor_latents
    return loop(lambda images: encoder.encode(problem.see(images)), clean, latents, budget.linf, steps=steps) - clean


def compare(rows: Iterable[dict[str, str]]) -> list[Comparison]:
    """Each published loop's run with the momentum run beside it of the fewest steps that reaches its distance."""
    rows = list(rows)
    ours = sorted((row for row in rows if row["optimizer"] == MOMENTUM), key=lambda row: int(row["steps"]))
    return [
        Comparison(
            row,
            next(
                (
                    other
                    for other in ours
                    if other["beside"] == row["beside"] and float(other["distance"]) <= float(row["distance"])
                ),
                None,
            ),
        )
        for row in rows
        if row["optimizer"] != MOMENTUM
    ]


def describe(rows: Iterable[QualityRow]) -> str:
    """Lines for the terminal: every run, and what they come to."""
    rows = list(rows)
    lines = [
        f"{row.optimizer if row.optimizer == row.beside else f'  {row.optimizer}':11} {row.steps:4} steps  "
        f"{row.backend:9}  distance {row.start:.3f} -> {row.distance:.3f}  lpips {row.lpips:.4f}  "
        f"{row.levels:3}/255  {row.seconds:8.2f} s for {row.photographs} photographs, {row.step_ms:.1f} ms a step"
        for row in rows
    ]
    for comparison in compare({name: str(value) for name, value in asdict(row).items()} for row in rows):
        published, momentum = comparison.published, comparison.momentum
        goal = f"{published['optimizer']}'s {published['steps']} steps: "
        if momentum is None:
            lines.append(f"{goal}no momentum run reached them")
        else:
            lines.append(f"{goal}momentum reached them in {momentum['steps']}, {comparison.faster:.1f} times faster")
    return "\n".join(lines)
