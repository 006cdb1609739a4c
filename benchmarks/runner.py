"""Times the sides of each case in turn, checks every result, and writes one row a side."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks import options as shared
from benchmarks.environment import Environment, environment
from benchmarks.memory import peak_bytes
from benchmarks.registry import Case, Side, select, threads_of
from benchmarks.rows import csv_file
from shade_fast.terms.errors import ShadeFastError

#: Timed turns of a case where their number is not asked for: what fits these seconds, within these bounds.
TURNS_SECONDS, LEAST_REPEATS, MOST_REPEATS = 10.0, 5, 50
#: Untimed turns before them. Where a turn takes longer than LONG_TURN: one, and then LONG_REPEATS timed ones.
WARMUP, LONG_TURN, LONG_REPEATS = 2, 10.0, 3


@dataclass(frozen=True)
class Row(Environment):
    """One side of one case. Times are milliseconds; they are None unless `status` is "ok".

    status: "ok"; "wrong" (a result was not right, `detail` says how); "missing" (the backend is not there).
    peak_megabytes: of 10^6 bytes, above what was resident before one more, untimed run; error: the relative error of
    that run's result, where the case knows one.
    """

    case: str
    shape: str
    backend: str
    ran: str
    status: str
    p20_ms: float | None
    p50_ms: float | None
    p80_ms: float | None
    images_per_second: float | None
    gigabytes_per_second: float | None
    gigaflops: float | None
    peak_megabytes: float | None
    error: float | None
    images: int
    repeats: int
    warmup: int
    detail: str


def arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    shared.names(parser, "the standard ones")
    shared.backends(parser)
    add = parser.add_argument
    add("--repeats", type=int, help="timed runs of each side (default: what fits 10 s, 5 to 50)")
    add("--warmup", type=int, help="untimed runs of each side before them (default: 2; 1 of the long ones)")
    shared.machine(parser)


def run(options: Namespace) -> int:
    """The command; 1 where a result is wrong."""
    wrong = False
    with csv_file(options.csv) as write:
        for case in select(options.case):
            rows = measure(case, options.backends, options.repeats, options.warmup)
            for row in rows:
                print(describe(row), flush=True)
            write(rows)
            wrong = wrong or any(row.status == "wrong" for row in rows)
    return int(wrong)


def measure(
    case: Case,
    backends: Sequence[str] | None = None,
    repeats: int | None = None,
    warmup: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Time the sides of a case, alternating run by run, and check the result of every run, the timed ones included.

    `backends` are those of the case by default; the numbers of turns follow from the length of one. A side whose result
    is wrong once gets no time.
    """
    with threads_of(case):
        return _measure(case, backends, repeats, warmup, clock)


def describe(row: Row) -> str:
    """One line for the terminal."""
    name = f"{row.case:32} {row.backend:14}"
    if row.p50_ms is None:
        return f"{name} {row.status}: {row.detail}"
    rates = [
        f"{value:.4g} {unit}"
        for value, unit in (
            (row.images_per_second, "images/s"),
            (row.gigabytes_per_second, "GB/s"),
            (row.gigaflops, "GFLOP/s"),
            (row.peak_megabytes, "MB"),
        )
        if value is not None
    ]
    return f"{name} {row.p50_ms:10.3f} ms  [{row.p20_ms:.3f} to {row.p80_ms:.3f}]  {', '.join(rates)}  ran {row.ran}"


def _measure(
    case: Case,
    backends: Sequence[str] | None,
    repeats: int | None,
    warmup: int | None,
    clock: Callable[[], float],
) -> list[Row]:
    asked = [backend for backend in backends or case.backends if backend in case.backends]
    sides: dict[str, Side] = {}
    problems: dict[str, tuple[str, str]] = {}
    try:
        side_of = case.prepare()
    except ShadeFastError as problem:
        problems = {backend: ("missing", str(problem)) for backend in asked}
    for backend in asked:
        if backend in problems:
            continue
        try:
            sides[backend] = side_of(backend)
        except ShadeFastError as problem:
            problems[backend] = ("missing", str(problem))

    seconds: dict[str, list[float]] = {backend: [] for backend in sides}

    def take_turn(number: int) -> float:
        spent = 0.0
        for backend in _rotated(list(sides), number):
            if backend in problems:
                continue
            side = sides[backend]
            side.reset()
            start = clock()
            result = side.run()
            elapsed = clock() - start
            spent += elapsed
            wrong = side.check(result)
            if wrong is not None:
                problems[backend] = ("wrong", wrong)
            seconds[backend].append(elapsed)
        return spent

    turn, spent = 0, 0.0
    while turn < (WARMUP if warmup is None else warmup):
        spent = take_turn(turn)
        turn += 1
        if warmup is None and spent > LONG_TURN:
            break
    warmup = turn
    if repeats is None:
        least = LONG_REPEATS if spent > LONG_TURN else LEAST_REPEATS
        repeats = int(np.clip(TURNS_SECONDS / max(spent, 1e-9), least, MOST_REPEATS))
    for turn in range(warmup, warmup + repeats):
        take_turn(turn)

    last: dict[str, tuple[int | None, float | None]] = {}
    for backend, side in sides.items():
        if backend not in problems:
            result, peak = peak_bytes(side)
            last[backend] = peak, side.error(result) if side.error else None
            wrong = side.check(result)
            if wrong is not None:
                problems[backend] = ("wrong", wrong)

    rows = []
    for backend in asked:
        status, detail = problems.get(backend, ("ok", ""))
        times = seconds[backend][warmup:] if status == "ok" else []
        ran = sides[backend].ran if backend in sides else ""
        peak, error = last.get(backend, (None, None))
        rows.append(_row(case, backend, ran, status, detail, times, peak, error, repeats, warmup))
    return rows


def _rotated(names: list[str], turn: int) -> list[str]:
    first = turn % len(names) if names else 0
    return names[first:] + names[:first]


def _row(
    case: Case,
    backend: str,
    ran: str,
    status: str,
    detail: str,
    times: list[float],
    peak: int | None,
    error: float | None,
    repeats: int,
    warmup: int,
) -> Row:
    p20, p50, p80 = (float(np.percentile(times, q)) if times else None for q in (20, 50, 80))

    def rate(amount: float) -> float | None:
        return amount / p50 if p50 and amount else None

    return Row(
        case=case.name,
        shape=case.shape,
        backend=backend,
        ran=ran,
        status=status,
        p20_ms=None if p20 is None else p20 * 1e3,
        p50_ms=None if p50 is None else p50 * 1e3,
        p80_ms=None if p80 is None else p80 * 1e3,
        images_per_second=rate(case.images),
        gigabytes_per_second=rate(case.bytes_moved / 1e9),
        gigaflops=rate(case.operations() / 1e9) if times else None,
        peak_megabytes=None if peak is None or not times else peak / 1e6,
        error=error,
        images=case.images,
        repeats=repeats,
        warmup=warmup,
        detail=detail,
        **environment(),  # type: ignore[arg-type]
    )
