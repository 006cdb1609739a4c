"""Peaks and counts of memory, and where rows go."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import memory
from benchmarks.environment import TUNED_ALLOCATOR, allocator, with_allocator
from benchmarks.registry import Case, Side
from benchmarks.rows import read_rows, write_rows

MEGABYTE = 1 << 20

linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the system does not tell a process' peak"
)


def side_of(run: object, **options: object) -> Side:
    return Side("torch", run, lambda _: None, **options)  # type: ignore[arg-type]


@linux
def test_the_peak_of_a_run_that_frees_what_it_took() -> None:
    def run() -> float:
        values = torch.ones(64 * MEGABYTE // 4)
        return float(values[-1])

    result, peak = memory.peak_bytes(side_of(run))
    assert result == 1.0
    assert peak == pytest.approx(64 * MEGABYTE, rel=0.1)


@linux
def test_the_peak_counts_buffers_that_a_side_keeps_between_runs() -> None:
    kept: list[torch.Tensor] = []

    def run() -> None:
        if not kept:
            kept.append(torch.ones(32 * MEGABYTE // 4))
        kept[0].fill_(2)

    side = side_of(run, release=kept.clear)
    side.run()
    assert memory.peak_bytes(side)[1] == pytest.approx(32 * MEGABYTE, rel=0.1)


def test_allocations_are_counted() -> None:
    memory.allocations(side_of(lambda: None))
    count, size = memory.allocations(side_of(lambda: [torch.empty(1000), torch.empty(500)]))
    assert (count, size) == (2, 6000)
    kept = torch.empty(1000)
    assert memory.allocations(side_of(lambda: kept.fill_(1))) == (0, 0)


def test_a_wrong_result_has_no_figures() -> None:
    case = Case("a.case", "", "1", ("right", "broken"), lambda: lambda name: Side(name, lambda: name, _broken))
    assert memory.measure_here(case, "right").status == "ok"
    row = memory.measure_here(case, "broken")
    assert (row.status, row.peak_megabytes, row.allocations, row.detail) == ("wrong", None, None, "it is broken")


def _broken(result: str) -> str | None:
    return "it is broken" if result == "broken" else None


def test_the_allocator_in_words() -> None:
    assert allocator({}) == "default"
    assert allocator(with_allocator({}, tuned=True)) == "tuned"
    assert allocator(with_allocator(TUNED_ALLOCATOR | {"HOME": "/"}, tuned=False)) == "default"
    assert allocator({"MALLOC_TOP_PAD_": "1"}) == "MALLOC_TOP_PAD_=1"


@linux
def test_a_side_in_a_process_of_its_own(tmp_path: Path) -> None:
    from benchmarks.registry import select

    row = memory.measure_apart(select(["ops.quantize.512"])[0], "reference", tuned=True)
    assert (row.status, row.allocator, row.threads) == ("ok", "tuned", torch.get_num_threads()), sys.path
    assert row.peak_megabytes is not None and row.peak_megabytes > 1
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        write_rows(file, [row], header=True)
    (read,) = read_rows(tmp_path / "rows.csv")
    assert next(iter(read)) == "case" and read["allocations"] == str(row.allocations)
