"""The commands on whole archives: `shade-fast archive`, `status` and `verify`."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from shade_fast.archive import ArchiveReport, Row, archive_status, plan_archive, poison_archive, verify_archive
from shade_fast.terms.limits import Limits
from shade_fast.terms.text import print_json, printable

EXIT_OK, EXIT_SOME, EXIT_NOTHING = 0, 1, 2
#: Rows that the closing table shows before it keeps to those that are not ok.
LARGEST_TABLE = 40


def run_archive(options: argparse.Namespace, keywords: dict[str, Any]) -> int:
    """`shade-fast archive`; keywords: the engine's options."""
    if options.dry_run:
        return _dry_run(options, keywords)
    with stopping() as stop:
        report = poison_archive(
            options.sources,
            options.out,
            options.target,
            mode=options.mode,
            shard=options.shard,
            limit=options.limit,
            on_error=options.on_error,
            output=options.output,
            quality=options.quality,
            workers=options.workers,
            shard_size=options.shard_size,
            progress=not options.quiet and sys.stderr.isatty(),
            events=options.events,
            stop=stop,
            grace=options.grace,
            retry_failed=options.retry_failed,
            keep_times=options.keep_times,
            **keywords,
        )
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
    return _exit_code(report.stats)


def run_status(options: argparse.Namespace) -> int:
    """`shade-fast status`."""
    status = archive_status(options.out)
    if options.json:
        print_json(status)
    else:
        counts = ", ".join(f"{status[name]} {name.replace('_', ' ')}" for name in ("ok", "below_target", "failed"))
        print(f"{status['images']} images: {counts} ({status['duplicates']} duplicates)")
        still_open = printable(", ".join(status["open_shards"])) or "none"
        print(f"{status['finished_shards']} shards finished, open: {still_open}")
    return _exit_code(status)


def run_verify(options: argparse.Namespace) -> int:
    """`shade-fast verify`."""
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


def _dry_run(options: argparse.Namespace, keywords: dict[str, Any]) -> int:
    engine = {name: value for name, value in keywords.items() if name not in ("access", "limits")}
    rows = plan_archive(
        options.sources, options.out, options.target, options.output, options.quality, engine,
        mode=options.mode, shard=options.shard, limit=options.limit, access=keywords["access"],
        limits=keywords["limits"],
    )  # fmt: skip
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
    return _exit_code(counts) if counts else EXIT_OK


def _exit_code(counts: Mapping[str, int]) -> int:
    ok, others = counts["ok"], counts["failed"] + counts.get("below_target", 0)
    if ok + others == counts["failed"]:
        return EXIT_NOTHING
    return EXIT_SOME if others else EXIT_OK


def _table(report: ArchiveReport) -> str:
    """A line for every image of a small run; of a large one, for the first that are not ok."""
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
