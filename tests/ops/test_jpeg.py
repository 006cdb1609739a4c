"""JPEG's arithmetic: kernels against the plain-torch body, forward and backward. `tests/test_transforms.py` holds the
body against real files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shade_fast.ops import jpeg, native
from shade_fast.ops.jpeg import _cosines, _steps
from shade_fast.terms.errors import ShadeFastError

SHAPES = [
    (1, 3, 16, 16),
    (1, 3, 1, 1),
    (2, 3, 33, 47),
    (1, 3, 8, 500),
    (1, 3, 131, 24),
    (0, 3, 8, 8),
    (1, 3, 272, 530),  # several threads, and several tiles of chroma
]

pytestmark = pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")


def images_of(shape: tuple[int, ...]) -> torch.Tensor:
    """Waves with a little noise, in parts beyond black and white."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(shape[2]), torch.arange(shape[3]), indexing="ij")
    waves = torch.stack([torch.sin(x / 7 + y / 11), torch.cos(x / 5), torch.sin(y / 3 - x / 17)])
    return (0.5 + 0.5 * waves + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("quality", [100, 95, 75, 30, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_every_isa_shows_what_the_reference_shows(shape: tuple[int, ...], quality: int, every_isa: list[str]) -> None:
    images = images_of(shape)
    expected = jpeg(images, quality, backend="reference")
    results = []
    for isa in every_isa:
        native.cpu().select_isa(isa)
        results.append(jpeg(images, quality))
    for result in results:
        assert torch.equal(result, results[0])
        # A coefficient, or a colour, near a half may fall to the other side.
        same = (result == expected).float()
        assert not result.numel() or float(same.mean()) > 0.97
        assert not result.numel() or float((result - expected).abs().mean()) < 0.2 / 255


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0]], ids=lambda shape: "x".join(map(str, shape)))
def test_the_gradient_is_the_references(shape: tuple[int, ...]) -> None:
    images = images_of(shape).requires_grad_(True)
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    # 0 where either of them is clamped, so that a pixel on the other side of a half does not count.
    with torch.no_grad():
        clamped = [
            (shown == 0) | (shown == 1) for shown in (jpeg(images, 90, backend=b) for b in ("native", "reference"))
        ]
    gradient[clamped[0] | clamped[1]] = 0
    (native_gradient,) = torch.autograd.grad(jpeg(images, 90), images, gradient)
    (expected,) = torch.autograd.grad(jpeg(images, 90, backend="reference"), images, gradient)
    torch.testing.assert_close(native_gradient, expected, rtol=1e-5, atol=1e-5)


def test_no_gradient_flows_where_the_result_is_clamped() -> None:
    images = torch.zeros(1, 3, 32, 32)
    images[..., 16:] = 1.0
    images[..., 9:11] = 0.6  # rings around it leave the range on its dark side
    images.requires_grad_(True)
    shown = jpeg(images, 20)
    (gradient,) = torch.autograd.grad(shown[:, 1].sum(), images)
    (expected,) = torch.autograd.grad(jpeg(images, 20, backend="reference")[:, 1].sum(), images)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)
    assert float((gradient[:, 1] == 0).float().mean()) > 0.1


def test_the_number_of_threads_does_not_matter() -> None:
    images = images_of((1, 3, 300, 200))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(jpeg(images, 80))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_the_defaults_of_torch_do_not_matter(other_defaults: Callable[[], Any]) -> None:
    images = images_of((1, 3, 33, 47))
    expected = [jpeg(images, 80, backend=backend) for backend in ("native", "reference")]
    for tables in (_steps, _cosines):
        tables.cache_clear()
    with other_defaults():
        shown = [jpeg(images, 80, backend=backend) for backend in ("native", "reference")]
    assert all(torch.equal(one, other) for one, other in zip(shown, expected, strict=True))


@pytest.mark.parametrize(
    ("images", "quality", "named"),
    [
        (torch.zeros(1, 1, 8, 8), 75, r"\[1, 1, 8, 8\]"),
        (torch.zeros(1, 3, 0, 8), 75, r"\[1, 3, 0, 8\]"),
        (torch.from_numpy(np.zeros((1, 3, 8, 8), np.uint8)), 75, "uint8"),
        (torch.zeros(1, 3, 8, 8), 0, "quality=0"),
        (torch.zeros(1, 3, 8, 8), 101, "quality=101"),
    ],
)
def test_bad_input_is_named(images: torch.Tensor, quality: int, named: str) -> None:
    with pytest.raises(ShadeFastError, match=named):
        jpeg(images, quality)
