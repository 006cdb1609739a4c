"""The benchmark runner: sides alternate, warm-up is not timed, and a wrong result has no time."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import registry, runner
from benchmarks.registry import Case, Side
from benchmarks.rows import write_rows
from shade_fast.terms.errors import ShadeFastError


def case_of(prepare: Callable[[], Callable[[str], Side]], *backends: str) -> Case:
    return Case("test.case", "a test", "1", backends, prepare, images=2, bytes_moved=10**9)


def ticking(step: float) -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += step


def test_sides_alternate_and_are_timed_after_the_warmup() -> None:
    order: list[str] = []
    case = case_of(lambda: lambda backend: Side(f"{backend}!", lambda: order.append(backend), lambda _: None), "a", "b")
    clock = ticking(0.5)
    rows = runner.measure(case, repeats=2, warmup=1, clock=lambda: next(clock))
    assert order == ["a", "b", "b", "a", "a", "b", "a", "b"], "a warm-up, two timed turns, and one for the peak"
    assert [(row.backend, row.ran, row.status, row.p50_ms) for row in rows] == [
        ("a", "a!", "ok", 500.0),
        ("b", "b!", "ok", 500.0),
    ]
    assert rows[0].images_per_second == 4.0
    assert rows[0].gigabytes_per_second == 2.0
    assert rows[0].gigaflops is None


def test_a_result_that_is_wrong_once_has_no_time(tmp_path: Path) -> None:
    results = iter([1, 1, 2, 1, 1, 1])

    def side(backend: str) -> Side:
        value = (lambda: next(results)) if backend == "broken" else (lambda: 1)
        return Side(backend, value, lambda result: None if result == 1 else f"got {result}")

    rows = runner.measure(case_of(lambda: side, "right", "broken"), repeats=4, warmup=1)
    assert rows[0].p50_ms is not None
    assert (rows[1].status, rows[1].detail) == ("wrong", "got 2")
    assert rows[1].p50_ms is None
    assert " ms " not in runner.describe(rows[1])

    with (tmp_path / "rows.csv").open("w", newline="") as file:
        write_rows(file, rows, header=True)
    read = list(csv.DictReader((tmp_path / "rows.csv").open(newline="")))
    assert [row["p50_ms"] != "" for row in read] == [True, False]


def test_turns_follow_from_their_length() -> None:
    def turns(seconds: float) -> tuple[int, int]:
        clock = ticking(seconds)
        case = case_of(lambda: lambda name: Side(name, lambda: None, lambda _: None), "only")
        (row,) = runner.measure(case, clock=lambda: next(clock))
        return row.warmup, row.repeats

    assert turns(60.0) == (1, 3)
    assert turns(5.0) == (2, 5)
    assert turns(1.0) == (2, 10)
    assert turns(0.001) == (2, 50)


def test_a_case_has_its_own_thread_count() -> None:
    before, seen = torch.get_num_threads(), []
    case = Case(
        "a.case",
        "",
        "1",
        ("only",),
        lambda: lambda name: Side(name, lambda: seen.append(torch.get_num_threads()), lambda _: None),
        threads=before + 1,
    )
    (row,) = runner.measure(case, repeats=1, warmup=0)
    assert {*seen, row.threads} == {before + 1} and torch.get_num_threads() == before


def test_a_missing_backend_is_a_row() -> None:
    def side(backend: str) -> Side:
        if backend == "absent":
            raise ShadeFastError("not built")
        return Side(backend, lambda: None, lambda _: None)

    rows = runner.measure(case_of(lambda: side, "here", "absent"), repeats=1, warmup=0)
    assert [(row.status, row.detail) for row in rows] == [("ok", ""), ("missing", "not built")]


def test_select_by_name_by_first_parts_and_by_pattern() -> None:
    assert [case.name for case in registry.select(["ops.quantize.512"])] == ["ops.quantize.512"]
    assert [case.name for case in registry.select(["step.embedded.256"])] == ["step.embedded.256"]
    assert {case.name for case in registry.select(["step.kl.256.b4"])} < {
        case.name for case in registry.select(["step.kl.256*"])
    }
    assert all(case.standard for case in [*registry.select([]), *registry.select(["step"])])
    assert {case.name for case in registry.select(["ops.quantize", "ops.*.512"])} == {
        "ops.quantize.512",
        "ops.quantize.12mp",
        "ops.optimizer_update.512",
    }
    with pytest.raises(ValueError, match="no benchmark case 'nothing'"):
        registry.select(["nothing"])


def test_the_command_runs_a_real_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "rows.csv"
    assert command.main(["run", "ops.quantize.512", "--repeats", "1", "--warmup", "0", "--csv", str(path)]) == 0
    rows = list(csv.DictReader(path.open(newline="")))
    assert [row["backend"] for row in rows] == ["reference", "native"]
    assert "ops.quantize.512" in capsys.readouterr().out


def test_a_planted_error_in_a_kernel_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import ops
    from benchmarks.cases import ops as cases

    honest = ops.quantize
    monkeypatch.setattr(
        ops,
        "quantize",
        lambda *tensors, backend, **named: honest(*tensors, backend="reference", **named) + (backend == "native"),
    )
    monkeypatch.setattr(cases, "ran", lambda backend: backend)
    case = next(case for case in registry.all_cases() if case.name == "ops.quantize.512")
    rows = {row.backend: row for row in runner.measure(case, repeats=1, warmup=0)}
    assert rows["reference"].p50_ms is not None
    assert rows["native"].status == "wrong"
    assert rows["native"].p50_ms is None
    monkeypatch.setattr(registry, "all_cases", lambda: [case])
    assert command.main(["run", "--repeats", "1", "--warmup", "0"]) == 1
