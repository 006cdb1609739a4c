"""The CUDA kernels' own sources, run on the host thread by thread: to the bit what the plain-torch bodies give."""

from __future__ import annotations

import contextlib
from types import ModuleType

import pytest
import torch
from torch import Tensor

from shade_fast.ops import gpu, native
from shade_fast.ops.bisect_scale import on_gpu as bisect_scale
from shade_fast.ops.bisect_scale import reference as bisect_scale_reference
from shade_fast.ops.optimizer_update import on_gpu as optimizer_update
from shade_fast.ops.optimizer_update import reference as optimizer_update_reference
from shade_fast.ops.quantize import on_gpu as quantize
from shade_fast.ops.quantize import reference as quantize_reference

# No images, no values, one pixel, images that start off the 16-byte grid, whole groups of 16 values, several blocks.
SHAPES = [(0, 3, 4, 4), (2, 3, 0, 5), (3, 3, 1, 1), (2, 3, 13, 7), (1, 3, 16, 16), (2, 3, 47, 45)]
LINF = 16 / 255
GAIN, OFFSET = (2.0, 1 / 0.448, -0.5), (-1.0, 0.3, 0.0)
GUARD = 64

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


@pytest.fixture(autouse=True)
def emulated(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ops' own CUDA bodies, on tensors of the CPU."""
    monkeypatch.setattr(native, "cuda", lambda: module)
    monkeypatch.setattr(gpu, "stream", lambda tensor: contextlib.nullcontext(0))


def images(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clean images, and a perturbation with some NaN and infinities in it."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    delta = torch.randn(shape, generator=generator) * 0.05
    if delta.numel() > 200:
        delta.view(-1)[5:200:37] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 0.0])
    return clean, delta


