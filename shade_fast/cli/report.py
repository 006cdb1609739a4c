"""`shade-fast report`: draw a run's record."""

from __future__ import annotations

import argparse

from shade_fast.cli.arguments import add_trust
from shade_fast.cli.exits import EXIT_OK
from shade_fast.report import write_report


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a run's folder")
    parser.add_argument("--out", metavar="FILE", help="the page (default: DIR/report.html)")
    add_trust(parser)


def run(options: argparse.Namespace) -> int:
    print(write_report(options.directory, options.out, trust=options.trust_record))
    return EXIT_OK
