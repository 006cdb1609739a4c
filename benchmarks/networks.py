"""The frozen networks that the step cases run, as the package loads them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from shade_fast import load_encoder, load_perceptual
from shade_fast.encoders.load import EncoderSpec
from shade_fast.perceptual import Perceptual

#: AutoencoderKL as Stable Diffusion 1.5 has it.
KL = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}


def models() -> Path:
    """The folder of weights that are not in the package."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "models"
    return Path(os.environ.get("SHADE_FAST_MODELS", beside))


def taef2() -> str:
    return str(models() / "taef2_encoder.safetensors")


def trained() -> str:
    """TAEF2 where its file is on this machine, else the embedded encoder."""
    return taef2() if Path(taef2()).is_file() else "embedded"


def _untrained_kl() -> nn.Module:
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = AutoencoderKL(**KL)
        return network


#: Name -> what `load_encoder` takes.
SPECS: dict[str, Callable[[], EncoderSpec]] = {"kl": _untrained_kl, "taef2": taef2, "embedded": lambda: "embedded"}


@functools.lru_cache(maxsize=1)
def encoder(name: str) -> nn.Module:
    """An encoder's module alone, images [B, 3, h, w] in [0, 1] to latents; the same for cases that follow each other.

    Raises ShadeFastError where its weights are not there.
    """
    return load_encoder(SPECS[name]()).module


@functools.lru_cache(maxsize=1)
def perceptual() -> Perceptual:
    """The strictest LPIPS network whose weights are on this machine."""
    return load_perceptual("auto")
