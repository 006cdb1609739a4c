from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from shade_fast import ShadeFastError, View


@pytest.mark.parametrize(
    ("size", "source", "factor", "resized", "crop"),
    [
        (512, (3000, 4000), 8, (512, 682), (512, 680)),
        (512, (4000, 3000), 8, (682, 512), (680, 512)),
        (512, (300, 451), 8, (300, 451), (296, 448)),  # never enlarged
        (512, (8, 4000), 8, (8, 4000), (8, 4000)),
        (100, (200, 200), 16, (100, 100), (96, 96)),
        (None, (1001, 777), 8, (1001, 777), (1000, 776)),
    ],
)
def test_plan(
    size: int | None, source: tuple[int, int], factor: int, resized: tuple[int, int], crop: tuple[int, int]
) -> None:
    plan = View(size).plan(*source, factor)
    assert (plan.source, plan.resized, plan.crop) == (source, resized, crop)


def test_apply_is_what_a_trainers_loader_does() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 131, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(pixels).resize((260, 180), Image.Resampling.BICUBIC))
    plan = View(64).plan(*smooth.shape[:2], 8)
    seen = plan.apply(torch.tensor(smooth).permute(2, 0, 1)[None] / 255)
    loaded = Image.fromarray(smooth).resize(plan.resized[::-1], Image.Resampling.BILINEAR)
    left, top = ((loaded.width - plan.crop[1]) // 2, (loaded.height - plan.crop[0]) // 2)
    expected = np.asarray(loaded.crop((left, top, left + plan.crop[1], top + plan.crop[0])))
    # The loader rounds to uint8, once after each axis.
    assert np.abs(255 * seen[0].permute(1, 2, 0).numpy() - expected).max() <= 1.01


def test_apply_is_linear_and_its_gradient_is_the_adjoint() -> None:
    generator = torch.Generator().manual_seed(0)
    plan = View(40).plan(97, 61, 8)
    images = torch.rand(2, 3, 97, 61, generator=generator, requires_grad=True)
    seen = plan.apply(images)
    other = torch.rand(seen.shape, generator=generator)
    (gradient,) = torch.autograd.grad(seen, images, other)
    torch.testing.assert_close((seen * other).sum(), (images * gradient).sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(plan.apply(images / 2 + 0.25), seen / 2 + 0.25)


@pytest.mark.parametrize("size", [0, -5, 2.5, True])
def test_a_size_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(ShadeFastError, match=f"size={size}"):
        View(size)  # type: ignore[arg-type]


def test_a_size_is_a_number_of_any_kind() -> None:
    size = View(np.int64(64)).size  # type: ignore[arg-type]
    assert (size, type(size)) == (64, int)


@pytest.mark.parametrize(("size", "source"), [(512, (1, 1)), (512, (7, 4000)), (4, (100, 100))])
def test_too_little_for_the_encoder_names_the_image_and_the_fix(size: int, source: tuple[int, int]) -> None:
    with pytest.raises(ShadeFastError, match=rf"{source[1]}x{source[0]} pixels.*leave this image out"):
        View(size).plan(*source, 8)
