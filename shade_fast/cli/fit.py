"""`shade-fast fit`: fit a warm start to a sample of an archive."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TypeVar

from tqdm import tqdm

from shade_fast.api.fit import fit_start
from shade_fast.api.poisoner import Poisoner
from shade_fast.archive import find_images
from shade_fast.cli.arguments import add_options
from shade_fast.cli.exits import EXIT_OK
from shade_fast.protect.options import Options
from shade_fast.terms.checks import at_least
from shade_fast.terms.options import of_flags

T = TypeVar("T")
#: The options that the fit depends on; it has steps of its own.
FLAGS = (
    *("encoder", "weights", "linf", "lpips", "view", "perceptual", "backend", "accuracy", "devices", "seed"),
    "anchors",
)


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("sources", nargs="+", metavar="SRC", help="image files, or folders that are searched through")
    add("--out", required=True, metavar="FILE", help="the warm start, a .safetensors file")
    add("--target", required=True, metavar="NAME|PATH", help="target concept: an anchor's name, an image or a folder")
    add_options(parser, Options, FLAGS)
    add("--count", type=int, default=48, help="how many of the images, evenly chosen, it is fitted to")
    add(
        "--steps",
        dest="fit_steps",
        metavar="STEPS",
        type=int,
        default=100,
        help="steps of the fit, of 8 gradients each",
    )
    add("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    sources = find_images(options.sources)
    at_least("count", options.count)
    sample = evenly(sources, options.count)
    poisoner = Poisoner(of_flags(Options, vars(options)))
    with tqdm(unit="step", disable=options.quiet or None, file=sys.stderr) as bar:

        def on_step(done: int, total: int) -> None:
            bar.total = total
            bar.update()

        start = fit_start(
            [source.path for source in sample], options.target, poisoner, steps=options.fit_steps, progress=on_step
        )
    start.save(options.out)
    sizes = ", ".join(f"{width}x{height}" for height, width in start.perturbations)
    print(f"{options.out}: fitted to {start.images} images, views of {sizes}")
    return EXIT_OK


def evenly(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items, evenly spaced from the first on; all where there are no more."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]
