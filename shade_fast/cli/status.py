"""`shade-fast status`: what an archive's output holds, by its record."""

from __future__ import annotations

import argparse

from shade_fast.archive import archive_status
from shade_fast.cli.exits import exit_code
from shade_fast.terms.text import print_json, printable


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="an archive's output")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(options: argparse.Namespace) -> int:
    status = archive_status(options.out)
    if options.json:
        print_json(status)
    else:
        counts = ", ".join(f"{status[name]} {name.replace('_', ' ')}" for name in ("ok", "below_target", "failed"))
        print(f"{status['images']} images: {counts} ({status['duplicates']} duplicates)")
        still_open = printable(", ".join(status["open_shards"])) or "none"
        print(f"{status['finished_shards']} shards finished, open: {still_open}")
    return exit_code(status)
