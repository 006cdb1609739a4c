"""An encoder and its step as ONNX graphs in a folder, with a card that says what each takes and gives."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shade_fast.encoders import Encoder, load_encoder
from shade_fast.perceptual import Perceptual, load_perceptual
from shade_fast.runtime.onnx import FLOAT32, PRECISIONS, LatentDistance, in_precision, model_of
from shade_fast.terms.checks import at_least, whole
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.version import __version__

CARD = "card.json"
#: Name of an input or output -> what it holds, and the range of its values (None: without a bound).
MEANINGS: dict[str, tuple[str, list[float | None]]] = {
    "images": ("RGB, as the encoder sees them", [0, 1]),
    "latents": ("the mean, scaled as the model's trainers scale it", [None, None]),
    "anchor_latents": ("latents that the images' are moved to", [None, None]),
    "latent_distance": ("length of latents - anchor_latents", [0, None]),
    "latent_gradient": ("gradient of the sum of latent_distance in images", [None, None]),
    "clean_features": ("what features.onnx makes of the clean images, of length 1 along the channels", [-1, 1]),
    "lpips": ("LPIPS distance from the clean images", [0, None]),
    "lpips_gradient": ("gradient of the sum of lpips in images", [None, None]),
}


def export_onnx(
    encoder: Any = "embedded",
    out: str | os.PathLike[str] = "onnx",
    *,
    size: int | tuple[int, int] = 512,
    batch: int = 1,
    perceptual: str | Perceptual | None = "auto",
    precision: str = FLOAT32,
) -> dict[str, Any]:
    """Write `encoder.onnx`, `step.onnx`, with a perceptual network `features.onnx`, and `card.json` into a folder.

        encoder    images -> latents
        features   images -> clean_features_0, ...
        step       images, anchor_latents, clean_features_0, ... -> latent_distance, lpips, latent_gradient,
                   lpips_gradient

    encoder: what `load_encoder` takes. size: height and width in pixels of what the encoder sees, or the side of a
    square; batch: images of one run; shapes are fixed. perceptual: an LPIPS network, its name, `auto`, or None for
    none.
    precision: of weights and activations, `float32`, `float16` or `bfloat16` (errors: docs/onnx.md); norms' statistics,
    distances, inputs and outputs are always float32. Graphs hold ONNX's own operators and their weights.

    Returns the card. Raises ShadeFastError for sizes that the encoder does not take, for a network that ONNX has no
    form for, and for a folder that cannot be written.
    """
    if whole(size) is None and not (isinstance(size, tuple | list) and len(size) == 2):
        raise ShadeFastError(f"size={size!r}: give one side, or height and width")
    height, width = (at_least("size", side) for side in (size if isinstance(size, tuple | list) else (size, size)))
    batch = at_least("batch", batch)
    if precision not in PRECISIONS:
        raise ShadeFastError(f"precision {precision!r}: give one of {', '.join(PRECISIONS)}")
    loaded = load_encoder(encoder)
    network = load_perceptual(perceptual) if isinstance(perceptual, str) else perceptual
    images = torch.zeros(batch, 3, height, width)
    loaded.check_images(images)
    latents = torch.zeros(batch, loaded.channels, height // loaded.factor, width // loaded.factor)
    clean = () if network is None else tuple(torch.zeros_like(feature) for feature in network.features(images))
    if precision != FLOAT32:
        change = functools.partial(in_precision, precision=precision)
        loaded, network = loaded.frozen(change), None if network is None else network.frozen(change)
    features = [f"clean_features_{number}" for number in range(len(clean))]
    distances = ["latent_distance", *(["lpips"] if clean else [])]
    gradients = ["latent_gradient", *(["lpips_gradient"] if clean else [])]
    graphs: list[tuple[str, nn.Module, Sequence[Tensor], str, list[str], list[str]]] = [
        ("encoder", loaded.module, [images], "forward", ["images"], ["latents"])
    ]
    if network is not None:
        graphs.append(("features", network.clean_side, [images], "forward", ["images"], features))
    step_inputs = [images, latents, *clean]
    names = ["images", "anchor_latents", *features]
    graphs.append(("step", _Step(loaded, network), step_inputs, "steps", names, [*distances, *gradients]))
    folder = Path(out)
    rows = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, module, inputs, kind, input_names, output_names in graphs:
            model = model_of(module, inputs, kind, input_names, output_names)
            (folder / f"{name}.onnx").write_bytes(model)
            rows.append(_row(name, model))
        card = {
            "version": __version__,
            "dtype": FLOAT32,
            "precision": precision,
            "encoder": loaded.describe(),
            "perceptual": None if network is None else {"name": network.name, "sha256": network.sha256},
            "graphs": rows,
        }
        (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")
    except OSError as error:
        raise ShadeFastError(f"{folder}: cannot be written: {error.strerror}; give another folder") from error
    return card


def card_lines(card: dict[str, Any]) -> list[str]:
    """A card for reading."""
    encoder, perceptual = card["encoder"], card["perceptual"]
    lines = [
        f"encoder {encoder['name']}, weights sha256 {encoder['sha256']}",
        f"LPIPS {'none' if perceptual is None else perceptual['name']}, precision {card['precision']}",
    ]
    for row in card["graphs"]:
        size = f"{row['bytes'] / 1e6:.1f} MB"
        lines.append(f"{row['file']}  {size}  opset {row['opset']}  sha256 {row['sha256']}")
        for arrow, what in (("<-", "inputs"), ("->", "outputs")):
            for tensor in row[what]:
                low, high = ("unbounded" if side is None else side for side in tensor["range"])
                lines.append(f"  {arrow} {tensor['name']} {tensor['shape']}, {low} to {high}: {tensor['meaning']}")
    return lines


class _Step(nn.Module):
    """Maps images, anchors' latents and clean features to the distances that a step differentiates."""

    def __init__(self, encoder: Encoder, network: Perceptual | None) -> None:
        super().__init__()
        self.latent_distance = LatentDistance(encoder.module)
        self.network = network

    def forward(self, images: Tensor, anchor_latents: Tensor, *clean: Tensor) -> tuple[Tensor, ...]:
        distance = self.latent_distance(images, anchor_latents)
        return (distance,) if self.network is None else (distance, self.network.distance(images, clean))


def _row(name: str, model: bytes) -> dict[str, Any]:
    """A graph as the card has it, read from the graph itself."""
    import onnx

    read = onnx.load_from_string(model)

    def described(values: Any) -> list[dict[str, Any]]:
        rows = []
        for value in values:
            shape = [side.dim_value for side in value.type.tensor_type.shape.dim]
            meaning, bounds = MEANINGS[value.name.rstrip("0123456789").rstrip("_")]
            rows.append({"name": value.name, "shape": shape, "range": bounds, "meaning": meaning})
        return rows

    return {
        "file": f"{name}.onnx",
        "bytes": len(model),
        "opset": read.opset_import[0].version,
        "sha256": hashlib.sha256(model).hexdigest(),
        "inputs": described(read.graph.input),
        "outputs": described(read.graph.output),
    }
