"""What a run's folder says of itself: its manifest, read and checked, the totals over its images, and who is shown."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import numpy.typing
import pyarrow as pa

from shade_fast.archive import Manifest, Row, Storage
from shade_fast.archive.manifest import finite, read_stats
from shade_fast.archive.names import from_text
from shade_fast.archive.record import RUN_NAME
from shade_fast.archive.record import read_run as read_record
from shade_fast.terms.errors import ShadeFastError, reason

STATUSES = ("ok", "below_target", "failed")
#: Rows of the page's table, and images that its plot is of where the table has not all.
LISTED, CURVES = 2000, 300
#: Characters of a text, and steps of a history, beyond which one image would make the page heavy.
LONGEST_TEXT, LONGEST_HISTORY = 4096, 10_000
#: What reading a manifest that is damaged, or that something else wrote, may end in.
_UNREADABLE = (
    *(pa.ArrowException, OSError, ArithmeticError, AttributeError, LookupError),
    *(RecursionError, TypeError, ValueError),
)

Indices = numpy.typing.NDArray[numpy.int64]


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
    history: Sequence[float]

    @property
    def has_curve(self) -> bool:
        return len(self.history) > 1 and self.history[0] > 0

    @property
    def ratio(self) -> float | None:
        """Distance after over distance before: what is left of the way to the anchor; None where not measured."""
        if self.status == "failed" or not self.distance_before or self.distance_after is None:
            return None
        return finite(self.distance_after / self.distance_before)

    @property
    def label(self) -> str:
        """The name to show: the path inside the run's folder, or the file's name; never a machine's full path."""
        source = Path(self.source)
        if source.is_absolute() or ".." in source.parts:
            return self.output or source.name
        return self.source


class Figures:
    """What counting and choosing need of a run's images, in the manifest's order; some bytes for each."""

    def __init__(self, images: Iterable[ImageRecord]) -> None:
        statuses, ratios, curves = array("B"), array("d"), array("B")
        self.largest_linf: float | None = None
        self.largest_lpips: float | None = None
        for image in images:
            statuses.append(STATUSES.index(image.status))
            ratios.append(math.nan if image.ratio is None else image.ratio)
            curves.append(image.has_curve)
            if image.status != "failed":
                self.largest_linf = _larger(self.largest_linf, image.linf)
                self.largest_lpips = _larger(self.largest_lpips, image.lpips)
        self._statuses = numpy.frombuffer(statuses, numpy.uint8)
        self._curves = numpy.frombuffer(curves, numpy.uint8)
        #: NaN where nothing was measured
        self.ratios = numpy.frombuffer(ratios, numpy.float64)

    def __len__(self) -> int:
        return len(self.ratios)

    def of(self, status: str) -> Indices:
        """Indices of the images of one status, ascending."""
        return numpy.flatnonzero(self._statuses == STATUSES.index(status))

    @property
    def curves(self) -> Indices:
        """Indices of the images whose history can be drawn."""
        return numpy.flatnonzero(self._curves)


@dataclass(frozen=True)
class Run:
    """A run's manifest; budgets in [0, 1] units (linf) and LPIPS distance, `None` where the budget leaves one free.

    record: as the folder has it. images: those that the page shows, by their place in the manifest: of them the table
    has those in `listed`, pictures those in `pictured`, and the plot those in `plotted`, all ascending.
    """

    directory: Path
    record: Mapping[str, Any]
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
    figures: Figures
    images: Mapping[int, ImageRecord]
    listed: Sequence[int]
    pictured: Sequence[int]
    plotted: Sequence[int]


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


