from __future__ import annotations

import torch
from torch import nn

from shade_fast.reference import paper_loop, release_loop


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
    alone = torch.cat([release_loop(encode, one[None], anchor_latent, 0.05, steps=8) for one in x])
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
