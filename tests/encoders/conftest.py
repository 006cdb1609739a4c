from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def photograph() -> Tensor:
    """[1, 3, 256, 256]: `coffee` from scikit-image's data, by Rachel Michetti, CC0; cropped and shrunk."""
    with Image.open(Path(__file__).with_name("coffee.jpg")) as picture:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="session")
def models() -> Path:
    root = Path(__file__).parents[2]
    folder = Path(os.environ.get("SHADE_FAST_MODELS", root / "../shared/models"))
    if not (folder / "taef2_encoder.safetensors").is_file():
        pytest.skip(f"no taef2_encoder.safetensors in {folder}: name its folder in SHADE_FAST_MODELS")
    return folder
