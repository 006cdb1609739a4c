"""What a run's folder says of itself: its manifest, read and checked, and the totals over its images."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from shade_fast.archive import Manifest, Row, Storage
from shade_fast.archive.manifest import finite, read_stats
from shade_fast.archive.names import from_text
from shade_fast.archive.record import RUN_NAME
from shade_fast.archive.record import read_run as read_record
from shade_fast.errors import ShadeFastError


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
    """Read the record of an archive's output.

    Raises ShadeFastError, naming the file and the field, where it is missing or has wrong values.
    """
    out = Storage(directory)
    record = read_record(out)
    if record is None:
        raise ShadeFastError(f"{directory}: no run has been here; give the output of `shade-fast archive`")
    path = Path(directory) / RUN_NAME
    fields = _Fields(path, "", record)
    options = fields.inner("options")
    budget, view = options.inner("budget"), options.inner("view")
    encoders = options.values.get("encoder")
    if not isinstance(encoders, list):
        raise options.wrong("encoder", "a list")
    manifest = Manifest(out)
    stats = _Fields(path, "stats.", read_stats(out)).inner("last_run")
    images, seconds = stats.count("images"), stats.number("seconds")
    try:
        rows = tuple(_image(row, out) for row in manifest.all_rows())
    except (pa.ArrowException, TypeError, ValueError) as problem:
        raise ShadeFastError(f"{directory}: its manifest cannot be read ({problem}); run it again") from problem
    return Run(
        directory=Path(directory),
        version=options.text("version") or "unknown",
        versions={str(name): str(version) for name, version in fields.inner("versions").values.items()},
        created=fields.text("created") or "",
        target=options.text("target") or "",
        optimizer=options.text("optimizer") or "unknown",
        steps=options.count("steps"),
        seed=options.count("seed"),
        budget_linf=budget.number("linf"),
        budget_lpips=budget.number("lpips"),
        view_size=view.count("size"),
        encoders=tuple(_encoder(_Fields(path, f"encoder[{i}].", value)) for i, value in enumerate(encoders)),
        perceptual=options.inner("perceptual").text("name"),
        backend=options.text("backend") or "unknown",
        device=options.text("device") or "unknown",
        seconds=seconds,
        images_per_second=images / seconds if images and seconds else None,
        images=rows,
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


def _image(row: Row, out: Storage) -> ImageRecord:
    return ImageRecord(
        source=from_text(row.source),
        output=None if row.output is None else from_text(row.output),
        target=row.target or "",
        anchor=row.anchor and os.path.relpath(from_text(row.anchor), out.root),
        status=row.status,
        error=row.error,
        width=row.width,
        height=row.height,
        linf=finite(row.linf),
        lpips=finite(row.lpips),
        distance_before=finite(row.distance_before),
        distance_after=finite(row.distance_after),
        steps=row.steps,
        seconds=row.optimize_ms / 1000,
        history=tuple(value for value in row.history if math.isfinite(value)),
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
            f"{self.path}: {field} is {found[:80]}, not {wanted}; mend it there or run `shade-fast archive` again"
        )
