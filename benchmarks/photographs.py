"""The photographs that benchmarks work on: centre squares."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from shade_fast.archive import find_images
from shade_fast.images import UInt8Array, decode

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "photographs"


def squares(paths: Sequence[Path], side: int, count: int | None = None) -> list[UInt8Array]:
    """The centre squares [side, side, 3] of the first `count` image files in files and folders."""
    return [
        np.asarray(ImageOps.fit(Image.fromarray(decode(source.path).pixels), (side, side)))
        for source in find_images(paths)[:count]
    ]


@functools.lru_cache(maxsize=8)
def batch(side: int, count: int) -> torch.Tensor:
    """The first photographs of the project, float32 [count, 3, side, side] in [0, 1]."""
    pixels = np.stack(squares([FOLDER], side, count))
    return torch.tensor(pixels).permute(0, 3, 1, 2).contiguous() / 255
