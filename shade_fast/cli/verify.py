"""`shade-fast verify`: measure an archive's output again."""

from __future__ import annotations

import argparse
import sys

from tqdm import tqdm

from shade_fast.archive import Row, verify_archive
from shade_fast.cli.arguments import add_limits, add_source, add_trust
from shade_fast.cli.exits import EXIT_OK, EXIT_SOME
from shade_fast.engine import BACKENDS
from shade_fast.terms.limits import Limits
from shade_fast.terms.text import printable


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="an archive's output")
    parser.add_argument("--backend", choices=BACKENDS, help="what executes the networks (default: as the run had it)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_trust(parser)
    add_source(parser)
    add_limits(parser)


def run(options: argparse.Namespace) -> int:
    checked = 0
    with tqdm(unit="image", disable=options.quiet or None, file=sys.stderr) as bar:

        def on_row(row: Row, _: str | None) -> None:
            nonlocal checked
            checked += row.output is not None
            bar.update()

        mismatches = verify_archive(
            options.out,
            on_row=on_row,
            backend=options.backend,
            trust=options.trust_record,
            source=options.source,
            limits=Limits.of_texts(options.max or ()),
        )
    for mismatch in mismatches:
        print(printable(": ".join(part for part in (mismatch.shard, mismatch.key, mismatch.reason) if part)))
    print(f"{checked} images measured again, {len(mismatches)} mismatches")
    return EXIT_SOME if mismatches else EXIT_OK
