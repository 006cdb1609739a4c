"""Time to quality: what counts as reached, on two tiny photographs."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks import time_to_quality
from benchmarks.photographs import FOLDER
from benchmarks.rows import write_rows
from benchmarks.time_to_quality import Trial, compare
from shade_fast.ops import native


def row(optimizer: str, steps: int, distance: float, seconds: float) -> dict[str, str]:
    return {"optimizer": optimizer, "steps": str(steps), "distance": str(distance), "seconds": str(seconds)}


def test_the_fewest_steps_that_reach_the_goal_count() -> None:
    rows = [
        row("release", 500, 4.0, 100),
        row("release", 100, 5.0, 20),
        row("release", 900, 1.0, 180),
        row("momentum", 40, 3.8, 8),
        row("momentum", 10, 5.5, 2),
        row("momentum", 20, 4.0, 4),
    ]
    found = compare(rows)
    assert [one.momentum and one.momentum["steps"] for one in found] == ["20", "20", None]
    assert [one.faster for one in found] == [25.0, 5.0, None]


@pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")
def test_both_sides_run_on_photographs(tmp_path: Path) -> None:
    trial = Trial("embedded", size=64)
    rows = trial.measure([FOLDER], count=2, release=(4,), momentum=(1, 8))
    assert [(one.optimizer, one.steps, one.backend) for one in rows] == [
        ("release", 4, "reference"),
        ("momentum", 1, "native"),
        ("momentum", 8, "native"),
    ]
    assert all(one.photographs == 2 and one.seconds > 0 for one in rows)
    assert rows[2].distance < rows[1].distance < rows[0].start
    assert "times faster" in time_to_quality.describe(rows)
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        write_rows(file, rows, header=True)
    assert compare(csv.DictReader((tmp_path / "rows.csv").open(newline="")))[0].momentum is not None
