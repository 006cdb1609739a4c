"""`shade-fast archive`: protect an archive."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shade_fast.archive import ArchiveReport, RunOptions, plan_archive, poison_archive
from shade_fast.cli.arguments import add_options
from shade_fast.cli.exits import EXIT_OK, exit_code
from shade_fast.protect.options import Options
from shade_fast.terms.options import given_options, of_flags
from shade_fast.terms.text import print_json, printable

#: Up to this many rows the closing table shows all; above it, only those that are not ok.
LARGEST_TABLE = 40


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("sources", nargs="+", metavar="SRC", help="image files and folders; tar files, {000..127} for many; or tables")
    add("--out", required=True, metavar="DIR", help="folder or URL for the protected archive and its record")
    add("--target", metavar="NAME|PATH", help="target concept: an anchor's name, an image or a folder")
    add_options(parser, Options)
    add_options(parser, RunOptions)
    add("--dry-run", action="store_true", help="say what would be done with each image, and do nothing")
    add("--json", action="store_true", help="print the totals as JSON")
    add("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    values = vars(options)
    given = {**given_options(of_flags(Options, values)), **given_options(of_flags(RunOptions, values))}
    if options.dry_run:
        return _dry_run(options, given)
    with stopping() as stop:
        progress = not options.quiet and sys.stderr.isatty()
        report = poison_archive(options.sources, options.out, options.target, progress=progress, stop=stop, **given)
    if options.json:
        print_json(report.stats)
    else:
        print(_table(report))
        print(report.summary())
        print(f"shade-fast report {options.out} draws it, shade-fast verify {options.out} measures it again")
    if stop.received is not None:
        without = ", without --overwrite" if options.mode == "overwrite" else ""
        print(f"shade-fast: interrupted; run the same again to go on{without}", file=sys.stderr)
        return 128 + stop.received
    return exit_code(report.stats)


class Stop(threading.Event):
    """Set by the signal that it was received from."""

    received: int | None = None


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """An event that SIGINT and SIGTERM set; a second SIGINT interrupts at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def receive(number: int, _: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.received = number
        stop.set()

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _dry_run(options: argparse.Namespace, given: dict[str, Any]) -> int:
    rows = plan_archive(options.sources, options.out, options.target, **given)
    counts: Counter[str] = Counter()
    for row in rows:
        counts["failed" if row["error"] else "ok"] += 1
        if options.json:
            print_json(row, None)
        elif row["error"]:
            print(printable(f"would fail: {row['error']}"))
        else:
            height, width = row["view"]
            sizes = f"({row['width']}x{row['height']}, seen at {width}x{height})"
            print(printable(f"{row['key']} {sizes} -> {row['output']}"))
    if not counts and not options.json:
        print("nothing: all images are done")
    return exit_code(counts) if counts else EXIT_OK


def _table(report: ArchiveReport) -> str:
    """A line for every image of a small run; for a large run, lines for the first that are not ok."""
    few = report.images <= LARGEST_TABLE
    shown = list(itertools.islice((row for row in report.rows() if few or row.status != "ok"), LARGEST_TABLE))
    if not shown:
        return f"{report.images} images, all ok"
    names = [printable(Path(row.key).name) for row in shown]
    width = max(map(len, names))
    lines = [f"{'image':<{width}}  {'size':>11}  {'status':<12}  {'linf':>6}  {'lpips':>6}  latent distance"]
    for name, row in zip(names, shown, strict=True):
        line = f"{name:<{width}}  {row.width:>5}x{row.height:<5}  {row.status:<12}"
        if row.linf is not None and row.distance_before is not None and row.distance_after is not None:
            lpips = "-" if row.lpips is None else f"{row.lpips:.4f}"
            left = f" ({row.distance_after / row.distance_before:.0%} left)" if row.distance_before > 0 else ""
            line += f"  {round(255 * row.linf):>2}/255  {lpips:>6}"
            line += f"  {row.distance_before:.2f} -> {row.distance_after:.2f}{left}"
        lines.append(line.rstrip())
    if len(shown) < report.images:
        lines.append(f"and {report.images - len(shown)} more")
    return "\n".join(lines + [printable(f"failed: {row.error}") for row in shown if row.error])
