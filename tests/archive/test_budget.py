"""A hundred files of every kind, each measured again from its bytes alone: the bounds hold on what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from shade_fast import Budget, View, load_perceptual
from shade_fast.images import decode
from tests.archive.outputs import Run, by_key

#: What a camera, a scanner or a drawing program might write.
FORMATS: dict[str, dict[str, Any]] = {
    "png": {},
    "jpg": {"quality": 92},
    "jpeg": {"quality": 75},
    "webp": {"quality": 85},
}
BUDGET = Budget(linf=16 / 255, lpips=0.07)


def drawn(draw: Any, index: int) -> np.ndarray:
    """Textures, flat areas with a textured corner, gradients, hard edges, and noise, 64x64 or 64x72."""
    width = 64 if index % 2 else 72
    texture = draw(64, width, index)
    kind = index % 5
    if kind == 1:
        flat = np.full_like(texture, 40 + index)
        flat[:24, :24] = texture[:24, :24]
        return flat
    if kind == 2:
        ramp = np.linspace(0, 255, width).astype(np.uint8)
        return np.broadcast_to(ramp[None, :, None], (64, width, 3)).copy()
    if kind == 3:
        return np.where(np.indices((64, width)).sum(axis=0)[..., None] // 8 % 2 == 0, texture, 255 - texture)
    if kind == 4:
        return np.random.default_rng(index).integers(0, 256, texture.shape, dtype=np.uint8)
    return texture


def test_ninety_nine_of_a_hundred_are_ok_and_all_of_them_hold_their_bounds(run: Run, tmp_path: Path, draw: Any) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(100):
        suffix, options = list(FORMATS.items())[index // 5 % len(FORMATS)]
        Image.fromarray(drawn(draw, index)).save(folder / f"{index:03}.{suffix}", **options)
    network = load_perceptual("st-alex")
    view = View(size=64)
    report = run(folder, perceptual="st-alex", budget=BUDGET, view=view, steps=4)
    assert report.images == 100
    assert report.ok >= 99
    for key, row in by_key(report).items():
        if row.status != "ok":
            continue
        clean, shown = decode(folder / key).pixels, decode(tmp_path / "out" / key).pixels
        assert np.abs(clean.astype(int) - shown).max() <= 16, key
        plan = view.plan(*clean.shape[:2], 8)
        seen = [plan.apply(torch.tensor(pixels).permute(2, 0, 1)[None] / 255) for pixels in (clean, shown)]
        with torch.no_grad():
            assert float(network.distance(seen[1], network.features(seen[0]))) <= 0.07, key
