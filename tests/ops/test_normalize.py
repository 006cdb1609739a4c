"""Between uint8 images and a network's bfloat16 input, on the CPU. The CUDA kernels: tests/simt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shade_fast.ops import denormalize, native, normalize
from shade_fast.terms.errors import ShadeFastError

needs_gpu = pytest.mark.skipif(
    not (native.cuda_available() and torch.cuda.is_available()), reason="needs shade_fast._cuda and a GPU"
)
LPIPS = {"gain": (2 / 0.458, 2 / 0.448, 2 / 0.450), "offset": (-2.117, -2.036, -1.804)}


def every_level() -> Tensor:
    """An image whose channels hold each uint8 value."""
    return torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_to_minus_one_and_one(backend: str) -> None:
    result = normalize(every_level(), backend=backend)
    assert result.dtype == torch.bfloat16
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result, (2 * (every_level().float() / 255) - 1).bfloat16())
    assert result.min() == -1
    assert result.max() == 1


def test_a_perturbed_value_stays_in_the_image_s_range() -> None:
    delta = torch.tensor([0.5, -0.5, 0.1]).view(3, 1, 1, 1).expand(3, 3, 16, 16).contiguous()
    shown = (normalize(every_level().expand(3, 3, 16, 16), delta).float() + 1) / 2
    expected = (every_level().float() / 255 + delta).clamp(0, 1)
    torch.testing.assert_close(shown, expected, rtol=0, atol=2**-9)


@pytest.mark.parametrize("factors", [{}, LPIPS], ids=["to [-1, 1]", "lpips"])
def test_there_and_back_is_the_same_image(factors: dict[str, tuple[float, ...]]) -> None:
    clean = every_level()
    back = denormalize(normalize(clean, **factors), clean, levels=255, **factors)
    assert torch.equal(back, clean)


@pytest.mark.parametrize("levels", [0, 3, 16])
def test_the_way_back_stays_inside_the_box(levels: int) -> None:
    clean = every_level()
    delta = torch.randn((1, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 0.2
    change = denormalize(normalize(clean, delta), clean, levels=levels).int() - clean.int()
    assert change.abs().max() == levels
    assert torch.equal(denormalize(torch.full(clean.shape, torch.nan).bfloat16(), clean, levels=levels), clean)


def test_opcheck() -> None:
    clean = every_level().contiguous()
    for delta in (None, torch.zeros(clean.shape)):
        torch.library.opcheck(torch.ops.shade_fast.normalize.default, (clean, delta, [2.0] * 3, [-1.0] * 3))
    values = normalize(clean)
    torch.library.opcheck(torch.ops.shade_fast.denormalize.default, (values, clean, 16, [2.0] * 3, [-1.0] * 3))


@needs_gpu
def test_cuda_agrees_with_the_cpu() -> None:
    clean = every_level()
    delta = torch.randn((1, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 0.1
    values = normalize(clean.cuda(), delta.cuda(), **LPIPS)
    assert torch.equal(values.cpu(), normalize(clean, delta, **LPIPS))
    pixels = denormalize(values, clean.cuda(), levels=16, **LPIPS)
    assert torch.equal(pixels.cpu(), denormalize(values.cpu(), clean, levels=16, **LPIPS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clean": torch.zeros(1, 3, 4, 4)}, "clean is torch.float32"),
        ({"delta": torch.zeros(1, 3, 4, 5)}, r"delta is torch.float32 \[1, 3, 4, 5\]"),
        ({"gain": (1.0, 0.0, 1.0)}, r"gain=\[1.0, 0.0, 1.0\]"),
        ({"offset": (1.0, 2.0)}, r"offset=\[1.0, 2.0\]"),
        ({"backend": "fast"}, "'native' or 'reference'"),
    ],
)
def test_arguments_that_do_not_fit(change: dict[str, object], message: str) -> None:
    arguments = {"clean": torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "delta": torch.zeros(1, 3, 4, 4), **change}
    with pytest.raises(ShadeFastError, match=message):
        normalize(**arguments)  # type: ignore[arg-type]


def test_values_that_do_not_fit() -> None:
    clean = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ShadeFastError, match=r"values are torch\.float32"):
        denormalize(torch.zeros(1, 3, 4, 4), clean, levels=16)
    with pytest.raises(ShadeFastError, match="levels=256"):
        denormalize(torch.zeros(1, 3, 4, 4, dtype=torch.bfloat16), clean, levels=256)
