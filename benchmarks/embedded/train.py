"""Train the embedded autoencoder on a folder of photographs: `python -m benchmarks embedded train --help`.

Loss of one step, over a batch of random crops `x` and reconstructions `y = D(E(x) + noise)`:

    mean|y - x| + 4 mean(y - x)^2 + 0.5 mean|pool8(y) - pool8(x)| + p LPIPS(y, x) + 0.05 (m^2 + (log s)^2)

with `pool8` the average over 8x8 pixels, `m` and `s` the mean and standard deviation of each latent channel over the
batch, and LPIPS the first three layers of the shift-tolerant AlexNet (Ghildyal and Liu, "Shift-tolerant Perceptual
Similarity Metric", ECCV 2022), on a part of the batch. The learning rate warms up, stays, and over the last third of
the steps falls to zero as `1 - sqrt(t)`; what is written is the running average of the weights, with the exact latent
mean and standard deviation of every channel folded into the last encoder and the first decoder convolution.
"""

from __future__ import annotations

import copy
import math
import random
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from shade_fast.encoders.embedded.network import EmbeddedDecoder, EmbeddedEncoder, ResidualBlock
from shade_fast.terms.errors import ShadeFastError

SIDES = (768, 384, 192)
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True)
class Recipe:
    """What one training run is made of; `crop` in pixels, `noise` in latent units."""

    steps: int
    batch: int = 8
    crop: int = 96
    learning_rate: float = 1e-3
    noise: float = 0.03
    perceptual: float = 0.1
    perceptual_crops: int = 2
    average: float = 0.999
    seed: int = 0
    bfloat16: bool = False


class Autoencoder(nn.Module):
    """Both halves as one module, so that one optimiser and one running average hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = EmbeddedEncoder()
        self.decoder = EmbeddedDecoder()
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, ResidualBlock):
                    module.second.weight.mul_(0.25)


def train(
    photographs: Sequence[Path],
    out: Path,
    recipe: Recipe,
    *,
    perceptual_weights: Path | None = None,
    every: int = 500,
    until: int | None = None,
) -> None:
    """Train from scratch, or from `out/checkpoint.pt` where there is one, and write both halves to `out`.

    `photographs` are folders, searched to the bottom. Every `every` steps `checkpoint.pt`, `encoder.safetensors` and
    `decoder.safetensors` (float16) are replaced. A run that was stopped and goes on gives the run that was not: the
    random numbers of a step depend on the seed and the step alone. `until` stops it after that many steps.
    """
    out.mkdir(parents=True, exist_ok=True)
    pyramids = [pyramid(path) for path in find_photographs(photographs)]
    torch.manual_seed(recipe.seed)
    model = Autoencoder().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=1e-4)
    term = PerceptualTerm(perceptual_weights) if perceptual_weights is not None else None
    checkpoint = out / "checkpoint.pt"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        start = int(state["step"])
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    began, sums = time.monotonic(), torch.zeros(4)
    last = recipe.steps if until is None else min(until, recipe.steps)
    for step in range(start, last):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(step, recipe.steps)
        images = batch_of(pyramids, recipe, step)
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            latents = model.encoder(images).float()
            noise = recipe.noise * torch.randn(latents.shape, generator=generator)
            outputs = model.decoder(latents + noise).float()
            seen = recipe.perceptual_crops
            perceptual = term(outputs[:seen], images[:seen]) if term is not None else torch.zeros(())
        spread, centre = torch.std_mean(latents, (0, 2, 3))
        unit = (centre.square() + spread.log().square()).mean()
        loss = pixel_loss(outputs, images) + recipe.perceptual * perceptual + 0.05 * unit
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        follow(average, model, min(recipe.average, (1 + step) / (10 + step)))
        with torch.no_grad():
            sums += torch.stack([loss, functional.mse_loss(outputs, images), perceptual, unit])
        if (step + 1) % every == 0 or step + 1 == last:
            loss_mean, error, distance, unit_mean = (sums / ((step - start) % every + 1)).tolist()
            print(
                f"step {step + 1} loss {loss_mean:.4f} psnr {-10 * math.log10(error):.2f} lpips {distance:.4f} "
                f"unit {unit_mean:.4f} seconds {time.monotonic() - began:.0f}",
                flush=True,
            )
            sums.zero_()
            state = {"step": step + 1, "model": model.state_dict(), "average": average.state_dict()}
            torch.save(state | {"optimizer": optimizer.state_dict()}, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            export(average, pyramids, out)


def schedule(step: int, steps: int) -> float:
    """Factor on the learning rate: up over 200 steps, level, then `1 - sqrt(t)` over the last third."""
    left = (steps - step) / (steps / 3)
    return min((step + 1) / 200, 1.0, 1 - math.sqrt(max(0.0, 1 - left)))


def pixel_loss(outputs: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """`mean|d| + 4 mean d^2 + 0.5 mean|pool8(d)|` of the difference of two image batches."""
    difference = outputs - images
    coarse = functional.avg_pool2d(difference, 8)
    return difference.abs().mean() + 4 * difference.square().mean() + 0.5 * coarse.abs().mean()


def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the running average towards the model: `a += (1 - decay) (w - a)`."""
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


