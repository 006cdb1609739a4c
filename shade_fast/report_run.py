"""What a run's folder says of itself: its manifest, read and checked, and the totals over its images."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shade_fast.archive import MANIFEST_NAME
from shade_fast.errors import ShadeFastError

STATUSES = ("ok", "below_target", "failed")


@dataclass(frozen=True)
class EncoderRecord:
    """The encoder that a run used, as its manifest names it."""

    spec: str
    name: str
    factor: int | None
    channels: int | None
    sha256: str | None


@dataclass(frozen=True)
class ImageRecord:
    """One image of a run; `linf` in [0, 1] units, distances in latent units, paths as the manifest has them."""

    source: str
    output: str | None
    target: str
    anchor: str | None
    status: str
    error: str | None
    width: int
    height: int
    linf: float | None
    lpips: float | None
    distance_before: float | None
    distance_after: float | None
    steps: int
    seconds: float | None
    history: tuple[float, ...]

    @property
    def ratio(self) -> float | None:
        """Distance after over distance before: what is left of the way to the anchor; None where not measured."""
        if self.status == "failed" or not self.distance_before or self.distance_after is None:
            return None
        return self.distance_after / self.distance_before

    @property
    def label(self) -> str:
        """The name to show: the path inside the run's folder, or the file's name; never a machine's full path."""
        source = Path(self.source)
        if source.is_absolute() or ".." in source.parts:
            return self.output or source.name
        return self.source


@dataclass(frozen=True)
class Run:
    """A run's manifest; budgets in [0, 1] units (linf) and LPIPS distance, `None` where the budget leaves one free."""

    directory: Path
    version: str
    versions: Mapping[str, str]
    created: str
    target: str
    optimizer: str
    steps: int | None
    seed: int | None
    budget_linf: float | None
    budget_lpips: float | None
    view_size: int | None
    encoders: tuple[EncoderRecord, ...]
    perceptual: str | None
    backend: str
    device: str
    seconds: float | None
    images_per_second: float | None
    images: tuple[ImageRecord, ...]


@dataclass(frozen=True)
class Totals:
    """Counts by status, and what the images that were not `failed` reached; `None` where nothing was measured."""

    images: int
    ok: int
    below_target: int
    failed: int
    mean_ratio: float | None
    median_ratio: float | None
    largest_linf: float | None
    largest_lpips: float | None
    holds_linf: bool
    holds_lpips: bool


def read_run(directory: Path | str) -> Run:
    """Read `directory/shade_fast.json`.

    Raises ShadeFastError, naming the file and the field, where the manifest is missing, is no JSON or has wrong values.
    """
    path = Path(directory) / MANIFEST_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ShadeFastError(
            f"{path}: no such file; give the folder that `shade-fast poison --out` wrote, which holds {MANIFEST_NAME}"
        ) from None
    except OSError as problem:
        raise ShadeFastError(f"{path}: cannot be read ({problem.strerror}); check the path and its rights") from problem
    except ValueError as problem:
        raise ShadeFastError(
            f"{path}: is not valid JSON ({problem}); restore the file or run `shade-fast poison` again"
        ) from problem
    fields = _Fields(path, "", content)
    options = fields.inner("options")
    budget, view = options.inner("budget"), options.inner("view")
    images = fields.values.get("images")
    if not isinstance(images, list):
        raise fields.wrong("images", "a list")
    encoders = fields.values.get("encoder")
    encoders = encoders if isinstance(encoders, list) else [] if encoders is None else [encoders]
    versions = fields.inner("versions").values
    return Run(
        directory=Path(directory),
        version=fields.text("version") or "unknown",
        versions={str(name): str(version) for name, version in versions.items()},
        created=fields.text("created") or "",
        target=options.text("target") or "",
        optimizer=options.text("optimizer") or "unknown",
        steps=options.count("steps"),
        seed=options.count("seed"),
        budget_linf=budget.number("linf"),
        budget_lpips=budget.number("lpips"),
        view_size=view.count("size"),
        encoders=tuple(_encoder(_Fields(path, f"encoder[{i}].", value)) for i, value in enumerate(encoders)),
        perceptual=fields.text("perceptual"),
        backend=fields.text("backend") or "unknown",
        device=fields.text("device") or "unknown",
        seconds=fields.number("seconds"),
        images_per_second=fields.number("images_per_second"),
        images=tuple(_image(_Fields(path, f"images[{i}].", value)) for i, value in enumerate(images)),
    )


