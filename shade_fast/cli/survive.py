"""`shade-fast survive`: measure what is left of the shift after what happens to files."""

from __future__ import annotations

import argparse
import sys

from shade_fast.archive import finite, read_pairs
from shade_fast.cli.arguments import add_source, add_trust, size
from shade_fast.cli.exits import EXIT_OK
from shade_fast.protect.survival import survival_of_pairs
from shade_fast.terms.text import print_json
from shade_fast.views import View


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="a run's folder")
    parser.add_argument("--encoder", default="embedded", metavar="NAME|PATH|ID", help="encoder to measure with")
    parser.add_argument("--view", type=size, default="512", metavar="SIZE", help="shorter side, or 'none'")
    parser.add_argument("--plot", metavar="FILE", help="draw it too: .svg, .png or .pdf (needs matplotlib)")
    parser.add_argument("--json", action="store_true", help="print every image's shares as JSON")
    add_trust(parser)
    add_source(parser)


def run(options: argparse.Namespace) -> int:
    pairs_read = read_pairs(options.directory, trust=options.trust_record, source=options.source)
    pairs = ((clean, perturbed) for _, clean, perturbed in pairs_read)
    measured = survival_of_pairs(pairs, options.encoder, view=View(options.view))
    if options.json:
        shares = {name: [finite(share) for share in shares] for name, shares in measured.shares.items()}
        print_json({"encoder": measured.encoder, "names": measured.names, "shares": shares})
    else:
        print(measured.table())
    if options.plot:
        print(measured.plot(options.plot), file=sys.stderr)
    return EXIT_OK