@torch.no_grad()
def export(average: Autoencoder, pyramids: Sequence[Sequence[Image.Image]], out: Path) -> None:
    """Fold the latents' statistics over the photographs into the two border convolutions; write both in float16.

    The zero padding of the first decoder convolution stands for the latent 0 before and after folding alike, so the
    shift is exact inside and off by the (small) channel mean at the border.
    """
    folded = copy.deepcopy(average)
    values = [average.encoder(as_tensor(levels[2])[None]).flatten(2)[0] for levels in pyramids]
    spread, centre = torch.std_mean(torch.cat(values, 1), 1)
    last, first = folded.encoder.layers[-1], folded.decoder.layers[0]
    if not isinstance(last, nn.Conv2d) or not isinstance(first, nn.Conv2d) or last.bias is None or first.bias is None:
        raise ShadeFastError("the encoder must end and the decoder begin with a convolution that has a bias")
    last.weight.div_(spread[:, None, None, None])
    last.bias.sub_(centre).div_(spread)
    first.bias.add_((first.weight.sum((2, 3)) * centre).sum(1))
    first.weight.mul_(spread[None, :, None, None])
    for name, module in (("encoder", folded.encoder), ("decoder", folded.decoder)):
        half = {key: value.to(torch.float16).contiguous() for key, value in module.state_dict().items()}
        save_file(half, out / f"{name}.new")
        (out / f"{name}.new").replace(out / f"{name}.safetensors")


def find_photographs(folders: Sequence[Path]) -> list[Path]:
    """Every picture file under the folders, sorted by path."""
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ShadeFastError(f"no photographs under {', '.join(map(str, folders))}: give folders of PNG, JPEG or WebP")
    return paths


