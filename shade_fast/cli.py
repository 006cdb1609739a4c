"""The command line: `shade-fast archive`, `status`, `verify`, `report` and `info`."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from tqdm import tqdm

from shade_fast.anchors import AnchorLibrary
from shade_fast.archive import ArchiveReport, Row, archive_status, plan_archive, poison_archive, verify_archive
from shade_fast.archive.run import MODES, OUTPUTS
from shade_fast.budget import Budget
from shade_fast.engine import BACKENDS, OPTIMIZERS
from shade_fast.errors import ShadeFastError
from shade_fast.info import describe_machine, info_lines
from shade_fast.report import write_report
from shade_fast.runtime import ACCURACIES
from shade_fast.version import __version__
from shade_fast.view import View

EXIT_OK, EXIT_SOME, EXIT_NOTHING, EXIT_INTERRUPTED = 0, 1, 2, 130
#: Rows that the closing table shows before it keeps to those that are not ok.
LARGEST_TABLE = 40


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes: 0 all ok, 1 some below target or failed, 2 nothing could run, 130 interrupted."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may hold bytes that are no text, or text that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return int(options.run(options))
    except ShadeFastError as error:
        print(f"shade-fast: {error}", file=sys.stderr)
        return EXIT_NOTHING
    except KeyboardInterrupt:
        print("shade-fast: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _archive(options: argparse.Namespace) -> int:
    keywords: dict[str, Any] = {
        "encoder": options.encoder or ["embedded"],
        "budget": Budget(linf=options.linf, lpips=options.lpips),
        "view": View(size=options.view),
        "perceptual": None if options.perceptual == "none" else options.perceptual,
        "optimizer": options.optimizer,
        "steps": options.steps,
        "backend": options.backend,
        "accuracy": options.accuracy,
        "devices": options.devices,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "target_ratio": options.target_ratio,
        "anchors": None if options.anchors is None else AnchorLibrary.from_folder(options.anchors),
    }
    if options.dry_run:
        return _dry_run(options, keywords)
    with stopping() as stop:
        report = poison_archive(
            options.sources,
            options.out,
            options.target,
            mode="overwrite" if options.overwrite else options.mode,
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
            **keywords,
        )
    if options.json:
        print(json.dumps(report.stats, indent=1))
    else:
        print(_table(report))
        print(report.summary())
        print(f"shade-fast report {options.out} draws it, shade-fast verify {options.out} measures it again")
    if stop.received is not None:
        print("shade-fast: interrupted; run the same again to go on", file=sys.stderr)
        return 128 + stop.received
    return _exit_code(report.stats)


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
    rows = plan_archive(options.sources, options.out, options.target, options.output, options.quality, keywords)
    counts: Counter[str] = Counter()
    for row in rows:
        counts["failed" if row["error"] else "ok"] += 1
        if options.json:
            print(json.dumps(row))
        elif row["error"]:
            print(f"would fail: {row['error']}")
        else:
            height, width = row["view"]
            print(f"{row['key']} ({row['width']}x{row['height']}, seen at {width}x{height}) -> {row['output']}")
    return _exit_code(counts)


def _status(options: argparse.Namespace) -> int:
    status = archive_status(options.out)
    if options.json:
        print(json.dumps(status, indent=1))
    else:
        counts = ", ".join(f"{status[name]} {name.replace('_', ' ')}" for name in ("ok", "below_target", "failed"))
        print(f"{status['images']} images: {counts} ({status['duplicates']} duplicates)")
        print(f"{status['finished_shards']} shards finished, open: {', '.join(status['open_shards']) or 'none'}")
    return _exit_code(status)


def _verify(options: argparse.Namespace) -> int:
    checked = 0
    with tqdm(unit="image", disable=options.quiet or None, file=sys.stderr) as bar:

        def on_row(row: Row, _: str | None) -> None:
            nonlocal checked
            checked += row.output is not None
            bar.update()

        mismatches = verify_archive(options.out, on_row=on_row)
    for mismatch in mismatches:
        print(": ".join(part for part in (mismatch.shard, mismatch.key, mismatch.reason) if part))
    print(f"{checked} images measured again, {len(mismatches)} mismatches")
    return EXIT_SOME if mismatches else EXIT_OK


def _report(options: argparse.Namespace) -> int:
    print(write_report(options.directory, options.out))
    return EXIT_OK


def _info(options: argparse.Namespace) -> int:
    facts = describe_machine()
    print(json.dumps(facts, indent=1) if options.json else "\n".join(info_lines(facts)))
    return EXIT_OK


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
    width = max(len(Path(row.key).name) for row in shown)
    lines = [f"{'image':<{width}}  {'size':>11}  {'status':<12}  {'linf':>6}  {'lpips':>6}  latent distance"]
    for row in shown:
        line = f"{Path(row.key).name:<{width}}  {row.width:>5}x{row.height:<5}  {row.status:<12}"
        if row.linf is not None and row.distance_before is not None and row.distance_after is not None:
            lpips = "-" if row.lpips is None else f"{row.lpips:.4f}"
            left = f" ({row.distance_after / row.distance_before:.0%} left)" if row.distance_before > 0 else ""
            line += f"  {round(255 * row.linf):>2}/255  {lpips:>6}"
            line += f"  {row.distance_before:.2f} -> {row.distance_after:.2f}{left}"
        lines.append(line.rstrip())
    if len(shown) < report.images:
        lines.append(f"and {report.images - len(shown)} more")
    return "\n".join(lines + [f"failed: {row.error}" for row in shown if row.error])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shade-fast", description="Protect images: perturbations inside a stated visual budget (arXiv 2310.13828)."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    archive = commands.add_parser(
        "archive",
        aliases=["poison"],
        help="protect images: files, folders, tar files, tables",
        description="Protect an archive into the same shape; run again, it goes on where it ended. Exit code: 0 all "
        "ok, 1 some below target or failed, 2 nothing could run, 130 and 143 interrupted.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    archive.set_defaults(run=_archive)
    add = archive.add_argument
    add("sources", nargs="+", metavar="SRC", help="image files and folders; tar files, {000..127} for many; or tables")
    add("--out", required=True, metavar="DIR", help="folder or URL for the protected archive and its record")
    add("--target", metavar="NAME|PATH", help="target concept: an anchor's name, an image or a folder")
    add("--encoder", action="append", metavar="NAME|PATH|ID", help="encoder; again for an ensemble (default: embedded)")
    add("--linf", type=bound, default="16/255", help="largest change of a channel, in [0, 1] units, or 'none'")
    add("--lpips", type=bound, default="0.07", help="largest LPIPS distance, or 'none'")
    add("--view", type=_size, default="512", metavar="SIZE", help="shorter side that a trainer resizes to, or 'none'")
    add("--perceptual", default="auto", help="LPIPS network: auto, vgg, st-vgg, alex, st-alex, squeeze, or 'none'")
    add("--optimizer", default="momentum", choices=OPTIMIZERS, help="momentum, or one of the published loops")
    add("--steps", type=int, default=60, help="optimiser steps")
    add("--backend", default="auto", choices=BACKENDS, help="what executes the networks and the optimiser")
    add("--accuracy", default="fast", choices=ACCURACIES, help="of the native backend's gradients: 1e-4, or exact 1e-5")
    add("--devices", default="auto", help="auto, cpu, cuda:0")
    add(
        "--batch-size",
        type=_batch_size,
        default="auto",
        help="images of one size optimised together on a GPU, or 'auto'",
    )
    add("--seed", type=int, default=0, help="recorded with the run")
    add("--target-ratio", type=float, default=0.9, help="share of the latent distance that may be left for 'ok'")
    add("--anchors", metavar="DIR", help="library of anchors: a folder with a subfolder of images for each concept")
    add("--output", "--format", default="same", choices=OUTPUTS, help="format of the files; dummy writes none")
    add("--quality", type=int, help="JPEG quality to begin with (default: the source's own, or 98)")
    add("--mode", default="resume", choices=MODES, help="what to do with an earlier run's output")
    add("--overwrite", action="store_true", help="the same as --mode overwrite")
    add("--shard", type=_shard, default="0/1", metavar="I/N", help="do the I-th of N parts, from 0; for array jobs")
    add("--limit", type=int, metavar="N", help="take so many images, and leave the rest to the next run")
    add("--on-error", default="continue", choices=["continue", "stop"], help="when an image fails")
    add("--workers", type=int, help="threads that read, decode, encode and write (default: cores, at most 4)")
    add("--shard-size", type=int, default=1000, metavar="N", help="images of one manifest of a folder")
    add("--events", metavar="FILE", help="add a JSON line to FILE for every image and shard")
    add("--dry-run", action="store_true", help="say what would be done with each image, and do nothing")
    add("--json", action="store_true", help="print the totals as JSON")
    add("--quiet", action="store_true", help="no progress bar")

    status = commands.add_parser("status", help="what an archive's output holds, by its record")
    status.set_defaults(run=_status)
    status.add_argument("out", metavar="OUT", help="an archive's output")
    status.add_argument("--json", action="store_true", help="print as JSON")

    verify = commands.add_parser(
        "verify",
        help="measure an archive's output again, from its files alone",
        description="Decode, hash and measure every image again. Exit code: 0 all as recorded, 1 any mismatch.",
    )
    verify.set_defaults(run=_verify)
    verify.add_argument("out", metavar="OUT", help="an archive's output")
    verify.add_argument("--quiet", action="store_true", help="no progress bar")

    report = commands.add_parser("report", help="draw a run's record as one HTML page")
    report.set_defaults(run=_report)
    report.add_argument("directory", metavar="DIR", help="a run's folder")
    report.add_argument("--out", metavar="FILE", help="the page (default: DIR/report.html)")

    info = commands.add_parser("info", help="devices, backends, weights found, versions")
    info.set_defaults(run=_info)
    info.add_argument("--json", action="store_true", help="print as JSON")
    return parser


def bound(text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        return float(Fraction(text))
    except (ValueError, ArithmeticError):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number, a fraction such as 16/255, or 'none'") from None


def _shard(text: str) -> tuple[int, int]:
    try:
        index, count = map(int, text.split("/"))
        return index, count
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give I/N, such as 0/8") from None


def _size(text: str) -> int | None:
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of pixels, or 'none'") from None


def _batch_size(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, or 'auto'") from None


if __name__ == "__main__":
    sys.exit(main())