def same(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@every_shape
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shared", [True, False], ids=["shares", "whole steps"])
def test_optimizer_update(shape: tuple[int, ...], order: torch.memory_format, shared: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, _ = images(shape)
    share = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) if shared else None
    delta = (torch.rand(shape, generator=generator) * 2 - 1) * LINF
    momentum, gradient = torch.randn(2, *shape, generator=generator)
    step = torch.rand(shape[0], generator=generator) * LINF
    if shape[0] > 2:
        gradient[1, 2] = torch.nan

    def run(update) -> list[Tensor]:
        tensors = [tensor.clone().contiguous(memory_format=order) for tensor in (delta, momentum, gradient, clean)]
        return [update(*tensors, share, step, 0.8, LINF), *tensors]

    for result, expected in zip(run(optimizer_update), run(optimizer_update_reference), strict=True):
        same(result, expected)


@every_shape
def test_quantize(shape: tuple[int, ...]) -> None:
    clean, delta = images(shape)
    scale = torch.rand(shape[0], generator=torch.Generator().manual_seed(1))
    same(quantize(clean, delta, scale, 16), quantize_reference(clean, delta, scale, 16))


@every_shape
@pytest.mark.parametrize("guess", [True, False], ids=["guess", "middle"])
def test_bisect_scale(shape: tuple[int, ...], guess: bool) -> None:
    clean, delta = images(shape)
    distance = torch.tensor([0.09, 0.03, torch.nan])[: shape[0]]
    interval = torch.tensor([[0.0, 1.0, 1.0], [0.25, 0.5, 0.375], [0.25, 0.5, 0.375]])[: shape[0]]
    arguments = (clean, delta, distance, interval, 0.07, 16, guess, GAIN, OFFSET)
    for result, expected in zip(bisect_scale(*arguments), bisect_scale_reference(*arguments), strict=True):
        same(result, expected)


def test_a_sum_is_the_same_wherever_its_image_lies(module: ModuleType) -> None:
    """Alone, in a batch, and off the 16-byte grid."""
    shape = (3, 3, 43, 37)
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    clean = torch.zeros(shape, dtype=torch.uint8)
    step = torch.full((3,), 0.01)

    def means(part: slice, shift: int) -> Tensor:
        tensors = [Off(tensor[part], shift) for tensor in (gradient * 0, gradient * 0, gradient, clean, clean)]
        count, elements = len(clean[part]), clean[0].numel()
        mean, scratch = torch.full((count,), torch.nan), torch.full((1000,), torch.nan, dtype=torch.float64)
        pointers = [*(one.pointer for one in tensors), step.data_ptr(), mean.data_ptr(), scratch.data_ptr()]
        assert module.optimizer_update(*pointers, count, elements, 0.8, LINF, 0) == 0
        return mean

    together = means(slice(0, 3), 0)
    assert torch.equal(means(slice(0, 3), 1), together)
    for i in range(3):
        assert torch.equal(means(slice(i, i + 1), i), together[i : i + 1])


class Off:
    """A copy of a tensor that starts `shift` values off the 16-byte grid, between guards that nothing may change."""

    def __init__(self, tensor: Tensor, shift: int) -> None:
        self.memory = torch.zeros(tensor.numel() + 2 * GUARD + 16, dtype=tensor.dtype)
        self.memory.view(torch.uint8).fill_(0x5A)
        size = tensor.element_size()
        start = GUARD + shift + (-self.memory.data_ptr() // size) % (16 // size)
        self.values = self.memory[start : start + tensor.numel()]
        self.values.copy_(tensor.reshape(-1))
        self.guards = (self.memory[:start], self.memory[start + tensor.numel() :])
        self.pointer = self.values.data_ptr()

    def intact(self) -> bool:
        return all(bool((guard.view(torch.uint8) == 0x5A).all()) for guard in self.guards)


@pytest.mark.parametrize("shift", [0, 1, 8])
def test_nothing_outside_the_results_is_written(shift: int, module: ModuleType) -> None:
    shape = (2, 7, 9, 3)  # as it lies in memory
    clean, delta = images(shape)
    count, elements = shape[0], clean[0].numel()
    scale, distance = torch.tensor([0.5, 1.0]), torch.tensor([0.05, 0.2])
    interval = torch.tensor([[0.0, 1.0, 1.0]] * 2)
    before, change = Off(clean, shift), Off(delta, shift)
    pixels, following = Off(clean * 0, shift), Off(interval * 0, 0)
    tried = Off(torch.zeros(shape, dtype=torch.bfloat16), shift)
    sizes, gain, offset = (count, elements), (2.0, 2.0, 2.0), (-1.0, -1.0, -1.0)
    affine = (*gain, *offset)
    state = (distance.data_ptr(), interval.data_ptr(), following.pointer)
    statuses = [
        module.quantize(before.pointer, change.pointer, scale.data_ptr(), pixels.pointer, *sizes, 16, 0),
        module.bisect_scale(before.pointer, change.pointer, *state, tried.pointer, *sizes, 0.07, True, 16, affine, 0),
    ]
    assert statuses == [0, 0]
    assert all(memory.intact() for memory in (before, change, pixels, following, tried))

    clean, delta = (tensor.permute(0, 3, 1, 2) for tensor in (clean, delta))
    narrowed, images_tried = bisect_scale_reference(clean, delta, distance, interval, 0.07, 16, True, gain, offset)
    for result, expected in (
        (pixels, quantize_reference(clean, delta, scale, 16)),
        (tried, images_tried),
    ):
        same(result.values.view(shape), expected.permute(0, 2, 3, 1).contiguous())
    same(following.values.view(2, 3), narrowed)


@pytest.mark.parametrize(
    "sizes", [(-1, 3), (65536, 3), (1, -3), (1, 4)], ids=["images", "many images", "values", "channels"]
)
def test_sizes_out_of_range_are_a_status(sizes: tuple[int, int], module: ModuleType) -> None:
    statuses = [module.bisect_scale(0, 0, 0, 0, 0, 0, *sizes, 0.07, False, 16, (1.0,) * 6, 0)]
    if sizes != (1, 4):
        statuses += [module.quantize(0, 0, 0, 0, *sizes, 16, 0), module.optimizer_update(*[0] * 8, *sizes, 0.8, 0.1, 0)]
    for status in statuses:
        with pytest.raises(RuntimeError, match="out of range"):
            native.check(module, status)
