"""The command line: `shade-fast archive`, `status`, `verify`, `fit`, `survive`, `report`, `export`, `bench`,
`study`, `info`."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import IO, Any, TypeVar, cast

from tqdm import tqdm

from shade_fast.anchors import AnchorLibrary
from shade_fast.api.bench import bench_lines, bench_step
from shade_fast.api.export import card_lines, export_onnx
from shade_fast.api.fit import fit_start
from shade_fast.api.info import describe_machine, info_lines
from shade_fast.api.poisoner import PRESETS, Poisoner
from shade_fast.archive import find_images, read_pairs
from shade_fast.archive.archive import MODES, OUTPUTS
from shade_fast.archive.manifest import finite
from shade_fast.cli.archive import EXIT_NOTHING, EXIT_OK, run_archive, run_status, run_verify
from shade_fast.cli.study import add_study
from shade_fast.engine import BACKENDS, OPTIMIZERS
from shade_fast.protect.survival import survival_of_pairs
from shade_fast.report import write_report
from shade_fast.runtime import ACCURACIES, CUDA_PRECISIONS, PRECISIONS
from shade_fast.terms.budget import Budget
from shade_fast.terms.checks import at_least
from shade_fast.terms.errors import ShadeFastError, reason
from shade_fast.terms.limits import ROW_PROTOCOLS, Access, Limits, limit_names
from shade_fast.terms.text import Terminal, print_json
from shade_fast.terms.version import __version__
from shade_fast.views import View

#: a fault of the program, which is none of an image's: BSD's EX_SOFTWARE
EXIT_FAULT = 70
EXIT_INTERRUPTED = 130
#: what shells call the end of a program whose output is no longer read
EXIT_PIPE = 141
T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes: 0 all ok, 1 some below target or failed, 2 nothing could run, 70 an error that nobody
    expected, 130 and 143 interrupted, 141 nobody reads the output any more."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may hold bytes that are no text, or text that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    streams = [stream and cast("IO[str]", Terminal(stream)) for stream in (sys.stdout, sys.stderr)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        code = int(options.run(options))
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError as error:
        if not _unread():
            return _fault(error)
        # Whoever read the output has seen enough; what is still to be flushed as Python ends goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except ShadeFastError as error:
        print(f"shade-fast: {error}", file=sys.stderr)
        return EXIT_NOTHING
    except KeyboardInterrupt:
        print("shade-fast: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        return _fault(error)


def _fault(error: Exception) -> int:
    """Tell of an error that nobody expected, and what it was about; a traceback where SHADE_FAST_TRACEBACK is set."""
    about = "".join(f"{note}: " for note in getattr(error, "__notes__", ())[:2])
    hint = "what is recorded stays, and SHADE_FAST_TRACEBACK=1 shows where it came from: please report it"
    print(f"shade-fast: {about}unexpected error: {reason(error)}; {hint}", file=sys.stderr)
    if os.environ.get("SHADE_FAST_TRACEBACK"):
        traceback.print_exception(error)
    return EXIT_FAULT


def _unread() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(sys.stdout, 0)
    except (AttributeError, OSError, ValueError, TypeError):  # there is none, or it is no file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _archive(options: argparse.Namespace) -> int:
    keywords = _engine(options, View.robust(options.view) if options.robust else View(options.view))
    for name in (
        "optimizer",
        "preset",
        "steps",
        "stop_ratio",
        "patience",
        "batch_size",
        "target_ratio",
        "survival",
        "start",
    ):
        keywords[name] = getattr(options, name)
    keywords |= {"access": access_of(options), "limits": Limits.of_texts(options.max or ())}
    return run_archive(options, keywords)


def _fit(options: argparse.Namespace) -> int:
    sources = find_images(options.sources)
    at_least("count", options.count)
    sample = evenly(sources, options.count)
    poisoner = Poisoner(**_engine(options, View(options.view)))
    with tqdm(unit="step", disable=options.quiet or None, file=sys.stderr) as bar:

        def on_step(done: int, total: int) -> None:
            bar.total = total
            bar.update()

        start = fit_start(
            [source.path for source in sample], options.target, poisoner, steps=options.steps, progress=on_step
        )
    start.save(options.out)
    sizes = ", ".join(f"{width}x{height}" for height, width in start.perturbations)
    print(f"{options.out}: fitted to {start.images} images, views of {sizes}")
    return EXIT_OK


def _engine(options: argparse.Namespace, view: View) -> dict[str, Any]:
    """The Poisoner's options that `_add_networks` reads."""
    return {
        "encoder": options.encoder or ["embedded"],
        "weights": options.weights,
        "budget": Budget(linf=options.linf, lpips=options.lpips),
        "view": view,
        "perceptual": None if options.perceptual == "none" else options.perceptual,
        "backend": options.backend,
        "accuracy": options.accuracy,
        "devices": options.devices,
        "seed": options.seed,
        "anchors": None if options.anchors is None else AnchorLibrary.from_folder(options.anchors),
    }


