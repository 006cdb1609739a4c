"""How far the optimisers get: mean latent distance on photographs, the bounds held, what survives, and the seconds.

python -m benchmarks quality PHOTOGRAPHS --encoder ENCODER --target IMAGE --run release:500 --run momentum:50
python -m benchmarks quality PHOTOGRAPHS --fit OTHERS --run momentum+start:30        (a warm start fitted on OTHERS)
python -m benchmarks quality PHOTOGRAPHS --survival --run momentum:60 --run momentum+robust:60
python -m benchmarks quality PHOTOGRAPHS --encoder A --encoder B --run momentum:60
python -m benchmarks quality PHOTOGRAPHS --backend onnxruntime --run momentum:60

Every run protects the same centre squares inside the same budget; the published loops know none or one of its bounds,
and what they make is scaled into it (`shade_fast.engine.project`).
"""

from __future__ import annotations

import csv
import itertools
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from benchmarks.photographs import squares
from shade_fast import Anchor, Budget, PoisonResult, View, WarmStart, fit_start
from shade_fast.api.poisoner import Poisoner
from shade_fast.archive import find_images
from shade_fast.engine import BACKENDS
from shade_fast.images import UInt8Array
from shade_fast.protect.options import bound
from shade_fast.terms.errors import ShadeFastError
from shade_fast.views.treatments import TREATMENTS

COLUMNS = ["optimizer", "start", "robust", "steps", "images", "encoder", "linf", "lpips", "clean", "distance", "left"]
COLUMNS += ["worst_linf_levels", "worst_lpips", "mean_lpips", "left_by_encoder", "correlation", "seconds", "step_ms"]


@dataclass(frozen=True)
class Run:
    """One way to protect: `momentum:60`, `momentum+start:30`, `momentum+robust:60`, `release:500`, `paper:500`."""

    optimizer: str
    steps: int
    start: bool
    robust: bool

    @classmethod
    def read(cls, text: str) -> Run:
        name, _, steps = text.partition(":")
        optimizer, *more = name.split("+")
        if set(more) - {"start", "robust"} or not steps.isdigit():
            raise ArgumentTypeError(f"{text!r}: give OPTIMIZER[+start][+robust]:STEPS")
        return cls(optimizer, int(steps), "start" in more, "robust" in more)


def arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("photographs", nargs="+", type=Path)
    parser.add_argument("--encoder", action="append", help="again for an ensemble (default: embedded)")
    parser.add_argument("--target", default="cat")
    parser.add_argument("--size", type=int, default=256, help="side of the centre squares that are protected")
    parser.add_argument("--pool", type=int, help="only the first so many images of the target's folder as anchors")
    parser.add_argument("--count", type=int, help="only the first so many photographs")
    parser.add_argument("--linf", type=_bound, action="append", help="again for several budgets (default: 0.05)")
    parser.add_argument("--lpips", type=_bound, action="append", help="the same (default: none)")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fit", type=Path, help="photographs that the warm start is fitted to")
    parser.add_argument("--fit-count", type=int, default=32)
    parser.add_argument("--fit-steps", type=int, default=100)
    parser.add_argument("--survival", action="store_true", help="columns of what is left after real codecs")
    parser.add_argument(
        "--run", action="append", type=Run.read, metavar="OPTIMIZER[+start][+robust]:STEPS", required=True
    )


def run(options: Namespace) -> int:
    """The command: every way over the same squares of the same photographs; one CSV line each."""
    if options.pool:
        options.target = Anchor("pool", [source.path for source in find_images([options.target])[: options.pool]])
    images = squares(options.photographs, options.size, options.count)
    budgets = [Budget(linf, lpips) for linf in options.linf or [0.05] for lpips in options.lpips or [None]]
    starts = {budget: _fitted(options, budget) for budget in budgets if any(run.start for run in options.run)}
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow([*COLUMNS, *(TREATMENTS if options.survival else ())])
    for budget, way in itertools.product(budgets, options.run):
        poisoner = _poisoner(options, budget, way, starts[budget] if way.start else None)
        poisoner.protector.steps = 1
        poisoner.poison_batch(images[:1], options.target)  # traced and packed before anything is timed
        poisoner.protector.steps = way.steps
        result = poisoner.poison_batch(images, options.target)
        clean = fmean(image.distance_before for image in result)
        distance = fmean(image.distance_after for image in result)
        lpips = [image.lpips for image in result if image.lpips is not None]
        rows.writerow(
            [
                *(way.optimizer, int(way.start), int(way.robust), way.steps, len(result), result.encoder),
                *(budget.linf, budget.lpips, f"{clean:.3f}", f"{distance:.3f}", f"{distance / clean:.4f}"),
                max(round(255 * (image.linf or 0)) for image in result),
                *((f"{max(lpips):.4f}", f"{fmean(lpips):.4f}") if lpips else ("", "")),
                " ".join(f"{share:.4f}" for share in left_by_encoder(result)),
                f"{correlation(images, result):.4f}",
                f"{result.seconds:.1f}",
                f"{1e3 * result.seconds / len(result) / way.steps:.2f}",
                *(f"{fmean(image.survival[name] for image in result):.4f}" for name in _measured(result)),
            ]
        )
        sys.stdout.flush()
    return 0


def correlation(images: list[UInt8Array], result: PoisonResult) -> float:
    """Mean correlation of two images' perturbations, over all pairs; high ones help a detector."""
    pairs = zip(result, images, strict=True)
    changes = np.stack([(outcome.image.astype(float) - clean).ravel() for outcome, clean in pairs])
    matrix = np.corrcoef(changes)
    count = len(images)
    return float((matrix.sum() - count) / (count * (count - 1))) if count > 1 else float("nan")


def left_by_encoder(result: PoisonResult) -> list[float]:
    """Each encoder's mean distance after, over its mean distance before."""
    distances = np.array([image.encoder_distances for image in result])  # [images, encoders, 2]
    before, after = distances.mean(axis=0).T
    return list(after / before)


def _bound(text: str) -> float | None:
    try:
        return bound(text)
    except ShadeFastError as error:
        raise ArgumentTypeError(str(error)) from None


def _measured(result: PoisonResult) -> list[str]:
    return list(result[0].survival or ())


def _poisoner(options: Namespace, budget: Budget, run: Run, start: WarmStart | None) -> Poisoner:
    return Poisoner(
        encoder=options.encoder or ["embedded"],
        budget=budget,
        view=View.robust(None) if run.robust else View(None),
        perceptual="auto" if budget.lpips else None,
        optimizer=run.optimizer,
        steps=run.steps,
        backend=options.backend,
        seed=options.seed,
        survival=options.survival,
        start=start,
    )


def _fitted(options: Namespace, budget: Budget) -> WarmStart:
    if options.fit is None:
        raise ValueError("a run +start needs --fit PHOTOGRAPHS, other ones than those protected")
    sample = squares([options.fit], options.size, options.fit_count)
    began = time.perf_counter()
    start = fit_start(
        sample,
        options.target,
        _poisoner(options, budget, Run("momentum", 1, True, False), None),
        steps=options.fit_steps,
    )
    print(f"warm start: {len(sample)} images, {time.perf_counter() - began:.1f} s", file=sys.stderr)
    return start
