"""Measure the embedded autoencoder for its card: `python -m benchmarks embedded measure --help`.

Every photograph is seen with its shorter side at 256 pixels, the centre 256x256 of it. Transfer is measured with the
TAEF2 encoder in the folder that the environment variable SHADE_FAST_MODELS names, and left out where there is none.
"""

from __future__ import annotations

import math
import os
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from shade_fast.encoders import Encoder, load_encoder
from shade_fast.perceptual import load_perceptual
from shade_fast.terms.errors import ShadeFastError

SIDE = 256
LINF = 16 / 255
STEPS = 60
ANCHORS = Path(__file__).resolve().parents[2] / "shade_fast" / "data" / "anchors"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True)
class Shift:
    """What one encoder sees of a perturbation, per image `[B]`.

    fraction: `(d_before - d_after) / d_before`, the part of the latent distance to the anchor that is gone.
    direction: cosine between the latent's move and the way to the anchor.
    """

    fraction: torch.Tensor
    direction: torch.Tensor


@torch.no_grad()
def reconstruction(encoder: Encoder, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """PSNR in dB `[B]` of the decoded latents, those pictures, and the latents, of images `[B, 3, h, w]` in [0, 1]."""
    latents = encoder.encode(images)
    outputs = encoder.decode(latents)
    return -10 * (outputs - images).square().mean((1, 2, 3)).log10(), outputs, latents


def perturb(encoder: Encoder, images: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Images `[B, 3, h, w]` moved to the anchors' latents within linf 16/255, rounded to 255 levels.

    60 steps of `m = 0.8 m + g / mean|g|`, `delta -= a_i sign(m)`, `a_i` on a cosine from `0.3 linf` to 0, with `g` the
    gradient of the latent distance; then the box and the range.
    """
    wanted = encoder.encode(anchors).detach()
    delta, momentum = torch.zeros_like(images), torch.zeros_like(images)
    for step in range(STEPS):
        delta.requires_grad_(True)
        distance = (encoder.encode(images + delta) - wanted).flatten(1).norm(dim=1)
        (gradient,) = torch.autograd.grad(distance.sum(), delta)
        scale = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-20)
        momentum = 0.8 * momentum + gradient / scale
        length = 0.3 * LINF * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        delta = (delta.detach() - length * momentum.sign()).clamp(-LINF, LINF)
        delta = (images + delta).clamp(0, 1) - images
    return ((images + delta) * 255).round() / 255


@torch.no_grad()
def seen_shift(encoder: Encoder, images: torch.Tensor, perturbed: torch.Tensor, anchors: torch.Tensor) -> Shift:
    """What `encoder` sees of the perturbation of `images` towards `anchors`, all `[B, 3, h, w]` in [0, 1]."""
    before, after, wanted = (encoder.encode(batch).flatten(1) for batch in (images, perturbed, anchors))
    distance_before = (wanted - before).norm(dim=1)
    distance_after = (wanted - after).norm(dim=1)
    direction = torch.cosine_similarity(after - before, wanted - before, dim=1)
    return Shift((distance_before - distance_after) / distance_before, direction)


def load_photograph(path: Path) -> torch.Tensor:
    """The centre 256x256 of a picture with its shorter side at 256 pixels; float32 `[3, 256, 256]` in [0, 1]."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    image = ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def pictures(folder: Path) -> list[Path]:
    """Picture files under a folder, sorted by path."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ShadeFastError(f"no pictures under {folder}: give a folder of PNG, JPEG or WebP files")
    return paths


def report(folder: Path, direct: int) -> None:
    """Print the card's figures; `direct` is how many photographs the yardstick on TAEF2 itself is measured on."""
    paths = pictures(folder)
    images = torch.stack([load_photograph(path) for path in paths])
    embedded = load_encoder("embedded")
    perceptual = load_perceptual("auto")
    quality, outputs, latents = reconstruction(embedded, images)
    with torch.no_grad():
        distances = perceptual(outputs, images)
    print(f"| photograph | PSNR, dB | LPIPS ({perceptual.name}) |\n|---|---|---|")
    for path, decibels, distance in zip(paths, quality.tolist(), distances.tolist(), strict=True):
        print(f"| {path.name} | {decibels:.2f} | {distance:.3f} |")
    print(f"| mean | {quality.mean():.2f} | {distances.mean():.3f} |\n")
    spread, centre = torch.std_mean(latents, (0, 2, 3))
    print("| latent channel | mean | standard deviation | largest |\n|---|---|---|---|")
    for channel, (mean, deviation) in enumerate(zip(centre.tolist(), spread.tolist(), strict=True)):
        print(f"| {channel} | {mean:.3f} | {deviation:.3f} | {latents[:, channel].abs().max():.2f} |")

    anchor_paths = pictures(ANCHORS)
    anchors = torch.stack([load_photograph(anchor_paths[i % len(anchor_paths)]) for i in range(len(paths))])
    perturbed = perturb(embedded, images, anchors)
    print("\n| perturbed on | seen by | photographs | fraction gone | direction |\n|---|---|---|---|---|")
    print_shift("embedded", "embedded", seen_shift(embedded, images, perturbed, anchors))
    taef2_path = Path(os.environ.get("SHADE_FAST_MODELS", "")) / "taef2_encoder.safetensors"
    if not taef2_path.is_file():
        print("transfer to TAEF2: left out, SHADE_FAST_MODELS names no folder with taef2_encoder.safetensors")
        return
    taef2 = load_encoder(taef2_path)
    print_shift("embedded", "TAEF2", seen_shift(taef2, images, perturbed, anchors))
    if direct < 1:
        return
    images, anchors, perturbed = images[:direct], anchors[:direct], perturbed[:direct]
    print_shift("embedded", "TAEF2", seen_shift(taef2, images, perturbed, anchors))
    perturbed = perturb(taef2, images, anchors)
    print_shift("TAEF2", "TAEF2", seen_shift(taef2, images, perturbed, anchors))
    print_shift("TAEF2", "embedded", seen_shift(embedded, images, perturbed, anchors))


def print_shift(maker: str, viewer: str, shift: Shift) -> None:
    fraction, direction = shift.fraction, shift.direction
    print(
        f"| {maker} | {viewer} | {len(fraction)} | {fraction.mean():.3f} ({fraction.min():.3f} to "
        f"{fraction.max():.3f}) | {direction.mean():.3f} |",
        flush=True,
    )


def arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--photographs", type=Path, default=Path("tests/photographs"))
    parser.add_argument(
        "--direct", type=int, default=4, help="photographs for the yardstick, perturbed on TAEF2 itself; 0 for none"
    )
    parser.add_argument("--threads", type=int, default=1)


def run(options: Namespace) -> int:
    """The command."""
    report(options.photographs, options.direct)
    return 0
