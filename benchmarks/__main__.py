"""The command: `python -m benchmarks list | run | memory | time-to-quality | table | plot`; see README.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory, runner, time_to_quality
from benchmarks.environment import restart_tuned
from benchmarks.networks import trained
from benchmarks.photographs import FOLDER
from benchmarks.registry import all_cases, select
from benchmarks.rows import csv_file
from benchmarks.tables import write_tables

#: What `memory` measures unless cases are named.
MEMORY_CASES = ("step.kl.512", "step.taef2.512", "step.embedded.512")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status is 1 where a result was wrong, or the command was given what is not there."""
    options = _parser().parse_args(arguments)
    if getattr(options, "threads", None):
        torch.set_num_threads(options.threads)
    try:
        return int(options.command(options))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1


def _list(options: argparse.Namespace) -> int:
    for case in select(options.case) if options.case else all_cases():
        named = "" if case.standard else " (only by name)"
        print(f"{case.name:32} {case.shape:20} {','.join(case.backends):44} {case.purpose}{named}")
    return 0


def _run(options: argparse.Namespace) -> int:
    wrong = False
    with csv_file(options.csv) as write:
        for case in select(options.case):
            rows = runner.measure(case, options.backends, options.repeats, options.warmup)
            for row in rows:
                print(runner.describe(row), flush=True)
            write(rows)
            wrong = wrong or any(row.status == "wrong" for row in rows)
    return int(wrong)


def _memory(options: argparse.Namespace) -> int:
    wrong = False
    with csv_file(options.csv) as write:
        for case in select(options.case or MEMORY_CASES):
            for row in memory.measure_memory(case, options.backends):
                print(memory.describe(row), flush=True)
                write([row])
                wrong = wrong or row.status == "wrong"
    return int(wrong)


def _time_to_quality(options: argparse.Namespace) -> int:
    trial = time_to_quality.Trial(options.encoder, options.target, options.size)
    rows = trial.measure([options.photographs], options.count, dict(options.loop) or None, options.momentum)
    print(f"encoder {rows[0].encoder}, {rows[0].size} x {rows[0].size} pixels")
    print(time_to_quality.describe(rows))
    with csv_file(options.csv) as write:
        write(rows)
    return 0


def _table(options: argparse.Namespace) -> int:
    for into in options.into or [None]:
        write_tables(options.csv, into)
    return 0


def _plot(options: argparse.Namespace) -> int:
    from benchmarks.plot import write_plots

    for path in write_plots(options.csv, options.out):
        print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks of shade_fast.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, purpose: str, function: Callable[[argparse.Namespace], int], tuned: bool = False
    ) -> Callable[..., Any]:
        added = commands.add_parser(name, help=purpose, description=purpose)
        added.set_defaults(command=function, tuned=tuned)
        return added.add_argument

    def names(add: Callable[..., Any], default: str) -> None:
        add("case", nargs="*", help=f"a case's name, its first parts, or a shell pattern (default: {default})")

    def backends(add: Callable[..., Any]) -> None:
        add("--backends", type=lambda text: text.split(","), help="comma-separated (default: each case's)")

    def machine(add: Callable[..., Any]) -> None:
        add("--threads", type=int, help="torch's thread count (default: torch's own)")
        add("--csv", type=Path, metavar="FILE", help="write the rows there")

    names(command("list", "name the cases", _list), "all")

    add = command("run", "time them, with the tuned allocator", _run, tuned=True)
    names(add, "the standard ones")
    backends(add)
    add("--repeats", type=int, help="timed runs of each side (default: what fits 10 s, 5 to 50)")
    add("--warmup", type=int, help="untimed runs of each side before them (default: 2; 1 of the long ones)")
    machine(add)

    add = command("memory", "peak memory and allocations of a run, each side in a fresh process", _memory)
    names(add, ", ".join(MEMORY_CASES))
    backends(add)
    machine(add)

    purpose = "seconds until the published loops' latent distances are reached, with the tuned allocator"
    add = command("time-to-quality", purpose, _time_to_quality, tuned=True)
    loops = ", ".join(time_to_quality.PUBLISHED)
    add("loop", nargs="*", type=_loop, metavar="LOOP[:STEPS]", help=f"{loops}; as release:500,100 (default: all)")
    add("--encoder", default=trained(), help="what load_encoder takes (default: TAEF2 where it is, else embedded)")
    add("--photographs", type=Path, default=FOLDER, help="files and folders of images")
    add("--count", type=int, default=2, help="how many of the photographs, from the first (default: 2)")
    add("--size", type=int, default=128, help="side of the centre squares that are protected (default: 128)")
    add("--target", default="cat", help="the anchor (default: cat)")
    add("--momentum", type=_numbers, default=time_to_quality.MOMENTUM_STEPS, help="steps tried with momentum")
    machine(add)

    add = command("table", "CSV files as tables in Markdown", _table)
    add("csv", nargs="+", type=Path, metavar="CSV")
    add("--into", nargs="+", type=Path, metavar="FILE", help="write them between these files' marks instead")

    add = command("plot", "CSV files as pictures (needs matplotlib)", _plot)
    add("csv", nargs="+", type=Path, metavar="CSV")
    add("--out", type=Path, default=Path("docs"), metavar="DIR", help="folder of the pictures (default: docs)")
    return parser


def _loop(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, steps = text.partition(":")
    return name, _numbers(steps) if steps else ()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    if _parser().parse_args().tuned:
        restart_tuned(sys.argv[1:])
    sys.exit(main())