def pyramid(path: Path) -> list[Image.Image]:
    """One photograph with its shorter side at 768, 384 and 192 pixels at most."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    levels = []
    for side in SIDES:
        scale = min(1.0, side / min(image.size))
        size = (max(8, round(image.width * scale)) // 8 * 8, max(8, round(image.height * scale)) // 8 * 8)
        image = image.resize(size, Image.Resampling.LANCZOS) if size != image.size else image
        levels.append(image)
    return levels


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def batch_of(pyramids: Sequence[Sequence[Image.Image]], recipe: Recipe, step: int) -> torch.Tensor:
    """The crops of one step, float32 `[batch, 3, crop, crop]` in [0, 1], channels last."""
    random_numbers = random.Random(f"{recipe.seed}/{step}")
    crops = [crop_of(random_numbers.choice(pyramids), recipe.crop, random_numbers) for _ in range(recipe.batch)]
    return torch.stack(crops).contiguous(memory_format=torch.channels_last)


def crop_of(levels: Sequence[Image.Image], size: int, random_numbers: random.Random) -> torch.Tensor:
    """A square crop of a photograph shrunk to a random scale, turned, mirrored and with its tones changed.

    The shorter side of the photograph that the crop is cut from is log-uniform between 160 and 768 pixels.
    """
    side = math.exp(random_numbers.uniform(math.log(160), math.log(SIDES[0])))
    level = min((image for image in levels if min(image.size) >= side), key=lambda i: min(i.size), default=levels[0])
    window = min(max(1.0, min(level.size) / side) * size, min(level.size))
    left = random_numbers.uniform(0, level.width - window)
    top = random_numbers.uniform(0, level.height - window)
    box = (left, top, left + window, top + window)
    crop = as_tensor(level.resize((size, size), Image.Resampling.BICUBIC, box=box))
    if random_numbers.random() < 0.5:
        crop = crop.flip(2)
    if random_numbers.random() < 0.25:
        crop = crop.rot90(random_numbers.randrange(1, 4), (1, 2))
    if random_numbers.random() < 0.1:
        crop = crop[random_numbers.sample(range(3), 3)]
    if random_numbers.random() < 0.4:
        gains = torch.tensor([random_numbers.uniform(0.8, 1.2) for _ in range(3)])[:, None, None]
        contrast = random_numbers.uniform(0.7, 1.4)
        crop = ((crop - 0.5) * gains * contrast + 0.5 + random_numbers.uniform(-0.15, 0.15)).clamp(0, 1)
    return crop


class PerceptualTerm:
    """LPIPS over the first three layers of the shift-tolerant AlexNet; images `[B, 3, h, w]` in [0, 1] to a scalar.

    `weights` is `alex_shift_tolerant.pth` of the `stlpips-pytorch` wheel, read as data. What follows the third
    layer is left out: at the crop size it sees little but the border.
    """

    def __init__(self, weights: Path) -> None:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        self.state = {
            key: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
            for key, value in state.items()
        }

    def __call__(self, outputs: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = self.features(images)
        total = torch.zeros(())
        for layer, (got, want) in enumerate(zip(self.features(outputs), wanted, strict=True)):
            difference = (unit(got.float()) - unit(want.float())).square()
            total = total + functional.conv2d(difference, self.state[f"lin{layer}.model.1.weight"]).mean()
        return total

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        state = self.state
        values = (2 * images - 1 - state["scaling_layer.shift"]) / state["scaling_layer.scale"]
        values = functional.conv2d(values, state["net.slice1.0.weight"], state["net.slice1.0.bias"], padding=2)
        first = torch.relu(blur(values))
        values = blur(functional.max_pool2d(first, 3, 1))
        second = torch.relu(
            functional.conv2d(values, state["net.slice2.5.weight"], state["net.slice2.5.bias"], padding=2)
        )
        values = blur(functional.max_pool2d(second, 3, 1))
        third = torch.relu(
            functional.conv2d(values, state["net.slice3.9.weight"], state["net.slice3.9.bias"], padding=1)
        )
        return [first, second, third]


def blur(values: torch.Tensor) -> torch.Tensor:
    """The 1-2-1 blur with stride 2 and two pixels of mirrored border."""
    kernel = torch.tensor([1.0, 2.0, 1.0], dtype=values.dtype) / 4
    kernel = (kernel[:, None] * kernel).expand(values.shape[1], 1, 3, 3)
    return functional.conv2d(functional.pad(values, (2, 2, 2, 2), "reflect"), kernel, stride=2, groups=values.shape[1])


def unit(features: torch.Tensor) -> torch.Tensor:
    """Features of unit length at every pixel."""
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-10)


def arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--photographs", type=Path, nargs="+", required=True, help="folders of photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and the weights")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--crop", type=int, default=Recipe.crop, help="side of a crop in pixels, a multiple of 8")
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--noise", type=float, default=Recipe.noise, help="standard deviation added to the latents")
    parser.add_argument("--perceptual", type=float, default=Recipe.perceptual, help="weight of the LPIPS term")
    parser.add_argument("--perceptual-weights", type=Path, help="alex_shift_tolerant.pth; without it, no LPIPS term")
    parser.add_argument("--bfloat16", action="store_true", help="convolutions in bfloat16: twice as fast where native")


def run(options: Namespace) -> int:
    """The command."""
    recipe = Recipe(
        steps=options.steps,
        batch=options.batch,
        crop=options.crop,
        learning_rate=options.learning_rate,
        noise=options.noise,
        perceptual=options.perceptual,
        seed=options.seed,
        bfloat16=options.bfloat16,
    )
    train(options.photographs, options.out, recipe, perceptual_weights=options.perceptual_weights)
    return 0
