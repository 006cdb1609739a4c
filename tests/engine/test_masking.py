"""Shares of the step: what texture is, and where it is measured."""

from __future__ import annotations

import pytest
import torch

from shade_fast.engine.masking import step_shares
from shade_fast.ops.optimizer_update import WHOLE_STEP


def noise(height: int, width: int, levels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    grey = 128 + torch.randint(-levels, levels + 1, (1, 1, height, width), generator=generator)
    return grey.to(torch.uint8).repeat(1, 3, 1, 1)


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (64, 48)])
@pytest.mark.parametrize("level", [0, 7, 255])
def test_an_image_without_texture_takes_whole_steps(shape: tuple[int, int], level: int) -> None:
    clean = torch.full((2, 3, *shape), level, dtype=torch.uint8)
    assert torch.equal(step_shares(clean, shape), torch.full_like(clean, WHOLE_STEP))


def test_texture_takes_longer_steps_than_flat_areas_and_the_mean_stays() -> None:
    clean = torch.full((1, 3, 40, 80), 90, dtype=torch.uint8)
    clean[..., 40:] = noise(40, 40, 40)
    shares = step_shares(clean, (40, 80)).float()
    assert shares[..., 50:].min() > 2 * shares[..., :30].max()
    assert shares[..., :30].min() >= 1
    assert shares.mean() == pytest.approx(WHOLE_STEP, rel=0.01)


def test_an_image_has_its_own_shares_in_a_batch_and_in_every_memory_order() -> None:
    clean = torch.cat([noise(31, 37, 60), noise(31, 37, 2, seed=1)])
    clean[0, :, :15] = 40
    together = step_shares(clean, (31, 37))
    for image in range(2):
        assert torch.equal(step_shares(clean[image : image + 1], (31, 37))[0], together[image])
    assert torch.equal(step_shares(clean.contiguous(memory_format=torch.channels_last), (31, 37)), together)


def test_grain_that_the_view_does_not_show_is_no_texture() -> None:
    clean = torch.full((1, 3, 512, 1024), 128, dtype=torch.uint8)
    clean[..., 512:] = noise(512, 512, 30)
    near, far = step_shares(clean, (512, 1024)).float(), step_shares(clean, (32, 64)).float()
    contrasts = [float(shares[..., 600:900].mean() / shares[..., 100:400].mean()) for shares in (near, far)]
    assert contrasts[0] > 2 * contrasts[1] > 2
