from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from shade_fast.encoders import Encoder, load_encoder
from shade_fast.engine import Problem
from shade_fast.perceptual import Perceptual, load_perceptual
from shade_fast.views import View


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 4, 3, 2, 1)
    )
    return load_encoder(module)


@pytest.fixture(scope="session")
def perceptual() -> Perceptual:
    return load_perceptual("st-alex")


@pytest.fixture(scope="session")
def make_problem(encoder: Encoder, perceptual: Perceptual) -> Callable[..., Problem]:
    """A problem over smooth random images: make_problem(batch, height, width, size=view size, lpips=True, seed=0)."""

    def make(
        batch: int,
        height: int,
        width: int,
        *,
        size: int | None = None,
        lpips: bool = True,
        seed: int = 0,
        encoders: int = 1,
        backend: str = "native",
    ) -> Problem:
        generator = torch.Generator().manual_seed(seed)
        plan = View(size).plan(height, width, encoder.factor)

        def images() -> torch.Tensor:
            coarse = torch.rand(batch, 3, 9, 9, generator=generator) * 1.4 - 0.2
            return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)

        clean = (255 * images()).round().to(torch.uint8)
        with torch.no_grad():
            anchors = [encoder.encode(plan.apply(images())) for _ in range(encoders)]
        return Problem(clean, plan, [encoder] * encoders, anchors, perceptual if lpips else None, backend)

    return make
