"""The command: `python -m benchmarks list` and `python -m benchmarks run [CASE...]`."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.registry import select
from benchmarks.runner import describe, measure, write_rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status is 1 where a result was wrong or a case's name is unknown."""
    options = _parser().parse_args(arguments)
    try:
        cases = select(options.case)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if options.command == "list":
        for case in cases:
            print(f"{case.name:32} {case.shape:20} {','.join(case.backends):24} {case.purpose}")
        return 0

    if options.threads:
        torch.set_num_threads(options.threads)
    wrong = False
    with ExitStack() as stack:
        file = None
        if options.csv:
            options.csv.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(options.csv.open("w", newline=""))
        for number, case in enumerate(cases):
            rows = measure(case, options.backends, options.repeats, options.warmup)
            for row in rows:
                print(describe(row), flush=True)
            if file:
                write_rows(file, rows, header=number == 0)
            wrong = wrong or any(row.status == "wrong" for row in rows)
    return int(wrong)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks of shade_fast.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, purpose in (("list", "name the cases"), ("run", "time them")):
        command = commands.add_parser(name, help=purpose, description=purpose)
        command.add_argument(
            "case", nargs="*", help="a case's name, its first parts, or a shell pattern (default: all)"
        )
    command.add_argument("--backends", type=lambda text: text.split(","), help="comma-separated (default: each case's)")
    command.add_argument("--repeats", type=int, default=5, help="timed runs of each side (default: 5)")
    command.add_argument("--warmup", type=int, default=2, help="untimed runs of each side before them (default: 2)")
    command.add_argument("--threads", type=int, help="torch's thread count (default: torch's own)")
    command.add_argument("--csv", type=Path, metavar="FILE", help="write the rows there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
