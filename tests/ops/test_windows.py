"""Max pooling and blurs: every instruction set against plain torch in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from shade_fast.ops import blur, max_pool, native
from shade_fast.ops.epilogue import Epilogue
from shade_fast.terms.errors import ShadeFastError

pytestmark = pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")

# kernel, stride, padding, past: how many windows more than those that end inside the padded image.
POOLS = [(2, 2, 0, 0), (2, 1, 0, 0), (3, 1, 0, 0), (3, 2, 0, 0), (3, 2, 0, 1), (3, 2, 1, 0), (5, 3, 2, 0), (1, 1, 0, 0)]
BLURS = [(3, 2, 2, 0), (3, 1, 1, 0), (3, 2, 0, 0), (4, 3, 1, 1), (1, 1, 0, 0)]


LARGE = (1, 64, 257, 257)  # results of 16 MiB go past the caches


def size(shape, kernel: int, stride: int, padding: int, past: int) -> tuple[int, int] | None:
    """How many windows there are; None where they do not fit."""
    down, across = ((side + 2 * padding - kernel) // stride + 1 + past for side in shape[2:])
    last = [(count - 1) * stride - padding for count in (down, across)]
    if min(down, across) < 1 or any(start >= side for start, side in zip(last, shape[2:], strict=True)):
        return None
    return down, across


def blurs_of(shape):
    for kernel, stride, padding, past in BLURS:
        windows = size(shape, kernel, stride, padding, past)
        if windows is None or min(shape[2:]) <= padding:
            continue
        reach = [(count - 1) * stride - padding + kernel - side for count, side in zip(windows, shape[2:], strict=True)]
        if all(over < side for over, side in zip(reach, shape[2:], strict=True)):
            yield kernel, stride, padding, windows


def pools_of(shape):
    for kernel, stride, padding, past in POOLS:
        windows = size(shape, kernel, stride, padding, past)
        if windows is not None:
            yield kernel, stride, padding, windows


def test_max(shape, layers) -> None:
    for kernel, stride, padding, windows in pools_of(shape):
        x = layers.images(shape).round(decimals=1)  # some windows have their largest value twice

        def run(threads: int, x=x, windows=windows, options=(kernel, stride, padding)) -> tuple[Tensor, Tensor]:
            out = layers.poisoned((*shape[:2], *windows))
            index = torch.full((shape[0], *windows, shape[1]), 255, dtype=torch.uint8)
            layers.run(max_pool.bind(x, out, index, *options, threads))
            alone = layers.poisoned((*shape[:2], *windows))
            layers.run(max_pool.bind(x, alone, None, *options, threads))
            assert torch.equal(alone, out)
            return out, index

        out, index = layers.same_on_any_threads(run)
        expected, expected_index = max_pool.reference(x, kernel, stride, padding, windows)
        assert torch.equal(out, expected)
        assert torch.equal(index, expected_index)


def test_max_gradient(shape, parts, layers) -> None:
    for kernel, stride, padding, windows in pools_of(shape):
        index = torch.randint(0, kernel * kernel, (shape[0], *windows, shape[1])).to(torch.uint8)
        gradient = layers.images((*shape[:2], *windows))
        options = (kernel, stride, padding)
        expected = max_pool.reference_gradient(gradient.double(), index, shape, *options, Epilogue())
        # A sum of as many values as a pixel has windows.
        layers.check_with_epilogue(
            lambda out, epilogue, threads, tensors=(gradient, index), options=options: max_pool.bind_gradient(
                *tensors, out, *options, epilogue, threads
            ),
            expected,
            parts,
            tolerance=1e-6,
        )


def test_blur(shape, layers) -> None:
    for kernel, stride, padding, windows in blurs_of(shape):
        x, taps = layers.images(shape), layers.normal(kernel, kernel)

        def run(threads: int, x=x, taps=taps, windows=windows, options=(stride, padding)) -> tuple[Tensor]:
            out = layers.poisoned((*shape[:2], *windows))
            layers.run(blur.bind(x, taps, out, *options, threads))
            return (out,)

        (out,) = layers.same_on_any_threads(run)
        expected = blur.reference(x.double(), taps.double(), stride, padding, windows)
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=4e-6)  # up to 16 products of about 1


def test_blur_gradient(shape, parts, layers) -> None:
    for kernel, stride, padding, windows in blurs_of(shape):
        gradient, taps = layers.images((*shape[:2], *windows)), layers.normal(kernel, kernel)
        expected = blur.reference_gradient(gradient.double(), taps.double(), shape, stride, padding, Epilogue())
        layers.check_with_epilogue(
            lambda out, epilogue, threads, tensors=(gradient, taps), options=(stride, padding): blur.bind_gradient(
                *tensors, out, *options, epilogue, threads
            ),
            expected,
            parts,
            tolerance=2e-6,
        )


def test_large_results(layers) -> None:
    x, gradient = layers.images(LARGE), layers.images((1, 64, 256, 256))
    out, index = torch.empty_like(gradient), torch.zeros(1, 256, 256, 64, dtype=torch.uint8)
    layers.run(max_pool.bind(x, out, index, 2, 1, 0, 2))
    expected, expected_index = max_pool.reference(x, 2, 1, 0, (256, 256))
    assert torch.equal(out, expected)
    assert torch.equal(index, expected_index)
    expected = max_pool.reference_gradient(gradient.double(), index, LARGE, 2, 1, 0, Epilogue())
    layers.check_with_epilogue(
        lambda out, epilogue, threads: max_pool.bind_gradient(gradient, index, out, 2, 1, 0, epilogue, threads),
        expected,
        "gate",
        tolerance=1e-6,
    )
    taps = layers.normal(2, 2)
    expected = blur.reference_gradient(gradient.double(), taps.double(), LARGE, 1, 0, Epilogue())
    layers.check_with_epilogue(
        lambda out, epilogue, threads: blur.bind_gradient(gradient, taps, out, 1, 0, epilogue, threads),
        expected,
        "in place",
        tolerance=2e-6,
    )


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 0)])
def test_the_reference_is_torchs(kernel: int, stride: int, padding: int) -> None:
    x = torch.randn(2, 3, 11, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = functional.max_pool2d(x, kernel, stride, padding)
    out, index = max_pool.reference(x.detach(), kernel, stride, padding, tuple(expected.shape[2:]))
    assert torch.equal(out, expected)
    gradient = torch.randn_like(out)
    (dx,) = torch.autograd.grad(expected, x, gradient)
    result = max_pool.reference_gradient(gradient, index, tuple(x.shape), kernel, stride, padding, Epilogue())
    torch.testing.assert_close(result, dx)


def test_infinities_and_nan(layers) -> None:
    x = layers.channels_last(torch.full((1, 33, 2, 4), -torch.inf))
    x[..., 0, 3] = torch.nan
    x[..., 1, 2] = torch.inf
    out, index = layers.poisoned((1, 33, 1, 2)), torch.full((1, 1, 2, 33), 9, dtype=torch.uint8)
    layers.run(max_pool.bind(x, out, index, 2, 2, 0, 1))
    assert out[..., 0].eq(-torch.inf).all() and index[:, :, 0].eq(0).all()
    assert out[..., 1].isnan().all() and index[:, :, 1].eq(1).all()


def test_what_does_not_fit_is_refused() -> None:
    x, out = (torch.zeros(1, 3, *size).contiguous(memory_format=torch.channels_last) for size in ((6, 8), (3, 4)))
    index = torch.zeros(1, 3, 4, 3, dtype=torch.uint8)
    max_pool.bind(x, out, index, 2, 2, 0, 1)
    with pytest.raises(ShadeFastError, match="padding=2 do not fit an image of 6 by 8"):
        max_pool.bind(x, out, index, 2, 2, 2, 1)
    with pytest.raises(ShadeFastError, match="stride=3"):
        max_pool.bind(x, out, index, 2, 3, 0, 1)
    with pytest.raises(ShadeFastError, match="kernel=16"):
        max_pool.bind(x, out, index, 16, 2, 0, 1)
    with pytest.raises(ShadeFastError, match="index is"):
        max_pool.bind(x, out, index[..., :2], 2, 2, 0, 1)
    with pytest.raises(ShadeFastError, match="padding=6"):
        blur.bind(x, torch.zeros(3, 3), out, 2, 6, 1)
    with pytest.raises(ShadeFastError, match="taps is"):
        blur.bind(x, torch.zeros(3, 2), out, 2, 1, 1)
