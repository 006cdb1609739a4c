"""What every LPIPS network promises, whatever its weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shade_fast.ops.lpips_layer import lpips_layer
from shade_fast.perceptual import Perceptual
from shade_fast.perceptual.trunks import TRUNKS
from shade_fast.terms.errors import ShadeFastError

Pair = Callable[..., tuple[Tensor, Tensor]]
Build = Callable[[str], Perceptual]
every_network = pytest.mark.parametrize("name", list(TRUNKS))


@every_network
def test_same_image_has_distance_zero(name: str, random_perceptual: Build, image_pair: Pair) -> None:
    clean, perturbed = image_pair(40, 49, count=2)
    perceptual = random_perceptual(name)
    assert perceptual(clean, clean.clone()).tolist() == [0.0, 0.0]
    assert (perceptual(perturbed, clean) > 0).all()


@every_network
def test_kept_features_give_the_direct_distance(name: str, random_perceptual: Build, image_pair: Pair) -> None:
    clean, perturbed = image_pair(40, 49, count=2)
    perceptual = random_perceptual(name)
    kept = perceptual.features(clean)
    assert [feature.shape[1] for feature in kept] == list(TRUNKS[name].channels)
    for feature in kept:
        assert not feature.requires_grad
        lengths = feature.norm(dim=1)
        assert torch.all((lengths - 1).abs().lt(1e-5) | lengths.eq(0))
    assert torch.equal(perceptual.distance(perturbed, kept), perceptual(perturbed, clean))
    assert torch.equal(perceptual.distance(clean, kept), torch.zeros(2))


def test_only_the_perturbed_image_has_a_gradient(random_perceptual: Build, image_pair: Pair) -> None:
    clean, perturbed = image_pair(40, 49)
    perceptual = random_perceptual("st-alex")
    clean.requires_grad_()
    perturbed.requires_grad_()
    kept = [feature.requires_grad_() for feature in perceptual.features(clean)]
    perceptual.distance(perturbed, kept).sum().backward()
    assert perturbed.grad is not None and perturbed.grad.abs().sum() > 0
    assert clean.grad is None and all(feature.grad is None for feature in kept)
    assert not perceptual.training
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in perceptual.parameters())


@every_network
def test_gradient_equals_finite_differences(name: str, random_perceptual: Build, image_pair: Pair) -> None:
    clean, perturbed = (image.double() for image in image_pair(26, 33))
    perceptual = random_perceptual(name).to(torch.float64)
    kept = perceptual.features(clean)
    perturbed.requires_grad_()
    (gradient,) = torch.autograd.grad(perceptual.distance(perturbed, kept).sum(), perturbed)
    direction = torch.randn(clean.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step = 1e-6 * direction
    with torch.no_grad():
        rise = perceptual.distance(perturbed + step, kept) - perceptual.distance(perturbed - step, kept)
    torch.testing.assert_close((gradient * direction).sum(), rise[0] / 2e-6, rtol=1e-4, atol=1e-7)


def test_a_pixel_without_any_activation_has_a_finite_gradient() -> None:
    generator = torch.Generator().manual_seed(2)
    activations, clean = torch.rand(2, 1, 4, 5, 6, generator=generator)
    activations[..., :3] = 0.0
    activations.requires_grad_()
    (gradient,) = torch.autograd.grad(lpips_layer(activations, clean, torch.ones(4)).sum(), activations)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


@every_network
def test_one_colour_images_have_a_finite_gradient(name: str, random_perceptual: Build) -> None:
    perceptual = random_perceptual(name)
    images = torch.zeros(1, 3, 40, 40, requires_grad=True)
    for clean in (torch.zeros(1, 3, 40, 40), torch.ones(1, 3, 40, 40)):
        (gradient,) = torch.autograd.grad(perceptual(images, clean).sum(), images)
        assert gradient.isfinite().all()


@every_network
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (8, 8), (50, 3)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_small_images_are_padded_with_their_edges(
    name: str, size: tuple[int, int], random_perceptual: Build, image_pair: Pair
) -> None:
    perceptual = random_perceptual(name)
    side = perceptual.minimum_side
    clean, perturbed = image_pair(*size)

    def padded(image: Tensor) -> Tensor:
        for axis in (2, 3):
            missing = max(side - image.shape[axis], 0)
            index = torch.arange(image.shape[axis] + missing) - missing // 2
            image = image.index_select(axis, index.clamp(0, image.shape[axis] - 1))
        return image

    perturbed.requires_grad_()
    distance = perceptual(perturbed, clean)
    torch.testing.assert_close(distance, perceptual(padded(perturbed), padded(clean)))
    (gradient,) = torch.autograd.grad(distance.sum(), perturbed)
    assert gradient.shape == perturbed.shape and gradient.isfinite().all()


@every_network
def test_minimum_side_is_the_smallest_that_the_trunk_takes(name: str) -> None:
    stages, side = TRUNKS[name].build(), TRUNKS[name].minimum_side

    def run(image: Tensor) -> Tensor:
        for stage in stages:
            image = stage(image)
        return image

    with torch.no_grad():
        assert 0 not in run(torch.zeros(1, 3, side, side)).shape
        with pytest.raises(RuntimeError):
            run(torch.zeros(1, 3, side - 1, side))


def test_memory_layout_changes_nothing_and_inputs_are_not_written(random_perceptual: Build, image_pair: Pair) -> None:
    clean, perturbed = image_pair(40, 49, count=2)
    kept_clean, kept_perturbed = clean.clone(), perturbed.clone()
    perceptual = random_perceptual("st-alex")
    expected = perceptual(perturbed, clean)
    channels_last = perturbed.to(memory_format=torch.channels_last)
    transposed = perturbed.transpose(2, 3).contiguous().transpose(2, 3)
    strided = F.pad(perturbed, (0, 49)).view(2, 3, 40, 2, 49)[:, :, :, 0]
    for images in (channels_last, transposed, strided):
        torch.testing.assert_close(perceptual(images, clean), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(clean, kept_clean) and torch.equal(perturbed, kept_perturbed)


def test_an_image_alone_has_its_distance_in_a_batch(random_perceptual: Build, image_pair: Pair) -> None:
    clean, perturbed = image_pair(40, 49, count=3)
    perceptual = random_perceptual("st-alex")
    alone = torch.cat([perceptual(perturbed[i : i + 1], clean[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(perceptual(perturbed, clean), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", [8, 40])
def test_empty_batch_has_no_distances(side: int, random_perceptual: Build) -> None:
    images = torch.zeros(0, 3, side, side)
    assert random_perceptual("squeeze")(images, images).shape == (0,)


@pytest.mark.parametrize("shape", [(3, 40, 40), (1, 1, 40, 40), (1, 40, 40, 3), (1, 3, 0, 40)], ids=str)
def test_unfit_images_are_named(shape: tuple[int, ...], random_perceptual: Build) -> None:
    with pytest.raises(ShadeFastError, match=r"must be \[B,3,h,w\]"):
        random_perceptual("squeeze").features(torch.zeros(shape))


def test_other_dtype_is_an_error_that_says_so(random_perceptual: Build) -> None:
    with pytest.raises(ShadeFastError, match=r"torch\.float64 on cpu.*torch\.float32 on cpu.*\.to\("):
        random_perceptual("squeeze").features(torch.zeros(1, 3, 40, 40, dtype=torch.float64))


def test_features_of_other_images_are_an_error(random_perceptual: Build, image_pair: Pair) -> None:
    perceptual = random_perceptual("squeeze")
    kept = perceptual.features(image_pair(40, 49, count=2)[0])
    with pytest.raises(ShadeFastError, match="same number of images of the same size"):
        perceptual.distance(image_pair(40, 49)[0], kept)
    with pytest.raises(ShadeFastError, match="same number of images of the same size"):
        perceptual.distance(image_pair(48, 64, count=2)[0], kept)
    with pytest.raises(ShadeFastError, match="compares 7 layers, but 5"):
        perceptual.distance(image_pair(40, 49, count=2)[0], kept[:5])
