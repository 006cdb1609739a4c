"""The record of a run: one JSON file beside what it wrote."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shade_fast.archive.files import write_whole
from shade_fast.poison import Poisoner
from shade_fast.results import PoisonedImage
from shade_fast.version import __version__

MANIFEST_NAME = "shade_fast.json"


@dataclass(frozen=True, eq=False)
class Row:
    """One image of a run. output: path below the run's folder, None where nothing was written. width, height: pixels,
    upright, 0 where the image could not be read. outcome: without its pixels."""

    source: Path
    output: str | None
    target: str
    width: int
    height: int
    outcome: PoisonedImage

    def to_dict(self, folder: Path) -> dict[str, Any]:
        outcome = self.outcome
        return {
            "source": _portable(self.source, folder),
            "output": self.output,
            "target": self.target,
            "anchor": None if outcome.anchor is None else _portable(Path(outcome.anchor), folder),
            "status": outcome.status,
            "error": outcome.error,
            "width": self.width,
            "height": self.height,
            "linf": _finite(outcome.linf),
            "lpips": _finite(outcome.lpips),
            "distance_before": _finite(outcome.distance_before),
            "distance_after": _finite(outcome.distance_after),
            "encoder_distances": [[_finite(distance) for distance in pair] for pair in outcome.encoder_distances],
            "steps": outcome.steps,
            "seconds": round(outcome.seconds, 3),
            "survival": outcome.survival and {name: _finite(share) for name, share in outcome.survival.items()},
            "history": [round(distance, 4) for distance in outcome.history if math.isfinite(distance)],
        }


def manifest(
    folder: Path, poisoner: Poisoner, options: dict[str, Any], rows: Sequence[Row], seconds: float
) -> dict[str, Any]:
    """A run's record as JSON types: what was asked for, what ran, and a row for every image."""
    encoders = [
        {
            "spec": spec,
            "name": encoder.name,
            "factor": encoder.factor,
            "channels": encoder.channels,
            "sha256": encoder.sha256,
        }
        for spec, encoder in zip(options["encoder"], poisoner.encoders, strict=True)
    ]
    return {
        "version": __version__,
        "versions": {name: version(name) for name in ("torch", "numpy", "pillow")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": options,
        "encoder": encoders[0] if len(encoders) == 1 else encoders,
        "perceptual": None if poisoner.perceptual is None else poisoner.perceptual.name,
        "backend": poisoner.backend,
        "device": str(poisoner.device),
        "seconds": round(seconds, 3),
        "images_per_second": round(len(rows) / seconds, 4) if seconds > 0 else 0.0,
        "images": [row.to_dict(folder) for row in rows],
    }


def write_manifest(folder: Path, record: dict[str, Any]) -> None:
    write_whole(folder / MANIFEST_NAME, (json.dumps(record, indent=1) + "\n").encode())


def _finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity; the row's error says what happened."""
    return value if value is not None and math.isfinite(value) else None


def _portable(path: Path, folder: Path) -> str:
    """A path as seen from the run's folder, so that both can move together."""
    return os.path.relpath(path.resolve(), folder.resolve())
