"""Antialiased resize: kernels against the plain-torch body, and the adjoint against autograd.

The body runs in float64: in float32 torch computes the filter's place from a rounded centre, 1e-4 off at pixel 1000.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from shade_fast.ops import native, resize
from shade_fast.ops.resize import _Gathered
from shade_fast.terms.errors import ShadeFastError

SHAPES = [
    ((1, 3, 64, 64), (32, 32)),
    ((2, 3, 97, 61), (40, 25)),
    ((1, 1, 1, 1), (1, 1)),
    ((1, 3, 8, 500), (8, 31)),
    ((1, 3, 500, 7), (13, 7)),
    ((1, 2, 7, 5), (19, 11)),  # enlarged
    ((1, 3, 40, 50), (60, 20)),  # one side enlarged
    ((1, 3, 211, 3), (1, 1)),
    ((0, 3, 8, 8), (4, 4)),
    ((1, 3, 1031, 1500), (512, 745)),  # several threads
]

pytestmark = pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")


def ids(case: object) -> str:
    return "x".join(map(str, case)) if isinstance(case, tuple) else str(case)


@pytest.mark.parametrize("order", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize(("shape", "size"), SHAPES, ids=ids)
def test_every_isa_equals_the_reference(
    shape: tuple[int, ...], size: tuple[int, int], order: str, every_isa: list[str]
) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    if order == "channels_last":
        images = images.contiguous(memory_format=torch.channels_last)
    if order == "sliced":
        images = torch.cat([images, images], dim=3)[..., : shape[3]]
    expected = resize(images.double(), size, backend="reference").float()
    results = []
    for isa in every_isa:
        native.cpu().select_isa(isa)
        results.append(resize(images, size))
    for result in results:
        torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)
        assert torch.equal(result, results[0])


@pytest.mark.parametrize(("shape", "size"), [case for case in SHAPES if case[0][0]], ids=ids)
def test_the_gradient_is_the_references(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(shape, generator=generator, requires_grad=True)
    weights = torch.randn(*shape[:2], *size, generator=generator)
    (gradient,) = torch.autograd.grad(resize(images, size), images, weights)
    exact = images.detach().double().requires_grad_(True)
    (expected,) = torch.autograd.grad(resize(exact, size, backend="reference"), exact, weights.double())
    torch.testing.assert_close(gradient, expected.float(), rtol=0, atol=2e-6)
    # As a GPU has it, here on the CPU.
    images = images.detach().contiguous(memory_format=torch.channels_last).requires_grad_(True)
    (gathered,) = torch.autograd.grad(_Gathered.apply(images, size), images, weights)
    torch.testing.assert_close(gathered, expected.float(), rtol=0, atol=2e-6)


def test_on_a_gpu_nothing_is_added_up_atomically() -> None:
    names = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            names.append(function._schema.name)
            return function(*args, **(kwargs or {}))

    images = torch.empty(1, 3, 96, 80, device="meta").requires_grad_(True)
    resize(images, (40, 33)).sum().backward()
    with Watch():
        resize(images, (40, 33)).sum().backward()
    assert "aten::_upsample_bilinear2d_aa" in names
    assert not any("backward" in name or "scatter" in name or "index_add" in name for name in names)


def test_it_is_what_pillow_does_before_its_rounding() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 131, 3), dtype=np.uint8)
    shown = np.asarray(Image.fromarray(pixels).resize((50, 37), Image.Resampling.BILINEAR)).astype(float)
    result = resize(torch.tensor(pixels).permute(2, 0, 1)[None] / 255, (37, 50))[0].permute(1, 2, 0)
    # Pillow rounds to uint8 twice, once after each axis.
    assert np.abs(255 * result.numpy() - shown).max() <= 1.01


def test_result_does_not_depend_on_threads() -> None:
    images = torch.rand(1, 3, 1031, 2000, generator=torch.Generator().manual_seed(0), requires_grad=True)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            result = resize(images, (300, 580))
            results.append((result.detach(), torch.autograd.grad(result.sum(), images)[0]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for result in results for one, other in zip(result, results[0], strict=True))


def test_opcheck() -> None:
    for operator in (torch.ops.shade_fast.resize.default, torch.ops.shade_fast.resize_adjoint.default):
        torch.library.opcheck(operator, (torch.rand(2, 3, 9, 7, requires_grad=True), 4, 5))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShadeFastError, match="uint8"):
        resize(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), (2, 2))
    with pytest.raises(ShadeFastError, match=r"size=\(0, 2\)"):
        resize(torch.zeros(1, 3, 4, 4), (0, 2))
