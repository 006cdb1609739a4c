"""The random transforms of a view: what they stand in for, their gradients, and whose draws they are."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shade_fast import Budget, ShadeFastError, View, poison_batch
from shade_fast.ops import axis, jpeg, native, separable
from shade_fast.views.transforms import (
    Blur,
    Crop,
    Draw,
    Flip,
    Jpeg,
    Noise,
    OneOf,
    Resize,
    Rounding,
    Transform,
    resample,
)

TRANSFORMS = [Resize(), Blur(), Crop(), Flip(), Noise(), Jpeg(), Rounding(), OneOf(Resize(), Jpeg())]


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.tensor(pixels).permute(2, 0, 1)[None] / 255


def as_pixels(images: torch.Tensor) -> np.ndarray:
    return 255 * images[0].permute(1, 2, 0).detach().numpy()


@pytest.mark.parametrize("quality", [95, 75, 40, 5])
@pytest.mark.parametrize("shape", [(64, 96), (45, 71)])
def test_jpeg_is_what_a_file_of_that_quality_shows(draw: Any, quality: int, shape: tuple[int, int]) -> None:
    pixels = draw(*shape, seed=3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    shown = np.asarray(Image.open(file)).astype(float)
    error = np.abs(as_pixels(jpeg(as_tensor(pixels), quality)) - shown)
    # libjpeg computes in whole numbers: coefficients near a half fall to the other side, a step of the table away.
    assert error.mean() < max(0.25 * np.abs(pixels - shown).mean(), 0.9)


def test_jpeg_leads_the_gradient_through() -> None:
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    images.requires_grad_(True)
    (grey,) = torch.autograd.grad(jpeg(images, 80).sum(), images)
    torch.testing.assert_close(grey, torch.ones_like(grey), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("inputs", "outputs"), [(61, 40), (40, 61), (64, 32)])
def test_filters_are_pillows(name: str, inputs: int, outputs: int) -> None:
    values = np.random.default_rng(0).random((1, inputs)).astype(np.float32)
    shown = Image.fromarray(values).resize((outputs, 1), Image.Resampling[name.upper()])
    np.testing.assert_allclose(resample(inputs, outputs, name) @ values[0], np.asarray(shown)[0], atol=1e-5)


@pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")
def test_a_separable_map_is_its_matrices_and_its_gradient_their_transposes() -> None:
    random = np.random.default_rng(0)
    across = np.triu(np.tril(random.normal(size=(31, 23)), 4), -9)
    axes = axis(resample(40, 17, "lanczos")), axis(across)
    images = torch.rand(2, 3, 40, 23, requires_grad=True)
    weights = torch.rand(2, 3, 17, 31)
    results = []
    for backend in ("native", "reference"):
        result = separable(images, *axes, backend=backend)
        results.append((result, *torch.autograd.grad(result, images, weights)))
    for tensor, other in zip(*results, strict=True):
        torch.testing.assert_close(tensor, other, rtol=0, atol=2e-5)


@pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")
def test_a_separable_map_does_not_depend_on_the_defaults_of_torch(other_defaults: Callable[[], Any]) -> None:
    axes = axis(resample(40, 17, "lanczos")), axis(np.eye(23))
    images = torch.rand(2, 3, 40, 23)
    for backend in ("native", "reference"):
        expected = separable(images, *axes, backend=backend)
        with other_defaults():
            assert torch.equal(separable(images, *axes, backend=backend), expected)


def test_a_map_is_refused_images_that_it_does_not_fit() -> None:
    fitting = axis(np.eye(8))
    with pytest.raises(ShadeFastError, match=r"\[B, C, 8, 8\]"):
        separable(torch.zeros(1, 3, 8, 9), fitting, fitting)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: type(transform).__name__)
@pytest.mark.parametrize("size", [(64, 64), (41, 77)])
def test_a_draw_keeps_size_and_range_and_follows_from_its_random_numbers(
    transform: Transform, size: tuple[int, int]
) -> None:
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0), requires_grad=True)
    results = [
        transform.draw(np.random.default_rng(seed), *size, backend).image(images)
        for seed, backend in ((1, "native"), (1, "reference"), *((seed, "native") for seed in range(2, 12)))
    ]
    assert results[0].shape == images.shape
    torch.testing.assert_close(
        results[0], results[1], rtol=0, atol=1e-2 if transform == OneOf(Resize(), Jpeg()) else 1e-5
    )
    assert float(results[0].min()) > -0.3 and float(results[0].max()) < 1.3
    (gradient,) = torch.autograd.grad(results[0].sum(), images)
    assert float(gradient.sum()) == pytest.approx(images.numel(), rel=0.15)
    if not isinstance(transform, Rounding):
        assert any(not torch.equal(results[0], other) for other in results[2:])


@pytest.mark.parametrize("transform", [Crop(0.3), Flip()], ids=lambda transform: type(transform).__name__)
def test_latents_go_where_the_image_goes(transform: Transform) -> None:
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    latents = torch.nn.functional.avg_pool2d(ramp, 8)
    for seed in range(4):
        drawn = transform.draw(np.random.default_rng(seed), 64, 64, "reference")
        if drawn.latent is None:
            assert torch.equal(drawn.image(ramp), ramp)
        else:
            expected = torch.nn.functional.avg_pool2d(drawn.image(ramp), 8)
            torch.testing.assert_close(drawn.latent(latents)[..., 1:-1], expected[..., 1:-1], rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("build", "value"),
    [
        (lambda: Resize(smallest=0), "smallest=0"),
        (lambda: Resize(filters=("cubic",)), "cubic"),
        (lambda: Jpeg(worst=90, best=80), "worst=90"),
        (lambda: Noise(-1), "largest=-1"),
        (lambda: Crop(0.9), "largest=0.9"),
        (lambda: Jpeg(60.5), "worst=60.5"),  # type: ignore[arg-type]
        (lambda: View(transforms=("jpeg",)), "jpeg"),  # type: ignore[arg-type]
        (lambda: View(512, Jpeg()), r"give a tuple of them"),  # type: ignore[arg-type]
        (lambda: View(512, (Jpeg,)), r"Jpeg is a class; give Jpeg\(\)"),  # type: ignore[arg-type]
        (lambda: OneOf(Jpeg), r"OneOf: Jpeg is a class"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_parameter_is_named(build: Any, value: str) -> None:
    with pytest.raises(ShadeFastError, match=value):
        build()


def test_an_images_draws_are_its_own(draw: Any, tiny_module: Any) -> None:
    images = [draw(64, 64, seed) for seed in range(3)]
    options: dict[str, Any] = {"encoder": tiny_module, "perceptual": None, "budget": Budget(0.05, None), "steps": 5}
    options |= {"view": View.robust(None), "target_ratio": 1.0}
    together = poison_batch(images, draw(64, 64, 9), **options)
    for index, image in enumerate(images):
        alone = poison_batch([image], draw(64, 64, 9), **options)[0]
        assert np.array_equal(alone.image, together[index].image)  # type: ignore[arg-type]
    other = poison_batch(images[:1], draw(64, 64, 9), **options, seed=1)[0]
    assert not np.array_equal(other.image, together[0].image)  # type: ignore[arg-type]


def test_the_published_loops_refuse_a_random_view(draw: Any, tiny_module: Any) -> None:
    with pytest.raises(ShadeFastError, match="published loops know no random view"):
        poison_batch([draw(64, 64)], draw(64, 64, 1), encoder=tiny_module, optimizer="release", view=View.robust(None))


def test_a_transform_of_ones_own(draw: Any, tiny_module: Any) -> None:
    class Dim:
        def draw(self, random: np.random.Generator, height: int, width: int, backend: str) -> Draw:
            seen.append((height, width))
            return Draw(lambda images: images * 0.9)

    seen: list[tuple[int, int]] = []
    result = poison_batch(
        [draw(64, 72)], draw(64, 64, 9), encoder=tiny_module, view=View(64, (Dim(),)), steps=3, perceptual=None,
        budget=Budget(0.05, None), target_ratio=1.0,
    )  # fmt: skip
    assert result[0].status == "ok"
    assert seen == [(64, 72)] * 3
