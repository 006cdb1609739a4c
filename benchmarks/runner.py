"""The runner: times the sides of a case in turn, checks every result, and writes one kind of row."""

from __future__ import annotations

import csv
import functools
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from benchmarks.registry import Case, Side
from shade_fast.errors import ShadeFastError
from shade_fast.version import __version__


@dataclass(frozen=True)
class Row:
    """One side of one case. Times are milliseconds; they are None unless `status` is "ok".

    status: "ok"; "wrong" (a result was not right, `detail` says how); "missing" (the backend is not there).
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
    repeats: int
    warmup: int
    device: str
    threads: int
    torch: str
    shade_fast: str
    commit: str
    detail: str


def measure(
    case: Case,
    backends: Sequence[str] | None = None,
    repeats: int = 5,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Time the sides of a case, alternating run by run, and check the result of every run, the timed ones included.

    `backends` are those of the case by default. A side whose result is wrong once gets no time.
    """
    asked = [backend for backend in backends or case.backends if backend in case.backends]
    sides: dict[str, Side] = {}
    problems: dict[str, tuple[str, str]] = {}
    side_of = case.prepare()
    for backend in asked:
        try:
            sides[backend] = side_of(backend)
        except ShadeFastError as error:
            problems[backend] = ("missing", str(error))

    seconds: dict[str, list[float]] = {backend: [] for backend in sides}
    for turn in range(warmup + repeats):
        for backend in _rotated(list(sides), turn):
            if backend in problems:
                continue
            took, wrong = _run_once(sides[backend], clock)
            if wrong is not None:
                problems[backend] = ("wrong", wrong)
            elif turn >= warmup:
                seconds[backend].append(took)

    rows = []
    for backend in asked:
        status, detail = problems.get(backend, ("ok", ""))
        times = seconds[backend] if status == "ok" else []
        ran = sides[backend].ran if backend in sides else ""
        rows.append(_row(case, backend, ran, status, detail, times, repeats, warmup))
    return rows


def write_rows(file: TextIO, rows: Iterable[Row], header: bool) -> None:
    """Append rows as CSV, its header line first if asked for."""
    writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
    if header:
        writer.writeheader()
    for row in rows:
        writer.writerow({name: _text(value) for name, value in asdict(row).items()})
    file.flush()


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
        )
        if value is not None
    ]
    return f"{name} {row.p50_ms:10.3f} ms  [{row.p20_ms:.3f} to {row.p80_ms:.3f}]  {', '.join(rates)}  ran {row.ran}"


def _run_once(side: Side, clock: Callable[[], float]) -> tuple[float, str | None]:
    side.reset()
    start = clock()
    result = side.run()
    took = clock() - start
    return took, side.check(result)


def _rotated(names: list[str], turn: int) -> list[str]:
    first = turn % len(names) if names else 0
    return names[first:] + names[:first]


def _row(
    case: Case, backend: str, ran: str, status: str, detail: str, times: list[float], repeats: int, warmup: int
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
        gigaflops=rate(case.operations / 1e9),
        repeats=repeats,
        warmup=warmup,
        device=_device_name(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        shade_fast=__version__,
        commit=_commit(),
        detail=detail,
    )


def _text(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


@functools.cache
def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@functools.cache
def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    root = Path(__file__).resolve().parents[1]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
