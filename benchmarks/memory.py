"""Memory of one run: its peak above what was resident before, and torch's allocations; each side in its own process.

A side has its weights loaded and packed and has run once; then all that it and the allocator keep goes back to the
system (`Side.release`, malloc_trim). From there on the peak of one more run is measured, by the kernel's own mark of
the process' largest resident size, which is reset before the run. So the figure is what a step needs above the weights,
whether it allocates and frees or keeps its buffers. The eager side is measured with the system's allocator and with the
tuned one.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import options as shared
from benchmarks.environment import Environment, environment, with_allocator
from benchmarks.registry import Case, Side, select
from benchmarks.rows import csv_file
from shade_fast.terms.errors import ShadeFastError

#: What is measured unless cases are named.
CASES = ("step.kl.512", "step.taef2.512", "step.embedded.512")


@dataclass(frozen=True)
class MemoryRow(Environment):
    """One side of one case. `peak_megabytes` is in units of 10^6 bytes, as `allocated_megabytes`.

    allocations: how often a steady run asks torch's CPU allocator for memory, and for how much in all. Results are
    among them; what compiled libraries take by themselves is not.
    status: as of the runner's rows.
    """

    case: str
    shape: str
    backend: str
    ran: str
    status: str
    peak_megabytes: float | None
    allocations: int | None
    allocated_megabytes: float | None
    images: int
    detail: str


def arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    shared.names(parser, ", ".join(CASES))
    shared.backends(parser)
    shared.machine(parser)
    parser.add_argument("--here", action="store_true", help="in this process, once, and print the rows as JSON alone")


def run(options: Namespace) -> int:
    """The command; 1 where a result is wrong."""
    cases = select(options.case or CASES)
    if options.here:
        for case in cases:
            for backend in options.backends or case.backends:
                print(json.dumps(asdict(measure_here(case, backend))))
        return 0
    wrong = False
    with csv_file(options.csv) as write:
        for case in cases:
            for row in measure_memory(case, options.backends):
                print(describe(row), flush=True)
                write([row])
                wrong = wrong or row.status == "wrong"
    return int(wrong)


def peak_bytes(side: Side) -> tuple[Any, int | None]:
    """Result of a run, and its peak above what is resident before it; None where the system does not report it."""
    side.reset()
    gc.collect()
    side.release()
    _trim()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        result = side.run()
        return result, max(_resident("VmHWM") - before, 0)
    except OSError:
        return side.run(), None


def allocations(side: Side) -> tuple[int, int]:
    """How often a run asks torch's CPU allocator for memory, and for how many bytes in all."""
    side.reset()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        side.run()
    events = profiler.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]
    return len(sizes), sum(sizes)


def measure_here(case: Case, backend: str) -> MemoryRow:
    """Measure a side in this process, which has done nothing else."""
    figures: dict[str, Any] = dict.fromkeys(("peak_megabytes", "allocations", "allocated_megabytes"))
    figures |= {"ran": "", "detail": ""}
    try:
        side = case.prepare()(backend)
    except ShadeFastError as error:
        return _row(case, backend, "missing", **figures | {"detail": str(error)})
    figures["ran"] = side.ran
    side.reset()
    side.run()
    result, peak = peak_bytes(side)
    wrong = side.check(result)
    if wrong is not None:
        return _row(case, backend, "wrong", **figures | {"detail": wrong})
    count, size = allocations(side)
    figures |= {"allocations": count, "allocated_megabytes": size / 1e6}
    return _row(case, backend, "ok", **figures | {"peak_megabytes": None if peak is None else peak / 1e6})


def measure_apart(case: Case, backend: str, tuned: bool) -> MemoryRow:
    """Measure a side in a fresh process. Raises RuntimeError where that fails."""
    threads = str(case.threads or torch.get_num_threads())
    chosen = [case.name, "--backends", backend, "--threads", threads]
    command = [sys.executable, "-m", "benchmarks", "memory", *chosen, "--here"]
    root = Path(__file__).resolve().parents[1]
    variables = with_allocator(os.environ, tuned) | {"KINETO_LOG_LEVEL": "6"}  # the profiler says nothing of itself
    done = subprocess.run(command, cwd=root, env=variables, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} ended with {done.returncode}")
    return MemoryRow(**json.loads(done.stdout.splitlines()[-1]))


def measure_memory(case: Case, backends: Sequence[str] | None = None) -> Iterator[MemoryRow]:
    """Each side of a case in turn; the eager side a second time with the tuned allocator."""
    for backend in backends or case.backends:
        if backend in case.backends:
            for tuned in (False, True) if backend == "eager" else (False,):
                yield measure_apart(case, backend, tuned)


def describe(row: MemoryRow) -> str:
    """One line for the terminal."""
    name = f"{row.case:32} {row.backend:14} {row.allocator:8}"
    if row.status != "ok":
        return f"{name} {row.status}: {row.detail}"
    peak = "unknown" if row.peak_megabytes is None else f"{row.peak_megabytes:.1f} MB"
    return f"{name} peak {peak:>12}  {row.allocations} allocations, {row.allocated_megabytes:.2f} MB  ran {row.ran}"


def _row(case: Case, backend: str, status: str, **figures: Any) -> MemoryRow:
    return MemoryRow(
        case=case.name,
        shape=case.shape,
        backend=backend,
        status=status,
        images=case.images,
        **figures,
        **environment(),  # type: ignore[arg-type]
    )


def _trim() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def _resident(mark: str) -> int:
    """A size of this process in bytes, by its name in /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{mark}:"))
