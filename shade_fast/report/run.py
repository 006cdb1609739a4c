"""What a run's folder says of itself: its record and its rows, read and checked, and which images are shown."""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import numpy.typing

from shade_fast.archive import (
    RUN_NAME,
    STATS_NAME,
    STATUSES,
    LastRun,
    Manifest,
    RecordedOptions,
    RecordedRun,
    RecordedStats,
    Row,
    Storage,
    Totals,
    finite,
    from_text,
    read_stats,
    typed,
)
from shade_fast.archive import read_run as read_record
from shade_fast.terms.errors import ShadeFastError

#: Rows of the page's table, and images that its plot is of where the table has not all.
LISTED, CURVES = 2000, 300
#: Characters of a text, and steps of a history, beyond which one image would make the page heavy.
LONGEST_TEXT, LONGEST_HISTORY = 4096, 10_000

Indices = numpy.typing.NDArray[numpy.int64]


class Figures:
    """What counting and choosing need of a run's images, in the manifest's order; some bytes for each."""

    def __init__(self, rows: Iterable[Row]) -> None:
        statuses, ratios, curves = array("B"), array("d"), array("B")
        self.totals = Totals()
        for row in rows:
            self.totals.add(row)
            statuses.append(STATUSES.index(row.status))
            ratios.append(math.nan if row.ratio is None else row.ratio)
            curves.append(bool(curve_of(row)))
        self._statuses = numpy.frombuffer(statuses, numpy.uint8)
        self._curves = numpy.frombuffer(curves, numpy.uint8)
        #: NaN where nothing was measured
        self.ratios = numpy.frombuffer(ratios, numpy.float64)

    def __len__(self) -> int:
        return len(self.ratios)

    @property
    def median_ratio(self) -> float | None:
        """The median share of the latent distance that is left; None where none was measured."""
        ratios = self.ratios[~numpy.isnan(self.ratios)]
        return float(numpy.median(ratios)) if len(ratios) else None

    def of(self, status: str) -> Indices:
        """Indices of the images of one status, ascending."""
        return numpy.flatnonzero(self._statuses == STATUSES.index(status))

    @property
    def curves(self) -> Indices:
        """Indices of the images whose history can be drawn."""
        return numpy.flatnonzero(self._curves)


@dataclass(frozen=True)
class Run:
    """A run's record and the rows that the page shows.

    record: as the folder has it; recorded: the same, checked. images: rows without their histories, by their place in
    the manifest: of them the table has those in `listed`, and pictures those in `pictured`, both ascending. curves:
    histories that the plot is of, by their image's place.
    """

    directory: Path
    record: Mapping[str, Any]
    recorded: RecordedRun
    last: LastRun
    figures: Figures
    images: Mapping[int, Row]
    listed: Sequence[int]
    pictured: Sequence[int]
    curves: Mapping[int, Sequence[float]]

    @property
    def options(self) -> RecordedOptions:
        return self.recorded.options

    @property
    def totals(self) -> Totals:
        return self.figures.totals

    @property
    def holds_linf(self) -> bool:
        return within_linf(self.totals.largest_linf, self.options.budget.linf)

    @property
    def holds_lpips(self) -> bool:
        return within_lpips(self.totals.largest_lpips, self.options.budget.lpips)


def read_run(directory: Path | str, limit: int = 60) -> Run:
    """Read the record of an archive's output; its rows twice: for the figures, then for the images that are shown.

    limit: how many images are shown in pictures. Memory is bounded, but for some bytes an image.
    Raises ShadeFastError, naming the file and the field, where it is missing or has wrong values.
    """
    out = Storage(directory)
    record = read_record(out)
    if record is None:
        raise ShadeFastError(f"{directory}: no run has been here; give the output of `shade-fast archive`")
    recorded = typed(RecordedRun, record, out.location(RUN_NAME))
    stats = typed(RecordedStats, read_stats(out), out.location(STATS_NAME))
    manifest = Manifest(out)
    figures = Figures(manifest.checked_rows())
    pictured = choose(figures, limit)
    listed, plotted = _listed(figures, pictured), _plotted(figures)
    places, drawn = {*pictured, *listed, *plotted}, set(plotted)
    images: dict[int, Row] = {}
    curves: dict[int, Sequence[float]] = {}
    for place, row in enumerate(manifest.checked_rows()):
        if place in places:
            images[place] = _shortened(row)
        if place in drawn and (curve := curve_of(row)):
            curves[place] = curve
    # A run that goes on meanwhile may have changed what is there since the figures were read.
    listed, pictured = ([place for place in part if place in images] for part in (listed, pictured))
    return Run(Path(directory), record, recorded, stats.last_run, figures, images, listed, pictured, curves)


def curve_of(row: Row) -> Sequence[float]:
    """A row's history as it can be drawn; empty where it cannot."""
    history = row.history if len(row.history) <= LONGEST_HISTORY else ()
    curve = array("d", (value for value in history if math.isfinite(value)))
    return curve if len(curve) > 1 and curve[0] > 0 else ()


def label_of(row: Row) -> str:
    """The name to show: the path inside the run's folder, or the file's name; never a machine's full path."""
    source = Path(from_text(row.source))
    if source.is_absolute() or ".." in source.parts:
        return from_text(row.output or "") or source.name
    return from_text(row.source)


def seconds_of(row: Row) -> float | None:
    """The time that an image was optimised for."""
    return finite(row.optimize_ms / 1000)


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


def within_linf(linf: float | None, budget: float | None) -> bool:
    """Whether a measured pixel change ([0, 1] units) is at most floor(255·budget) of the file's values."""
    return linf is None or budget is None or 255 * linf <= math.floor(255 * budget + 1e-6) + 1e-3


def within_lpips(lpips: float | None, budget: float | None) -> bool:
    """Whether a measured LPIPS distance is at most the budget's."""
    return lpips is None or budget is None or lpips <= budget


def _shortened(row: Row) -> Row:
    """A row as the page shows it, which is light whatever a manifest holds."""
    texts: dict[str, Any] = {
        column.name: f"{value[:LONGEST_TEXT]}…"
        for column in dataclasses.fields(row)
        if isinstance(value := getattr(row, column.name), str) and len(value) > LONGEST_TEXT
    }
    return dataclasses.replace(row, history=(), encoder_distances=(), survival=None, **texts)
