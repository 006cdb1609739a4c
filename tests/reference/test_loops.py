from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn

from shade_fast.reference import mist_loop, paper_loop, photoguard_loop, release_loop


def small_encoder(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 4, 3, 2, 1)
    )
    return encoder.to(dtype).requires_grad_(False)


def photograph_like(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Smooth images that hold black and white patches, so that the range's ends are met."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 7, 7, generator=generator) * 1.6 - 0.3
    fine = torch.nn.functional.interpolate(coarse, size=(48, 40), mode="bicubic").clamp(0, 1)
    return (fine * 255).round().to(dtype) / 255


def test_release_is_the_published_description_step_by_step() -> None:
    """DESIGN of the release, written out: signed steps that fall linearly from linf to linf/100, in float32."""
    encode, x = small_encoder(torch.float32), photograph_like(1, torch.float32)
    anchor_latent, linf, steps = torch.randn(1, 4, 6, 5), 0.05, 30
    delta = torch.zeros_like(x)
    for i in range(steps):
        delta.requires_grad_(True)
        loss = torch.norm(encode((x + delta).clamp(0, 1)) - anchor_latent)
        (gradient,) = torch.autograd.grad(loss, delta)
        a = linf - (linf - linf / 100) / steps * i
        delta = (delta.detach() - a * gradient.sign()).clamp(-linf, linf)
        ours = release_loop(encode, x, anchor_latent, linf, steps=steps) if i == steps - 1 else None
    assert ours is not None
    assert (ours - (x + delta).clamp(0, 1)).abs().max() <= 1e-6


def test_release_takes_the_same_steps_as_on_the_release_s_own_value_range() -> None:
    """The authors' code works on [-1, 1] pixels with a box of linf / 0.5; in float64 no sign hangs on rounding."""
    encode, x = small_encoder(torch.float64), photograph_like(1, torch.float64)
    anchor_latent, linf, steps = torch.randn(1, 4, 6, 5, dtype=torch.float64), 0.05, 60
    source, box = 2 * x - 1, linf / 0.5
    modifier = torch.zeros_like(source)
    for i in range(steps):
        step_size = box - (box - box / 100) / steps * i
        modifier.requires_grad_(True)
        adversarial = torch.clamp(modifier + source, -1, 1)
        loss = (encode((adversarial + 1) / 2) - anchor_latent).norm()
        (gradient,) = torch.autograd.grad(loss, modifier)
        modifier = torch.clamp(modifier.detach() - torch.sign(gradient) * step_size, -box, box)
    published = (torch.clamp(modifier + source, -1, 1) + 1) / 2
    assert (release_loop(encode, x, anchor_latent, linf, steps=steps) - published).abs().max() <= 1e-6


def test_release_reports_the_distance_before_each_step_and_treats_images_alone() -> None:
    encode, x = small_encoder(torch.float64), photograph_like(3, torch.float64)
    anchor_latent = torch.randn(4, 6, 5, dtype=torch.float64)
    history: list[torch.Tensor] = []
    together = release_loop(encode, x, anchor_latent, 0.05, steps=8, on_step=lambda _, d: history.append(d))
    alone = torch.cat([release_loop(encode, image[None], anchor_latent, 0.05, steps=8) for image in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    assert len(history) == 8
    torch.testing.assert_close(history[0], (encode(x) - anchor_latent).flatten(1).norm(dim=1))
    assert bool((history[-1] < history[0]).all())


def test_paper_is_adam_on_the_penalised_squared_distance() -> None:
    encode, x = small_encoder(torch.float64), photograph_like(2, torch.float64)
    anchor_latent = torch.randn(4, 6, 5, dtype=torch.float64)

    def lpips(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return 40 * (a - b).square().flatten(1).mean(dim=1)

    delta = torch.zeros_like(x)  # on [-1, 1] pixels, as the paper's learning rate
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for i in range(1, 21):
        delta.requires_grad_(True)
        perturbed = (x + delta / 2).clamp(0, 1)
        loss = (encode(perturbed) - anchor_latent).square().sum() + (
            30 * (lpips(perturbed, x) - 0.07).clamp(min=0)
        ).sum()
        (gradient,) = torch.autograd.grad(loss, delta)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        step = (first / (1 - 0.9**i)) / ((second / (1 - 0.999**i)).sqrt() + 1e-8)
        delta = (delta - 0.01 * step).detach()
    ours = paper_loop(encode, lpips, x, anchor_latent, steps=20)
    torch.testing.assert_close(ours, (x + delta / 2).clamp(0, 1), rtol=0, atol=1e-9)


def projected(
    encode: nn.Module, x: torch.Tensor, start: torch.Tensor, anchor: torch.Tensor, box: float, sizes: Iterable[float]
) -> torch.Tensor:
    """Projected signed descent on [-1, 1] pixels, as PhotoGuard and Mist are published."""
    source, perturbed = 2 * x - 1, start
    for size in sizes:
        perturbed = perturbed.detach().requires_grad_(True)
        loss = (encode((perturbed + 1) / 2) - anchor).norm()
        (gradient,) = torch.autograd.grad(loss, perturbed)
        perturbed = (perturbed - size * gradient.sign()).detach()
        perturbed = torch.minimum(torch.maximum(perturbed, source - box), source + box).clamp(-1, 1)
    return (perturbed + 1) / 2


def test_photoguard_takes_falling_steps_from_noise_on_its_own_value_range() -> None:
    encode, x = small_encoder(torch.float64), photograph_like(1, torch.float64)
    anchor, steps = torch.randn(1, 4, 6, 5, dtype=torch.float64), 25
    noise = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    start = (2 * x - 1 + 0.06 * (2 * noise - 1)).clamp(-1, 1)
    sizes = [0.02 - (0.02 - 0.02 / 100) / steps * i for i in range(steps)]
    ours = photoguard_loop(encode, x, anchor, steps=steps, seed=3)
    assert (ours - projected(encode, x, start, anchor, 0.06, sizes)).abs().max() <= 1e-9
    assert (ours - x).abs().max() <= 0.03 + 1e-12


def test_mist_takes_equal_steps_from_the_clean_image() -> None:
    encode, x = small_encoder(torch.float64), photograph_like(1, torch.float64)
    anchor = torch.randn(1, 4, 6, 5, dtype=torch.float64)
    ours = mist_loop(encode, x, anchor, steps=25)
    assert (ours - projected(encode, x, 2 * x - 1, anchor, 32 / 255, [2 / 255] * 25)).abs().max() <= 1e-9
    assert (ours - x).abs().max() <= 16 / 255 + 1e-12


@pytest.mark.parametrize("loop", [photoguard_loop, mist_loop])
def test_projected_loops_treat_images_alone_and_leave_the_clean_ones(loop: Callable[..., torch.Tensor]) -> None:
    encode, x = small_encoder(torch.float64), photograph_like(3, torch.float64)
    clean, anchor = x.clone(), torch.randn(4, 6, 5, dtype=torch.float64)
    history: list[torch.Tensor] = []
    together = loop(encode, x, anchor, steps=8, on_step=lambda _, distance: history.append(distance))
    alone = torch.cat([loop(encode, image[None], anchor, steps=8) for image in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    assert torch.equal(x, clean) and not x.requires_grad
    assert len(history) == 8 and bool((history[-1] < history[0]).all())
