"""What a run over an archive did: `ArchiveReport`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shade_fast.archive.manifest import Manifest
from shade_fast.archive.row import Row
from shade_fast.archive.storage import Storage


@dataclass(frozen=True)
class ArchiveReport:
    """What a run did, and what its output holds now.

    images, ok, below_target, failed, duplicates: rows of the output, earlier runs' included. new: those of this run.
    interrupted: whether it was stopped, or reached its limit, before the end. seconds: of this run, networks'
    loading excluded; engine_seconds: optimising; waiting_seconds: with nothing to optimise.
    """

    out: str
    images: int
    ok: int
    below_target: int
    failed: int
    duplicates: int
    new: int
    interrupted: bool
    seconds: float
    engine_seconds: float
    waiting_seconds: float
    stats: dict[str, Any]

    @property
    def images_per_second(self) -> float:
        return self.new / self.seconds if self.seconds > 0 else 0.0

    def rows(self) -> Iterator[Row]:
        """The rows of all images of the output."""
        return Manifest(Storage(self.out)).all_rows()

    def summary(self) -> str:
        """A few lines of text."""
        lines = [
            f"{self.images} images: {self.ok} ok, {self.below_target} below target, {self.failed} failed"
            + (f" ({self.duplicates} duplicates)" if self.duplicates else "")
        ]
        if self.stats["mean_ratio"] is not None:
            line = f"latent distance left: mean {self.stats['mean_ratio']:.1%}; "
            line += f"largest linf {round(255 * (self.stats['largest_linf'] or 0))}/255"
            lpips = self.stats["largest_lpips"]
            lines.append(line + ("" if lpips is None else f", largest lpips {lpips:.4f}"))
        if self.stats["survival"]:
            means = ", ".join(f"{name} {share:.0%}" for name, share in self.stats["survival"].items())
            lines.append(f"shift left after {means}")
        lines.append(f"{self.new} of them now, in {self.seconds:.1f} s, {self.images_per_second:.3f} images/s")
        if self.interrupted:
            lines.append("not finished: run the same again, in mode resume, to go on")
        return "\n".join(lines)