def read_run(directory: Path | str, limit: int = 60) -> Run:
    """Read the record of an archive's output, twice: for the figures, then for the images that are shown.

    limit: how many images are shown in pictures. Memory is bounded, but for some bytes an image.
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
    linf = budget.number("linf")
    if linf is not None and not 0 <= linf <= 1:
        raise budget.wrong("linf", "a number from 0 to 1")
    manifest = Manifest(out)
    try:
        stats = _Fields(path, "stats.", read_stats(out)).inner("last_run")
        count, seconds = stats.count("images"), stats.number("seconds")
        figures = Figures(_image(row, out) for row in manifest.all_rows())
        pictured = choose(figures, limit)
        listed, plotted = _listed(figures, pictured), _plotted(figures)
        shown = {*pictured, *listed, *plotted}
        images = {place: _image(row, out) for place, row in enumerate(manifest.all_rows()) if place in shown}
    except ShadeFastError:
        raise
    except _UNREADABLE as problem:
        raise ShadeFastError(f"{directory}: its manifest cannot be read ({reason(problem)}); run it again") from problem
    # A run that goes on meanwhile may have changed what is there since the figures were read.
    pictured, listed, plotted = ([place for place in one if place in images] for one in (pictured, listed, plotted))
    return Run(
        directory=Path(directory),
        record=record,
        version=options.text("version") or "unknown",
        versions={str(name): str(version) for name, version in fields.inner("versions").values.items()},
        created=fields.text("created") or "",
        target=options.text("target") or "",
        optimizer=options.text("optimizer") or "unknown",
        steps=options.count("steps"),
        seed=options.count("seed"),
        budget_linf=linf,
        budget_lpips=budget.number("lpips"),
        view_size=view.count("size"),
        encoders=tuple(_encoder(_Fields(path, f"encoder[{i}].", value)) for i, value in enumerate(encoders)),
        perceptual=options.inner("perceptual").text("name"),
        backend=options.text("backend") or "unknown",
        device=options.text("device") or "unknown",
        seconds=seconds,
        images_per_second=count / seconds if count and seconds else None,
        figures=figures,
        images=images,
        listed=listed,
        pictured=pictured,
        plotted=plotted,
    )


def choose(figures: Figures, limit: int) -> list[int]:
    """Indices of at most `limit` images to show in pictures, ascending.

    Those below target come first, then failed ones, up to half of the places (more where the `ok` ones leave some
    free); the `ok` ones are taken evenly from the weakest to the strongest, so that the page shows the whole range.
    """
    if len(figures) <= limit:
        return list(range(len(figures)))
    ok, below = (_weakest_first(figures, status) for status in ("ok", "below_target"))
    poor = numpy.concatenate([below, figures.of("failed")])[: max(limit // 2, limit - len(ok))]
    return sorted([*poor.tolist(), *_spread(ok, limit - len(poor))])


def _listed(figures: Figures, pictured: Sequence[int]) -> list[int]:
    """Those of the table: all where they are few, else those in pictures, then those that fell short, then others."""
    if len(figures) <= LISTED:
        return list(range(len(figures)))
    chosen = set(pictured)
    poor = numpy.union1d(figures.of("below_target"), figures.of("failed"))
    for indices in (poor, figures.of("ok")):
        rest = numpy.setdiff1d(indices, list(chosen))
        chosen.update(_spread(rest, min(len(rest), max(LISTED - len(chosen), 0))))
    return sorted(chosen)


def _plotted(figures: Figures) -> list[int]:
    curves = figures.curves
    return _spread(curves, len(curves) if len(figures) <= LISTED else min(len(curves), CURVES))


def _weakest_first(figures: Figures, status: str) -> Indices:
    indices = figures.of(status)
    return indices[numpy.argsort(-numpy.nan_to_num(figures.ratios[indices]), kind="stable")]


def _spread(items: Indices, places: int) -> list[int]:
    return [int(items[round(place * (len(items) - 1) / max(places - 1, 1))]) for place in range(places)]


def totals(run: Run) -> Totals:
    """Count and summarise a run's images; the pixel bound is the file's own: 255·linf rounded down to whole values."""
    figures = run.figures
    ratios = figures.ratios[~numpy.isnan(figures.ratios)]
    return Totals(
        images=len(figures),
        ok=len(figures.of("ok")),
        below_target=len(figures.of("below_target")),
        failed=len(figures.of("failed")),
        mean_ratio=float(ratios.mean()) if len(ratios) else None,
        median_ratio=float(numpy.median(ratios)) if len(ratios) else None,
        largest_linf=figures.largest_linf,
        largest_lpips=figures.largest_lpips,
        holds_linf=within_linf(figures.largest_linf, run.budget_linf),
        holds_lpips=within_lpips(figures.largest_lpips, run.budget_lpips),
    )


def within_linf(linf: float | None, budget: float | None) -> bool:
    """Whether a measured pixel change ([0, 1] units) is at most floor(255·budget) of the file's values."""
    return linf is None or budget is None or 255 * linf <= math.floor(255 * budget + 1e-6) + 1e-3


def within_lpips(lpips: float | None, budget: float | None) -> bool:
    """Whether a measured LPIPS distance is at most the budget's."""
    return lpips is None or budget is None or lpips <= budget


def _larger(largest: float | None, value: float | None) -> float | None:
    return value if largest is None or (value is not None and value > largest) else largest


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
    if row.status not in STATUSES:
        raise ValueError(f"status {row.status!r:.80}")
    history = row.history if len(row.history) <= LONGEST_HISTORY else ()
    return ImageRecord(
        source=from_text(_text(row.source)),
        output=None if row.output is None else from_text(_text(row.output)),
        target=_text(row.target or ""),
        anchor=os.path.relpath(from_text(_text(row.anchor)), out.root) if row.anchor else None,
        status=row.status,
        error=None if row.error is None else _text(row.error),
        width=int(row.width),
        height=int(row.height),
        linf=finite(row.linf),
        lpips=finite(row.lpips),
        distance_before=finite(row.distance_before),
        distance_after=finite(row.distance_after),
        steps=int(row.steps),
        seconds=finite(row.optimize_ms / 1000),
        history=array("d", (value for value in history if math.isfinite(value))),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no text")
    return value if len(value) <= LONGEST_TEXT else f"{value[:LONGEST_TEXT]}…"


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
        try:
            return finite(float(value))
        except OverflowError:
            raise self.wrong(name, "a number of this size") from None

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
