"""Rounding inside the L-infinity box: kernels against the plain-torch body, ties and extremes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shade_fast.ops import native, quantize
from shade_fast.terms.errors import ShadeFastError

SHAPES = [(0, 3, 4, 4), (1, 3, 1, 1), (2, 3, 0, 5), (1, 3, 13, 7), (3, 3, 31, 29), (2, 3, 127, 131)]

pytestmark = pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")
needs_gpu = pytest.mark.skipif(
    not (native.cuda_available() and torch.cuda.is_available()), reason="needs shade_fast._cuda and a GPU"
)


def random_arguments(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    delta = torch.randn(shape, generator=generator) * 0.05
    return clean, delta, torch.rand(shape[0], generator=generator)


@pytest.mark.parametrize("order", ["contiguous", "channels_last", "mixed", "sliced"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_every_isa_equals_the_reference(shape: tuple[int, ...], order: str, every_isa: list[str]) -> None:
    clean, delta, scale = random_arguments(shape)
    if order in ("channels_last", "mixed"):
        clean = clean.contiguous(memory_format=torch.channels_last)
    if order == "channels_last":
        delta = delta.contiguous(memory_format=torch.channels_last)
    if order == "sliced":
        clean = torch.cat([clean, clean], dim=3)[..., : shape[3]]
    expected = quantize(clean, delta, scale, levels=16, backend="reference")
    for isa in every_isa:
        native.cpu().select_isa(isa)
        result = quantize(clean, delta, scale, levels=16)
        assert torch.equal(result, expected), isa
        assert result.stride() == expected.stride()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_ties_are_rounded_to_even(backend: str) -> None:
    changes = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.25, 0.75, -0.75])
    clean = torch.full((1, 3, 3, 3), 100, dtype=torch.uint8)
    delta = changes.view(1, 1, 3, 3).expand(1, 3, 3, 3)
    # A scale of 1 / 255 makes the gain 1, so that the changes are exact.
    result = quantize(clean, delta, torch.tensor([1 / 255]), levels=255, backend=backend)
    assert result[0, 0].flatten().tolist() == [100, 102, 102, 100, 98, 98, 100, 101, 99]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_extremes(backend: str) -> None:
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 0.0])
    clean = torch.tensor([0, 5, 128, 250, 255, 255], dtype=torch.uint8)
    delta = values.view(6, 1, 1, 1).expand(6, 3, 1, 6)
    image = clean.view(1, 1, 1, 6).expand(6, 3, 1, 6)
    result = quantize(image, delta, torch.ones(6), levels=16, backend=backend)
    up, down = [16, 21, 144, 255, 255, 255], [0, 0, 112, 234, 239, 239]
    assert result[:, 0, 0].tolist() == [clean.tolist(), up, down, up, down, clean.tolist()]
    assert torch.equal(quantize(image, delta, torch.zeros(6), levels=16, backend=backend), image)


@pytest.mark.parametrize("levels", [0, 1, 16, 255])
def test_the_change_stays_within_the_levels(levels: int) -> None:
    clean, delta, _ = random_arguments((2, 3, 64, 65))
    result = quantize(clean, delta * 100, torch.ones(2), levels=levels)
    change = result.int() - clean.int()
    assert change.abs().max() <= levels
    inside = (clean >= levels) & (clean <= 255 - levels)
    if levels and inside.any():
        assert change[inside].abs().max() == levels


def test_result_does_not_depend_on_threads() -> None:
    arguments = random_arguments((2, 3, 1024, 1031))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(quantize(*arguments, levels=16))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.shade_fast.quantize.default, (*random_arguments((2, 3, 5, 7)), 16))


@needs_gpu
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_cuda_agrees_with_the_cpu(shape: tuple[int, ...]) -> None:
    arguments = random_arguments(shape)
    result = quantize(*(tensor.cuda() for tensor in arguments), levels=16)
    assert torch.equal(result.cpu(), quantize(*arguments, levels=16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clean": torch.zeros(1, 3, 4, 4)}, "clean is torch.float32"),
        ({"delta": torch.zeros(1, 3, 4, 5)}, "delta is torch.float32"),
        ({"scale": torch.zeros(2)}, "scale is torch.float32"),
        ({"levels": 256}, "levels=256"),
        ({"levels": 1.5}, "levels=1.5"),
        ({"backend": "fast"}, "'native' or 'reference'"),
    ],
)
def test_arguments_that_do_not_fit(change: dict[str, object], message: str) -> None:
    clean, delta, scale = random_arguments((1, 3, 4, 4))
    arguments = {"clean": clean, "delta": delta, "scale": scale, "levels": 16, **change}
    with pytest.raises(ShadeFastError, match=message):
        quantize(**arguments)  # type: ignore[arg-type]