def totals(run: Run) -> Totals:
    """Count and summarise a run's images; the pixel bound is the file's own: 255·linf rounded down to whole values."""
    done = [image for image in run.images if image.status != "failed"]
    ratios = [image.ratio for image in done if image.ratio is not None]
    linf = _largest([image.linf for image in done])
    lpips = _largest([image.lpips for image in done])
    return Totals(
        images=len(run.images),
        ok=sum(image.status == "ok" for image in run.images),
        below_target=sum(image.status == "below_target" for image in run.images),
        failed=len(run.images) - len(done),
        mean_ratio=statistics.fmean(ratios) if ratios else None,
        median_ratio=statistics.median(ratios) if ratios else None,
        largest_linf=linf,
        largest_lpips=lpips,
        holds_linf=within_linf(linf, run.budget_linf),
        holds_lpips=within_lpips(lpips, run.budget_lpips),
    )


def within_linf(linf: float | None, budget: float | None) -> bool:
    """Whether a measured pixel change ([0, 1] units) is at most floor(255·budget) of the file's values."""
    return linf is None or budget is None or 255 * linf <= math.floor(255 * budget + 1e-6) + 1e-3


def within_lpips(lpips: float | None, budget: float | None) -> bool:
    """Whether a measured LPIPS distance is at most the budget's."""
    return lpips is None or budget is None or lpips <= budget


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _encoder(fields: _Fields) -> EncoderRecord:
    spec = fields.text("spec") or ""
    return EncoderRecord(
        spec=spec,
        name=fields.text("name") or spec or "unknown",
        factor=fields.count("factor"),
        channels=fields.count("channels"),
        sha256=fields.text("sha256"),
    )


def _image(fields: _Fields) -> ImageRecord:
    source, status = fields.text("source"), fields.text("status")
    if source is None:
        raise fields.wrong("source", "a path")
    if status not in STATUSES:
        raise fields.wrong("status", "one of " + ", ".join(STATUSES))
    history = fields.values.get("history") or []
    if not isinstance(history, list) or not all(isinstance(value, (int, float)) for value in history):
        raise fields.wrong("history", "a list of numbers")
    return ImageRecord(
        source=source,
        output=fields.text("output"),
        target=fields.text("target") or "",
        anchor=fields.text("anchor"),
        status=status,
        error=fields.text("error"),
        width=fields.count("width") or 0,
        height=fields.count("height") or 0,
        linf=fields.number("linf"),
        lpips=fields.number("lpips"),
        distance_before=fields.number("distance_before"),
        distance_after=fields.number("distance_after"),
        steps=fields.count("steps") or 0,
        seconds=fields.number("seconds"),
        history=tuple(float(value) for value in history if math.isfinite(value)),
    )


class _Fields:
    """A JSON object's fields, read with their type checked; errors name the file and the field."""

    def __init__(self, path: Path, prefix: str, values: Any) -> None:
        self.path, self.prefix = path, prefix
        if not isinstance(values, dict):
            self.values: dict[str, Any] = {"": values}
            raise self.wrong("", "an object")
        self.values = values

    def inner(self, name: str) -> _Fields:
        values = self.values.get(name)
        return _Fields(self.path, f"{self.prefix}{name}.", {} if values is None else values)

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is None or isinstance(value, str):
            return value
        raise self.wrong(name, "a text")

    def number(self, name: str) -> float | None:
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, "a number")
        return float(value) if math.isfinite(value) else None

    def count(self, name: str) -> int | None:
        value = self.number(name)
        if value is not None and (value < 0 or value != int(value)):
            raise self.wrong(name, "a whole number from 0")
        return None if value is None else int(value)

    def wrong(self, name: str, wanted: str) -> ShadeFastError:
        field = (self.prefix + name).strip(".") or "the file"
        found = repr(self.values.get(name))
        return ShadeFastError(
            f"{self.path}: {field} is {found[:80]}, not {wanted}; mend it there or run `shade-fast poison` again"
        )
