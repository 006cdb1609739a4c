"""`shade-fast info`: what this machine has."""

from __future__ import annotations

import argparse
import json

from shade_fast.api.info import describe_machine, info_lines
from shade_fast.cli.exits import EXIT_OK


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(options: argparse.Namespace) -> int:
    facts = describe_machine()
    print(json.dumps(facts, indent=1) if options.json else "\n".join(info_lines(facts)))
    return EXIT_OK
