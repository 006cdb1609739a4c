"""The totals over an archive's rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from shade_fast.archive.row import STATUSES, Row

#: Columns that are summed up: times of work, without that of duplicates, and sizes.
MILLISECONDS, BYTES = ("decode_ms", "optimize_ms", "encode_ms"), ("source_bytes", "output_bytes")


@dataclass
class _Mean:
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


@dataclass
class Totals:
    """Counts by status, and the figures over the rows that have them."""

    statuses: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    largest_linf: float | None = None
    largest_lpips: float | None = None
    _ratios: _Mean = field(default_factory=_Mean)
    _survival: dict[str, _Mean] = field(default_factory=dict)
    _sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(MILLISECONDS + BYTES, 0.0))

    def add(self, row: Row) -> None:
        self.statuses[row.status] += 1
        self.duplicates += row.duplicate_of is not None
        for name in BYTES if row.duplicate_of is not None else MILLISECONDS + BYTES:
            self._sums[name] += getattr(row, name)
        if row.status == "failed":
            return
        self.largest_linf = _larger(self.largest_linf, row.linf)
        self.largest_lpips = _larger(self.largest_lpips, row.lpips)
        for name, share in row.survival or ():
            if share is not None:
                self._survival.setdefault(name, _Mean()).add(share)
        if row.ratio is not None:
            self._ratios.add(row.ratio)

    @property
    def images(self) -> int:
        return self.statuses.total()

    @property
    def mean_ratio(self) -> float | None:
        """The mean share of the latent distance that is left; None where none was measured."""
        return self._ratios.value

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            **{status: self.statuses[status] for status in STATUSES},
            "duplicates": self.duplicates,
            "mean_ratio": self.mean_ratio,
            "largest_linf": self.largest_linf,
            "largest_lpips": self.largest_lpips,
            "survival": {name: mean.value for name, mean in self._survival.items()},
            **{name: round(self._sums[name], 1) for name in MILLISECONDS},
            **{name: int(self._sums[name]) for name in BYTES},
        }


def totals(rows: Iterable[Row]) -> dict[str, Any]:
    """The totals over rows, as JSON has them."""
    sums = Totals()
    for row in rows:
        sums.add(row)
    return sums.to_json()


def _larger(largest: float | None, value: float | None) -> float | None:
    return largest if value is None else max(largest or 0.0, value)
