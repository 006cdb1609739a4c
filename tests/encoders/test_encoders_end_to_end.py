"""Real encoders through the whole path."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from shade_fast import Budget, View, poison_batch
from shade_fast.images import decode

ROOT = Path(__file__).resolve().parents[2]
PHOTOGRAPHS = ROOT / "tests" / "photographs"
TAEF2 = Path(os.environ.get("SHADE_FAST_MODELS", ROOT.parent / "shared" / "models")) / "taef2_encoder.safetensors"


def square(name: str, side: int) -> np.ndarray:
    return np.asarray(ImageOps.fit(Image.fromarray(decode(PHOTOGRAPHS / name).pixels), (side, side)))


def test_kl_with_the_sd15_configuration_from_a_folder(tmp_path: Path) -> None:
    """Random weights, but the layers, the attention and the scaling of a Stable Diffusion 1.5 encoder."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=512,
        scaling_factor=0.18215,
    ).save_pretrained(tmp_path / "vae")
    result = poison_batch(
        [square("astronaut.jpg", 64)],
        "flower",
        encoder=str(tmp_path / "vae"),
        perceptual="st-alex",
        steps=6,
        target_ratio=0.999,
    )
    assert result[0].status == "ok"
    assert result[0].lpips is not None
    assert result[0].lpips <= 0.07
    assert result[0].linf is not None
    assert result[0].linf <= 16 / 255


@pytest.mark.skipif(not TAEF2.exists(), reason="TAEF2's weights are not here; SHADE_FAST_MODELS names their folder")
def test_momentum_gets_further_in_60_steps_than_the_release_loop_in_100() -> None:
    distances = {}
    for optimizer, steps in (("release", 100), ("momentum", 60)):
        result = poison_batch(
            [square("koala.jpg", 96)],
            "castle",
            encoder=TAEF2,
            budget=Budget(linf=0.05, lpips=None),
            view=View(size=None),
            perceptual=None,
            optimizer=optimizer,
            steps=steps,
        )
        distances[optimizer] = result[0].distance_after or 0
    assert 0 < distances["momentum"] < distances["release"]


def test_the_embedded_encoder_on_photographs_of_mixed_sizes_holds_the_budget() -> None:
    paths = [PHOTOGRAPHS / name for name in ("astronaut.jpg", "koala.jpg", "macaw.png")]
    result = poison_batch(paths, "castle", view=View(size=128), perceptual="st-alex", steps=20)
    for image, path in zip(result, paths, strict=True):
        assert image.status == "ok", image
        assert image.image is not None
        clean = decode(path).pixels
        assert image.image.shape == clean.shape
        assert np.abs(image.image.astype(int) - clean.astype(int)).max() <= 16
        assert image.lpips is not None
        assert image.lpips <= 0.07