def _report(options: argparse.Namespace) -> int:
    print(write_report(options.directory, options.out, trust=options.trust_record))
    return EXIT_OK


def _survive(options: argparse.Namespace) -> int:
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


def _export(options: argparse.Namespace) -> int:
    perceptual = None if options.perceptual == "none" else options.perceptual
    card = export_onnx(
        options.encoder,
        options.out,
        size=options.size,
        batch=options.batch,
        perceptual=perceptual,
        precision=options.precision,
    )
    print(json.dumps(card, indent=1) if options.json else "\n".join(card_lines(card)))
    return EXIT_OK


def _bench(options: argparse.Namespace) -> int:
    measured = bench_step(
        options.encoder or ["embedded"],
        budget=Budget(lpips=options.lpips),
        size=options.size,
        steps=options.steps,
        backend=options.backend,
        accuracy=options.accuracy,
        devices=options.devices,
        repeats=options.repeats,
    )
    print(json.dumps(measured, indent=1) if options.json else "\n".join(bench_lines(measured)))
    return EXIT_OK


def _info(options: argparse.Namespace) -> int:
    facts = describe_machine()
    print(json.dumps(facts, indent=1) if options.json else "\n".join(info_lines(facts)))
    return EXIT_OK


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
    _add_networks(add)
    add("--optimizer", default="momentum", choices=OPTIMIZERS, help="momentum, or one of the published loops")
    presets = ", ".join(f"{name}: {steps} steps" for name, steps in PRESETS.items())
    add("--preset", default="balanced", choices=PRESETS, help=presets)
    add("--steps", type=int, help="optimiser steps, instead of the preset's")
    add("--stop-ratio", type=float, help="stop an image once this share of its latent distance is left")
    add("--patience", type=int, metavar="STEPS", help="stop an image after so many steps without progress")
    add(
        "--batch-size",
        type=_batch_size,
        default="auto",
        help="images of one size optimised together on a GPU, or 'auto'",
    )
    add("--robust", action="store_true", help="draw a resize, crop or flip, and JPEG, on the way to the encoder")
    add("--survival", action="store_true", help="measure what is left of the shift after what happens to files")
    add("--start", metavar="FILE", help="warm start for this target and encoder, made by `shade-fast fit`")
    add("--target-ratio", type=float, default=0.9, help="share of the latent distance that may be left for 'ok'")
    add("--output", "--format", default="same", choices=OUTPUTS, help="format of the files; dummy writes none")
    add("--quality", type=int, help="JPEG quality to begin with (default: the source's own, or 98)")
    add_mode = archive.add_mutually_exclusive_group().add_argument
    add_mode("--mode", default="resume", choices=MODES, help="what to do with an earlier run's output")
    add_mode(
        "--overwrite",
        dest="mode",
        action="store_const",
        const="overwrite",
        default=argparse.SUPPRESS,
        help="the same as --mode overwrite",
    )
    add("--shard", type=_shard, default="0/1", metavar="I/N", help="do the I-th of N parts, from 0; for array jobs")
    add("--limit", type=int, metavar="N", help="take so many images, and leave the rest to the next run")
    add("--on-error", default="continue", choices=["continue", "stop"], help="when an image fails")
    add("--workers", type=int, help="threads that read, decode, encode and write (default: cores, at most 4)")
    add("--shard-size", type=int, default=1000, metavar="N", help="images of one manifest of a folder")
    add("--events", metavar="FILE", help="add a JSON line to FILE for every image and shard")
    add("--dry-run", action="store_true", help="say what would be done with each image, and do nothing")
    add("--json", action="store_true", help="print the totals as JSON")
    add("--quiet", action="store_true", help="no progress bar")
    add("--retry-failed", action="store_true", help="try again what failed for reasons that may have passed")
    add("--keep-times", action="store_true", help="give files the modification times of their sources")
    add(
        "--grace",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="from SIGINT or SIGTERM until the process ends, whatever hangs",
    )
    _add_access(add)
    _add_limits(add)

    status = commands.add_parser("status", help="what an archive's output holds, by its record")
    status.set_defaults(run=run_status)
    status.add_argument("out", metavar="OUT", help="an archive's output")
    status.add_argument("--json", action="store_true", help="print as JSON")

    verify = commands.add_parser(
        "verify",
        help="measure an archive's output again, from its files alone",
        description="Decode, hash and measure every image again. Exit code: 0 all as recorded, 1 any mismatch.",
    )
    verify.set_defaults(run=run_verify)
    verify.add_argument("out", metavar="OUT", help="an archive's output")
    verify.add_argument("--backend", choices=BACKENDS, help="what executes the networks (default: as the run had it)")
    verify.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_trust(verify.add_argument)
    _add_source(verify.add_argument)
    _add_limits(verify.add_argument)

    report = commands.add_parser("report", help="draw a run's record as one HTML page")
    report.set_defaults(run=_report)
    report.add_argument("directory", metavar="DIR", help="a run's folder")
    report.add_argument("--out", metavar="FILE", help="the page (default: DIR/report.html)")
    _add_trust(report.add_argument)

    fit = commands.add_parser(
        "fit",
        help="fit a warm start to a sample of an archive",
        description="Fit the perturbation that the images of one target begin with: `archive --start FILE` needs fewer "
        "steps then on some encoders (docs/strength.md).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    fit.set_defaults(run=_fit)
    add = fit.add_argument
    add("sources", nargs="+", metavar="SRC", help="image files, or folders that are searched through")
    add("--out", required=True, metavar="FILE", help="the warm start, a .safetensors file")
    add("--target", required=True, metavar="NAME|PATH", help="target concept: an anchor's name, an image or a folder")
    _add_networks(add)
    add("--count", type=int, default=48, help="how many of the images, evenly chosen, it is fitted to")
    add("--steps", type=int, default=100, help="steps of the fit, of 8 gradients each")
    add("--quiet", action="store_true", help="no progress bar")

    survive = commands.add_parser(
        "survive",
        help="measure what is left after compression, resizing, crops and the like",
        description="The share of the latent shift that is left after each treatment of the protected files.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    survive.set_defaults(run=_survive)
    survive.add_argument("directory", metavar="DIR", help="a run's folder")
    survive.add_argument("--encoder", default="embedded", metavar="NAME|PATH|ID", help="encoder to measure with")
    survive.add_argument("--view", type=_size, default="512", metavar="SIZE", help="shorter side, or 'none'")
    survive.add_argument("--plot", metavar="FILE", help="draw it too: .svg, .png or .pdf (needs matplotlib)")
    survive.add_argument("--json", action="store_true", help="print every image's shares as JSON")
    _add_trust(survive.add_argument)
    _add_source(survive.add_argument)

    export = commands.add_parser(
        "export",
        help="write an encoder and its step as ONNX graphs",
        description="Write ONNX graphs for one image size: the encoder, the joint step with its input gradients, the "
        "LPIPS network's clean features; and a card that says what they take and give.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    export.set_defaults(run=_export)
    add = export.add_argument
    add("encoder", metavar="ENCODER", help="name, path or hub:owner/name")
    add("--out", required=True, metavar="DIR", help="folder for the graphs")
    add("--size", type=_sides, default="512", metavar="SIZE", help="pixels that the encoder sees: side, or HxW")
    add("--batch", type=int, default=1, help="images of one run")
    add("--perceptual", default="auto", help="LPIPS network of the step: auto, vgg, st-vgg, ..., or 'none'")
    add("--precision", default="float32", choices=PRECISIONS, help="of weights and activations; tensors are float32")
    add("--json", action="store_true", help="print the card as JSON")

    bench = commands.add_parser(
        "bench",
        help="time a step of your encoder on this machine",
        description="Time one optimiser step of one image in plain torch and through the backend, taking turns; every "
        "result is held against plain torch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    bench.set_defaults(run=_bench)
    _add_engine(bench.add_argument)
    bench.add_argument("--steps", type=int, default=60, help="optimiser steps that images an hour are reckoned with")
    bench.add_argument("--size", type=int, default=512, help="side of the square that the encoder sees")
    bench.add_argument("--repeats", type=int, default=10, help="timed steps of each")
    bench.add_argument("--json", action="store_true", help="print as JSON")

    add_study(commands)

    info = commands.add_parser("info", help="devices, backends, weights found, versions")
    info.set_defaults(run=_info)
    info.add_argument("--json", action="store_true", help="print as JSON")
    return parser


def _add_networks(add: Callable[..., Any]) -> None:
    """The options of every command that moves images."""
    _add_engine(add)
    add("--weights", type=_weights, metavar="W,W", help="of an ensemble's encoders (default: equal)")
    add("--linf", type=bound, default="16/255", help="largest change of a channel, in [0, 1] units, or 'none'")
    add("--view", type=_size, default="512", metavar="SIZE", help="shorter side that a trainer resizes to, or 'none'")
    add("--perceptual", default="auto", help="LPIPS network: auto, vgg, st-vgg, alex, st-alex, squeeze, or 'none'")
    add("--seed", type=int, default=0, help="what the draws of --robust follow from, with each image's pixels")
    add("--anchors", metavar="DIR", help="library of anchors: a folder with a subfolder of images for each concept")


def _add_access(add: Callable[..., Any]) -> None:
    """What a table's rows may name, and how remote files are read."""
    add(
        "--allow-paths",
        action="append",
        metavar="DIR",
        help="let a table's rows name files below DIR, by absolute or ../ paths; again for more",
    )
    add(
        "--allow-protocols",
        type=_names,
        action="extend",
        metavar="P,P",
        help=f"let a table's rows name URLs of these: {', '.join(ROW_PROTOCOLS)}",
    )
    add("--allow-private", action="store_true", help="let rows' URLs lead to loopback and private addresses")
    add(
        "--retries",
        type=int,
        default=3,
        metavar="N",
        help="times that an image is read again after a time-out or an answer such as 503, with growing pauses",
    )
    add("--timeout", type=float, default=30.0, metavar="SECONDS", help="that a server of rows' URLs may be silent")


def access_of(options: argparse.Namespace) -> Access:
    """What `_add_access` reads."""
    return Access(
        tuple(options.allow_paths or ()),
        tuple(options.allow_protocols or ()),
        options.allow_private,
        options.retries,
        options.timeout,
    )


def _add_limits(add: Callable[..., Any]) -> None:
    add(
        "--max",
        action="append",
        metavar="NAME=VALUE",
        help=f"change a limit (docs/security.md), such as image-bytes=1G; names: {', '.join(limit_names())}",
    )


def _add_trust(add: Callable[..., Any]) -> None:
    add(
        "--trust-record",
        action="store_true",
        default=None,
        help="open the files and networks that the record names, also where no run of yours wrote it",
    )


def _add_source(add: Callable[..., Any]) -> None:
    add("--source", action="append", metavar="SRC", help="the source, where it is another than the record says")


def _add_engine(add: Callable[..., Any]) -> None:
    """The options of every command that runs the engine."""
    add("--encoder", action="append", metavar="NAME|PATH|ID", help="encoder; again for an ensemble (default: embedded)")
    add("--lpips", type=bound, default="0.07", help="largest LPIPS distance, or 'none'")
    add("--backend", default="auto", choices=BACKENDS, help="what executes the networks and the optimiser")
    add(
        "--accuracy",
        default="fast",
        choices=(*ACCURACIES, *CUDA_PRECISIONS),
        help="of gradients: native's fast (1e-4) or exact (1e-5); cuda's fast is bf16, exact fp32",
    )
    add("--devices", default="auto", help="auto, cpu, cuda:0, or several, a process each: cuda:0,cuda:1")


def evenly(items: Sequence[T], count: int) -> list[T]:
    """So many of the items, from the first on, as far from one another as can be; all where there are no more."""
    count = min(count, len(items))
    return [items[place * len(items) // count] for place in range(count)]


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


def _sides(text: str) -> tuple[int, int]:
    try:
        sides = [int(part) for part in text.lower().split("x")]
        height, width = sides if len(sides) > 1 else sides * 2
        return height, width
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of pixels, or HxW such as 512x768") from None


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _weights(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers with commas between them") from None


def _batch_size(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, or 'auto'") from None


if __name__ == "__main__":
    sys.exit(main())
