"""`shade-fast export`: write an encoder and its step as ONNX graphs."""

from __future__ import annotations

import argparse
import json

from shade_fast.api.export import card_lines, export_onnx
from shade_fast.cli.exits import EXIT_OK
from shade_fast.runtime import PRECISIONS


def add(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("encoder", metavar="ENCODER", help="name, path or hub:owner/name")
    add("--out", required=True, metavar="DIR", help="folder for the graphs")
    add("--size", type=_sides, default="512", metavar="SIZE", help="pixels that the encoder sees: side, or HxW")
    add("--batch", type=int, default=1, help="images of one run")
    add("--perceptual", default="auto", help="LPIPS network of the step: auto, vgg, st-vgg, ..., or 'none'")
    add("--precision", default="float32", choices=PRECISIONS, help="of weights and activations; tensors are float32")
    add("--json", action="store_true", help="print the card as JSON")


def run(options: argparse.Namespace) -> int:
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


def _sides(text: str) -> tuple[int, int]:
    try:
        sides = [int(part) for part in text.lower().split("x")]
        height, width = sides if len(sides) > 1 else sides * 2
        return height, width
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of pixels, or HxW such as 512x768") from None
