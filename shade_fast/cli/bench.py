"""`shade-fast bench`: time a step of an encoder on this machine."""

from __future__ import annotations

import argparse
import json

from shade_fast.api.bench import bench_lines, bench_step
from shade_fast.cli.arguments import add_options
from shade_fast.cli.exits import EXIT_OK
from shade_fast.protect.options import Options
from shade_fast.terms.options import of_flags

FLAGS = ("encoder", "lpips", "backend", "accuracy", "devices")


def add(parser: argparse.ArgumentParser) -> None:
    add_options(parser, Options, FLAGS)
    parser.add_argument(
        "--steps",
        dest="reckoned",
        metavar="STEPS",
        type=int,
        default=60,
        help="optimiser steps that images an hour are reckoned with",
    )
    parser.add_argument("--size", type=int, default=512, help="side of the square that the encoder sees")
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(options: argparse.Namespace) -> int:
    measured = bench_step(
        of_flags(Options, vars(options)), size=options.size, steps=options.reckoned, repeats=options.repeats
    )
    print(json.dumps(measured, indent=1) if options.json else "\n".join(bench_lines(measured)))
    return EXIT_OK
