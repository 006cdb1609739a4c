from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shade_fast.encoders import load_encoder
from shade_fast.terms.errors import ShadeFastError


def pooled(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, 8)


@pytest.mark.parametrize(("factor", "channels"), [(1, 1), (8, 4), (64, 3)])
def test_factor_and_channels_of_a_module_are_found(factor: int, channels: int) -> None:
    module = nn.Conv2d(3, channels, factor, factor).train()
    encoder = load_encoder(module)
    assert (encoder.name, encoder.kind, encoder.factor, encoder.channels) == ("Conv2d", "module", factor, channels)
    assert module.training
    assert module.weight.requires_grad
    assert not encoder.module.training
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())


def test_module_in_half_precision_runs_in_float32(images: Tensor) -> None:
    module = nn.Conv2d(3, 4, 8, 8).double()
    latents = load_encoder(module).encode(images)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, module(images.double()).float())


def test_function_is_used_as_it_is(images: Tensor) -> None:
    encoder = load_encoder(pooled)
    assert (encoder.name, encoder.kind, encoder.factor, encoder.channels) == ("pooled", "callable", 8, 3)
    assert encoder.sha256 is None
    assert encoder.describe()["parameters"] == 0
    torch.testing.assert_close(encoder.encode(images), pooled(images))
    assert encoder.to("meta").encode(images.to("meta")).device.type == "meta"


def test_half_precision_latents_of_a_function_become_float32(images: Tensor) -> None:
    assert load_encoder(lambda x: pooled(x).half()).encode(images).dtype == torch.float32


@pytest.mark.parametrize("smallest", [200, 300])
def test_larger_images_where_small_ones_are_refused(smallest: int) -> None:
    seen = []

    def picky(images: Tensor) -> Tensor:
        seen.append(tuple(images.shape[2:]))
        if min(images.shape[2:]) < smallest:
            raise RuntimeError("too small")
        return pooled(images)

    assert load_encoder(picky).factor == 8
    assert seen[0] == (64, 64)


class Sampler(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        latents = pooled(images)
        return latents + torch.randn_like(latents)


def frozen_by_no_grad(images: Tensor) -> Tensor:
    with torch.no_grad():
        return pooled(images)


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda x: (pooled(x),), r"gave a tuple, not a tensor"),
        (lambda x: pooled(x).numpy(), r"gave a ndarray, not a tensor"),
        (lambda x: pooled(x).mean(1), r"gave \[2, 8, 8\], not latents \[2, C, h/f, w/f\]"),
        (lambda x: pooled(x)[:1], r"gave \[1, 3, 8, 8\], not latents"),
        (lambda x: pooled(x)[:, :, :0], r"gave \[2, 3, 0, 8\], not latents"),
        (lambda x: pooled(x).long(), r"gave torch.int64, not floating-point"),
        (lambda x: pooled(x) / 0, r"latents that are not finite"),
        (lambda x: pooled(x).repeat(1, x.shape[2] // 64, 1, 1), r"channels change with the image's size"),
        (lambda x: F.adaptive_avg_pool2d(x, 8), r"not smaller than the image by one whole factor"),
        (lambda x: F.avg_pool2d(x, 3), r"by one whole factor: \[2, 3, 64, 64\] -> \[2, 3, 21, 21\]"),
        (lambda x: F.avg_pool2d(x, (8, 4)), r"by one whole factor"),
        (lambda x: F.interpolate(x, scale_factor=2), r"by one whole factor"),
        (lambda x: pooled(x).transpose(2, 3), r"by one whole factor"),
        (frozen_by_no_grad, r"'frozen_by_no_grad' is not differentiable in the image .*leave out no_grad"),
        (lambda x: torch.from_numpy(pooled(x).numpy()), r"not differentiable in the image"),
        (lambda x: pooled(x).round(), r"its gradient is zero everywhere"),
        (lambda x: (x - x).sqrt() + x, r"its gradient is not finite"),
        (Sampler(), r"'Sampler' gives other latents for the same image .* mean, not a sample"),
        (nn.Linear(5, 5), r"'Linear' refused every image .*64x64: RuntimeError.*512x512"),
        (lambda x, y: x, r"refused every image .*64x64: TypeError"),
    ],
)
def test_wrong_encoder_is_refused_with_its_fault(encode, message: str) -> None:
    with pytest.raises(ShadeFastError, match=message):
        load_encoder(encode)


def test_module_that_cannot_be_copied_is_refused() -> None:
    module = nn.Conv2d(3, 4, 8, 8)
    module.cache = module.weight * 2
    with pytest.raises(ShadeFastError, match=r"Conv2d cannot be copied .*give a function that calls it"):
        load_encoder(module)


def test_latents_that_betray_the_probe_are_refused(images: Tensor) -> None:
    encoder = load_encoder(lambda x: F.avg_pool2d(x, 8 if min(x.shape[2:]) >= 64 else 4))
    with pytest.raises(ShadeFastError, match=r"gave latents \[2, 3, 8, 12\] for images \[2, 3, 32, 48\], not"):
        encoder.encode(images)
