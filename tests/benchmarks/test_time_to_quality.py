"""Time to quality: what counts as reached, and every loop on two tiny photographs."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks import time_to_quality
from benchmarks.photographs import FOLDER
from benchmarks.rows import write_rows
from benchmarks.time_to_quality import PUBLISHED, Trial, compare
from shade_fast.ops import native


def row(optimizer: str, beside: str, steps: int, distance: float, seconds: float) -> dict[str, str]:
    numbers = {"steps": str(steps), "distance": str(distance), "seconds": str(seconds)}
    return {"optimizer": optimizer, "beside": beside, **numbers}


def test_the_fewest_steps_beside_a_loop_that_reach_its_goal_count() -> None:
    rows = [
        row("release", "release", 500, 4.0, 100),
        row("release", "release", 100, 5.0, 20),
        row("release", "release", 900, 1.0, 180),
        row("mist", "mist", 100, 4.0, 30),
        row("momentum", "release", 40, 3.8, 8),
        row("momentum", "release", 10, 5.5, 2),
        row("momentum", "release", 20, 4.0, 4),
        row("momentum", "mist", 30, 3.9, 6),
    ]
    comparisons = compare(rows)
    assert [each.momentum and each.momentum["steps"] for each in comparisons] == ["20", "20", None, "30"]
    assert [each.faster for each in comparisons] == [25.0, 5.0, None, 5.0]


def test_an_unknown_loop_is_named() -> None:
    with pytest.raises(ValueError, match="no published loop 'nothing'; there are release, paper"):
        time_to_quality.plan({"nothing": (5,)}, (1,))


@pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")
def test_every_published_loop_runs_with_momentum_beside_it(tmp_path: Path) -> None:
    rows = Trial("embedded", size=64).measure([FOLDER], 2, dict.fromkeys(PUBLISHED, (6,)), (1, 12))
    assert [(row.optimizer, row.beside, row.steps, row.backend) for row in rows] == [
        run
        for name in PUBLISHED
        for run in ((name, name, 6, "reference"), ("momentum", name, 1, "native"), ("momentum", name, 12, "native"))
    ]
    for measured in rows:
        published = PUBLISHED[measured.beside]
        bounds = published.budget if measured.optimizer == measured.beside else published.beside
        assert (measured.linf, measured.lpips_bound) == (bounds.linf, bounds.lpips)
        assert 0 < measured.levels <= bounds.levels
        assert 0 < measured.lpips <= (bounds.lpips or 1)
        assert measured.photographs == 2 and measured.seconds > 0
        assert measured.distance < measured.start
    assert "times faster" in time_to_quality.describe(rows)
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        write_rows(file, rows, header=True)
    assert any(each.momentum for each in compare(csv.DictReader((tmp_path / "rows.csv").open(newline=""))))
