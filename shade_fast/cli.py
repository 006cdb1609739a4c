"""The command line: `shade-fast poison`, `fit`, `survive`, `report`, `bench` and `info`."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from tqdm import tqdm

from shade_fast.anchors import AnchorLibrary
from shade_fast.archive import MANIFEST_NAME, find_images, plan_files, poison_files
from shade_fast.archive.manifest import Row
from shade_fast.bench import bench_lines, bench_step
from shade_fast.budget import Budget
from shade_fast.engine import BACKENDS, OPTIMIZERS
from shade_fast.errors import ShadeFastError
from shade_fast.fit import fit_start
from shade_fast.images import OUTPUT_FORMATS, Output
from shade_fast.info import describe_machine, info_lines
from shade_fast.poison import PRESETS, Poisoner
from shade_fast.report import write_report
from shade_fast.report_run import read_run
from shade_fast.results import PoisonedImage, summarize
from shade_fast.runtime import ACCURACIES
from shade_fast.survival import survival
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


def _poison(options: argparse.Namespace) -> int:
    output = Output(options.format, options.quality)
    view = View.robust(options.view) if options.robust else View(options.view)
    encoders = options.encoder or ["embedded"]
    sources = find_images(options.sources, exclude=options.out)
    poisoner = _poisoner(
        options,
        view,
        optimizer=options.optimizer,
        preset=options.preset,
        steps=options.steps,
        stop_ratio=options.stop_ratio,
        patience=options.patience,
        batch_size=options.batch_size,
        target_ratio=options.target_ratio,
        survival=options.survival,
        start=options.start,
    )
    if options.dry_run:
        return _dry_run(options, sources, poisoner, output)
    chosen = {
        "target": options.target,
        "encoder": encoders,
        "weights": options.weights,
        "budget": {"linf": options.linf, "lpips": options.lpips},
        "view": {"size": view.size, "transforms": [repr(transform) for transform in view.transforms]},
        "perceptual": options.perceptual,
        "backend": options.backend,
        "accuracy": options.accuracy,
        "devices": options.devices,
        "batch_size": options.batch_size,
        "anchors": options.anchors,
        "optimizer": options.optimizer,
        "start": options.start,
        "steps": poisoner.steps,
        "stop_ratio": options.stop_ratio,
        "patience": options.patience,
        "seed": options.seed,
        "target_ratio": options.target_ratio,
        "format": options.format,
        "quality": options.quality,
    }
    outcomes: list[PoisonedImage] = []
    with tqdm(total=len(sources), unit="image", disable=options.quiet or None, file=sys.stderr) as bar:

        def on_image(row: Row) -> None:
            outcomes.append(row.outcome)
            bar.set_postfix_str(row.outcome.status, refresh=False)
            bar.update()

        record = poison_files(
            sources,
            options.out,
            options.target,
            poisoner,
            output=output,
            overwrite=options.overwrite,
            options=chosen,
            on_image=on_image,
        )
    if options.json:
        print(json.dumps(record, indent=1))
    else:
        print(_table(record["images"]))
        print(
            summarize(
                outcomes,
                seconds=record["seconds"],
                encoder=poisoner.encoder_name,
                perceptual=record["perceptual"],
                backend=record["backend"],
            )
        )
        print(f"{Path(options.out) / MANIFEST_NAME} holds the record; shade-fast report {options.out} draws it")
    return _exit_code([outcome.status for outcome in outcomes])


def _fit(options: argparse.Namespace) -> int:
    sources = find_images(options.sources)
    if options.count < 1:
        raise ShadeFastError(f"count={options.count}: give the number of images to fit to, at least 1")
    sample = sources[:: -(-len(sources) // options.count)]
    poisoner = _poisoner(options, View(options.view))
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


def _poisoner(options: argparse.Namespace, view: View, **more: Any) -> Poisoner:
    return Poisoner(
        encoder=options.encoder or ["embedded"],
        weights=options.weights,
        budget=Budget(linf=options.linf, lpips=options.lpips),
        view=view,
        perceptual=None if options.perceptual == "none" else options.perceptual,
        backend=options.backend,
        accuracy=options.accuracy,
        devices=options.devices,
        seed=options.seed,
        anchors=None if options.anchors is None else AnchorLibrary.from_folder(options.anchors),
        **more,
    )


def _dry_run(options: argparse.Namespace, sources: Any, poisoner: Poisoner, output: Output) -> int:
    poisoner.anchor(options.target)
    rows = plan_files(sources, options.out, poisoner, output=output, overwrite=options.overwrite)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            if row["error"]:
                print(f"would fail: {row['error']}")
            else:
                height, width = row["view"]
                print(f"{row['source']} ({row['width']}x{row['height']}, seen at {width}x{height}) -> {row['output']}")
    return _exit_code(["failed" if row["error"] else "ok" for row in rows])


def _report(options: argparse.Namespace) -> int:
    print(write_report(options.directory, options.out))
    return EXIT_OK


def _survive(options: argparse.Namespace) -> int:
    run = read_run(options.directory)
    done = [image for image in run.images if image.output is not None]
    measured = survival(
        [run.directory / image.source for image in done],
        [run.directory / str(image.output) for image in done],
        options.encoder,
        view=View(options.view),
    )
    if options.json:
        print(json.dumps({"encoder": measured.encoder, "names": measured.names, "shares": measured.shares}, indent=1))
    else:
        print(measured.table())
    if options.plot:
        print(measured.plot(options.plot), file=sys.stderr)
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


def _exit_code(statuses: Sequence[str]) -> int:
    if all(status == "failed" for status in statuses):
        return EXIT_NOTHING
    return EXIT_OK if all(status == "ok" for status in statuses) else EXIT_SOME


def _table(images: Sequence[dict[str, Any]]) -> str:
    shown = [image for image in images if len(images) <= LARGEST_TABLE or image["status"] != "ok"]
    if not shown:
        return f"{len(images)} images, all ok"
    width = max(len(Path(image["source"]).name) for image in shown)
    lines = [f"{'image':<{width}}  {'size':>11}  {'status':<12}  {'linf':>6}  {'lpips':>6}  latent distance"]
    for image in shown:
        line = f"{Path(image['source']).name:<{width}}  {image['width']:>5}x{image['height']:<5}  {image['status']:<12}"
        if image["distance_after"] is not None:
            lpips = "-" if image["lpips"] is None else f"{image['lpips']:.4f}"
            before, after = image["distance_before"], image["distance_after"]
            left = f" ({after / before:.0%} left)" if before > 0 else ""
            line += f"  {round(255 * image['linf']):>2}/255  {lpips:>6}  {before:.2f} -> {after:.2f}{left}"
        lines.append(line.rstrip())
    if len(shown) < len(images):
        lines.append(f"and {len(images) - len(shown)} more, ok")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shade-fast", description="Protect images: perturbations inside a stated visual budget (arXiv 2310.13828)."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    poison = commands.add_parser(
        "poison",
        help="protect image files",
        description="Protect image files and folders of them. Exit code: 0 all ok, 1 some below target or failed, "
        "2 nothing could run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    poison.set_defaults(run=_poison)
    add = poison.add_argument
    add("sources", nargs="+", metavar="SRC", help="image files, or folders that are searched through")
    add("--out", required=True, metavar="DIR", help="folder for the protected files and the run's record")
    add("--target", required=True, metavar="NAME|PATH", help="target concept: an anchor's name, an image or a folder")
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
    add("--format", default="png", choices=["same", *OUTPUT_FORMATS], help="format of the files written")
    add("--quality", type=int, default=98, help="JPEG quality")
    add("--overwrite", action="store_true", help="write over an earlier run's files")
    add("--dry-run", action="store_true", help="say what would be done with each file, and do nothing")
    add("--json", action="store_true", help="print the run's record as JSON")
    add("--quiet", action="store_true", help="no progress bar")

    report = commands.add_parser("report", help="draw a run's record as one HTML page")
    report.set_defaults(run=_report)
    report.add_argument("directory", metavar="DIR", help="a run's folder")
    report.add_argument("--out", metavar="FILE", help="the page (default: DIR/report.html)")

    fit = commands.add_parser(
        "fit",
        help="fit a warm start to a sample of an archive",
        description="Fit the perturbation that the images of one target begin with: `poison --start FILE` needs half "
        "the steps then.",
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


def _add_engine(add: Callable[..., Any]) -> None:
    """The options of every command that runs the engine."""
    add("--encoder", action="append", metavar="NAME|PATH|ID", help="encoder; again for an ensemble (default: embedded)")
    add("--lpips", type=bound, default="0.07", help="largest LPIPS distance, or 'none'")
    add("--backend", default="auto", choices=BACKENDS, help="what executes the networks and the optimiser")
    add("--accuracy", default="fast", choices=ACCURACIES, help="of the native backend's gradients: 1e-4, or exact 1e-5")
    add("--devices", default="auto", help="auto, cpu, cuda:0")


def bound(text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        return float(Fraction(text))
    except (ValueError, ArithmeticError):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number, a fraction such as 16/255, or 'none'") from None


def _size(text: str) -> int | None:
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of pixels, or 'none'") from None


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
