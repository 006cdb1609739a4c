"""Frozen convolutions: every algorithm and instruction set against the plain-torch body in float64."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from shade_fast.ops import native
from shade_fast.ops.convolution import (
    ALGORITHMS,
    Convolution,
    bind,
    pack,
    reference,
    rotated,
    scratch_size,
    supports,
)
from shade_fast.ops.epilogue import Epilogue, mask_shape, pack_mask
from shade_fast.terms.errors import ShadeFastError

pytestmark = pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")

# Largest error as a part of the largest value, and what was measured: sums of up to a few thousand products in float32
# (1e-6); transforms that add values of opposite sign, the more the larger the tile (F(4x4): 3e-6, F(6x6): 3e-5); values
# split into two bfloat16s (6e-6; a single product 1.5e-5).
TOLERANCES = {"direct": 4e-6, "narrow": 4e-6, "winograd2": 4e-6, "tiles": 2e-5, "winograd4": 1e-5, "winograd6": 5e-5}

# Convolution, input [B, H, W], size of the result.
CASES = [
    (Convolution(3, 16, (3, 3), padding=(1, 1)), (1, 9, 13), (9, 13)),
    (Convolution(1, 1, (3, 3), padding=(1, 1)), (3, 1, 1), (1, 1)),
    (Convolution(16, 17, (3, 3), padding=(1, 1)), (2, 12, 7), (12, 7)),
    (Convolution(33, 31, (3, 3), padding=(1, 1)), (1, 19, 23), (19, 23)),
    (Convolution(64, 100, (3, 3), padding=(1, 1)), (1, 17, 30), (17, 30)),
    (Convolution(128, 48, (3, 3), padding=(0, 0)), (1, 13, 8), (11, 6)),
    (Convolution(500, 40, (3, 3), padding=(1, 1)), (1, 6, 5), (6, 5)),
    (Convolution(17, 64, (3, 3), padding=(3, -1)), (2, 8, 9), (13, 11)),  # larger than the input on all sides, and cut
    (Convolution(5, 24, (3, 3), padding=(1, 1)), (0, 8, 8), (8, 8)),
    (Convolution(5, 24, (3, 3), padding=(1, 1)), (2, 8, 8), (0, 8)),
    (Convolution(16, 32, (3, 3), stride=2, padding=(1, 1)), (1, 22, 17), (11, 9)),
    (Convolution(64, 33, (3, 3), stride=2, padding=(0, 0)), (1, 16, 18), (8, 9)),  # padded right and below
    (Convolution(33, 64, (3, 3), up=2, padding=(2, 2)), (1, 8, 9), (16, 18)),
    (Convolution(32, 16, (3, 3), up=2, padding=(1, 1)), (2, 11, 9), (22, 17)),
    (Convolution(40, 20, (3, 3), stride=2, padding=(1, 0)), (3, 31, 29), (16, 14)),
    (Convolution(20, 40, (3, 3), up=2, padding=(1, 2)), (3, 16, 14), (31, 29)),
    (Convolution(16, 48, (3, 3), stride=2, padding=(4, -3)), (1, 9, 12), (8, 4)),
    (Convolution(48, 16, (3, 3), up=2, padding=(-2, 5)), (1, 8, 4), (9, 12)),
    (Convolution(16, 16, (3, 3), up=2, padding=(2, 2)), (1, 3, 5), (1, 1)),
    (Convolution(100, 31, (1, 1)), (1, 10, 13), (10, 13)),
    (Convolution(20, 33, (1, 1)), (3, 1, 31), (1, 31)),
    (Convolution(31, 100, (1, 1), stride=2), (1, 10, 13), (5, 7)),
    (Convolution(100, 31, (1, 1), up=2), (1, 5, 7), (10, 13)),  # three of four pixels meet no tap
    (Convolution(3, 64, (11, 11), stride=4, padding=(2, 2)), (1, 31, 40), (7, 9)),
    (Convolution(64, 3, (11, 11), up=4, padding=(8, 8)), (1, 7, 9), (31, 40)),
    (Convolution(17, 20, (5, 5), padding=(2, 2)), (1, 9, 10), (9, 10)),
    (Convolution(4, 5, (2, 4), stride=3, padding=(0, 3)), (1, 11, 5), (5, 4)),
    (Convolution(1200, 8, (1, 2)), (1, 3, 5), (3, 4)),
    (Convolution(128, 3, (3, 3), padding=(1, 1)), (1, 7, 21), (7, 21)),
    (Convolution(100, 8, (3, 3), padding=(1, 1)), (2, 5, 11), (5, 11)),
    (Convolution(16, 4, (3, 3), stride=2, padding=(1, 1)), (1, 12, 31), (6, 16)),
    (Convolution(16, 3, (3, 3), up=2, padding=(1, 1)), (1, 6, 16), (12, 31)),
    (Convolution(3, 1, (5, 4), padding=(2, 2)), (1, 6, 9), (6, 9)),
    (Convolution(256, 176, (3, 3), padding=(1, 1)), (1, 1, 30), (1, 30)),  # a row: threads have filters of their own
    # several blocks of rows and of columns for each of two threads
    (Convolution(72, 40, (3, 3), padding=(1, 1)), (1, 50, 150), (50, 150)),
    (Convolution(64, 20, (3, 3), stride=2, padding=(0, 0)), (2, 45, 271), (22, 135)),
    (Convolution(20, 64, (3, 3), up=2, padding=(2, 2)), (2, 22, 135), (45, 271)),
]


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def nan(*shape: int) -> Tensor:
    return channels_last(torch.full(shape, torch.nan))


def run(
    algorithm: str, convolution: Convolution, weight: Tensor, x: Tensor, out: Tensor, epilogue: Epilogue, threads: int
) -> None:
    packed = pack(algorithm, convolution, weight)
    size = scratch_size(algorithm, convolution, tuple(x.shape), tuple(out.shape), threads)
    scratch = torch.full((size + 64,), torch.nan)
    native.check(native.cpu(), bind(algorithm, convolution, packed, x, out, epilogue, scratch, threads)())
    assert bool(scratch[size:].isnan().all()), "more scratch memory is written than was asked for"


def relative_error(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).abs().max() / exact.abs().max()) if exact.numel() else 0.0


def draw(convolution: Convolution, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch, height, width = shape
    x = channels_last(torch.randn(batch, convolution.channels, height, width, generator=generator))
    weight = torch.randn(convolution.filters, convolution.channels, *convolution.kernel, generator=generator)
    return x, weight


def case_id(case: object) -> str:
    if isinstance(case, Convolution):
        kernel = "x".join(map(str, case.kernel))
        return f"{case.channels}-{case.filters}-{kernel}-s{case.stride}u{case.up}"
    return "x".join(map(str, case)) if isinstance(case, tuple) else str(case)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("convolution", "shape", "out_size"), CASES, ids=case_id)
def test_every_algorithm_equals_the_reference(
    isa: str, algorithm: str, convolution: Convolution, shape: tuple[int, int, int], out_size: tuple[int, int]
) -> None:
    if not supports(algorithm, convolution):
        with pytest.raises(ShadeFastError, match="does not support"):
            pack(algorithm, convolution, torch.zeros(1))
        return
    x, weight = draw(convolution, shape)
    exact = reference(convolution, weight.double(), x.double(), out_size)
    results = []
    for threads in (1, 2, 4):
        out = nan(shape[0], convolution.filters, *out_size)
        run(algorithm, convolution, weight, x, out, Epilogue(), threads)
        results.append(out)
    assert relative_error(results[0], exact) <= TOLERANCES[algorithm]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("filters", [5, 32, 48, 50])
def test_every_part_of_the_epilogue(isa: str, algorithm: str, filters: int) -> None:
    convolution = Convolution(20, filters, (3, 3), padding=(1, 1))
    if not supports(algorithm, convolution):
        pytest.skip(f"{algorithm} does not support {convolution}")
    generator = torch.Generator().manual_seed(1)
    x, weight = draw(convolution, (2, 9, 11))
    exact = reference(convolution, weight.double(), x.double(), (9, 11))
    shape = (2, filters, 9, 11)
    bias, residual = torch.randn(filters, generator=generator), channels_last(torch.randn(shape, generator=generator))
    gate = pack_mask(torch.rand(shape, generator=generator) < 0.5)
    for parts in (
        {"bias": bias},
        {"residual": residual},
        {"relu": True},
        {"gate": gate},
        {"bias": bias, "residual": residual, "relu": True, "gate": gate},
    ):
        for in_place in (False, True) if "residual" in parts else (False,):
            out = residual.clone() if in_place else nan(*shape)
            positive = torch.full(mask_shape(shape), -1, dtype=torch.int16)
            epilogue = Epilogue(**{**parts, "positive": positive, **({"residual": out} if in_place else {})})
            run(algorithm, convolution, weight, x, out, epilogue, 2)

            wide = {name: part.double() if name in ("bias", "residual") else part for name, part in parts.items()}
            expected = Epilogue(**wide).reference(exact)
            assert relative_error(out, expected) <= TOLERANCES[algorithm]
            before = Epilogue(**{name: part for name, part in parts.items() if name in ("bias", "residual")})
            unmasked = nan(*shape)
            run(algorithm, convolution, weight, x, unmasked, before, 1)
            assert torch.equal(positive, pack_mask(unmasked > 0))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_image_does_not_depend_on_its_neighbours(isa: str, algorithm: str) -> None:
    convolution = Convolution(24, 8, (3, 3), padding=(1, 1))
    if not supports(algorithm, convolution):
        pytest.skip(f"{algorithm} does not support {convolution}")
    x, weight = draw(convolution, (3, 13, 9))
    together = nan(3, 8, 13, 9)
    run(algorithm, convolution, weight, x, together, Epilogue(), 2)
    for i in range(3):
        alone = nan(1, 8, 13, 9)
        run(algorithm, convolution, weight, channels_last(x[i : i + 1]), alone, Epilogue(), 1)
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("convolution", [case[0] for case in CASES if min(case[0].padding) >= 0], ids=case_id)
def test_the_gradient_is_autograds(convolution: Convolution) -> None:
    if convolution.up > 1:
        convolution = convolution.gradient()
    weight = torch.randn(convolution.filters, convolution.channels, *convolution.kernel, dtype=torch.float64)
    x = torch.randn(2, convolution.channels, 23, 18, dtype=torch.float64, requires_grad=True)
    y = functional.conv2d(x, weight, stride=convolution.stride, padding=convolution.padding)
    g = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, g)
    gradient = reference(convolution.gradient(), rotated(weight), g, (23, 18))
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(reference(convolution, weight, x, tuple(y.shape[2:])), y)
    assert convolution.gradient().gradient() == convolution


class SmallConvolution:
    """A call on two threads, and what its result is on one."""

    def __init__(self, algorithm: str) -> None:
        convolution = Convolution(32, 32, (3, 3), padding=(1, 1))
        self.x, weight = draw(convolution, (1, 24, 24))
        self.expected, self.out = nan(1, 32, 24, 24), nan(1, 32, 24, 24)
        run(algorithm, convolution, weight, self.x, self.expected, Epilogue(), 1)
        self.packed = pack(algorithm, convolution, weight)
        shape = (1, 32, 24, 24)
        self.scratch = torch.empty(scratch_size(algorithm, convolution, shape, shape, 2))
        self.call = bind(algorithm, convolution, self.packed, self.x, self.out, Epilogue(), self.scratch, 2)

    def repeat(self, times: int, wrong: list[int]) -> None:
        for i in range(times):
            self.out.fill_(torch.nan)
            if self.call() or not torch.equal(self.out, self.expected):
                wrong.append(i)


@pytest.fixture(params=["winograd4", "tiles"])
def parallel(request: pytest.FixtureRequest) -> str:
    """An algorithm: one, and the one that keeps state in registers of its threads."""
    name: str = request.param
    if not supports(name, Convolution(32, 32, (3, 3), padding=(1, 1))):
        pytest.skip(f"this machine does not run {name}")
    return name


def test_many_small_calls_from_several_threads_at_once(parallel: str) -> None:
    wrong: list[int] = []
    threads = [threading.Thread(target=SmallConvolution(parallel).repeat, args=(300, wrong)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_computes_the_same(parallel: str) -> None:
    small = SmallConvolution(parallel)
    native.check(native.cpu(), small.call())
    child = os.fork()
    if child == 0:  # torch's own threads did not survive the fork: only the compiled module may compute here
        status = 1
        try:
            failed = any(small.call() for _ in range(100))
            result, expected = (
                memoryview(tensor.permute(0, 2, 3, 1).numpy()) for tensor in (small.out, small.expected)
            )
            status = int(failed or result.tobytes() != expected.tobytes())
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_does_not_fit_is_refused() -> None:
    convolution = Convolution(4, 6, (3, 3), padding=(1, 1))
    x, weight = draw(convolution, (1, 5, 5))
    packed, out, scratch = pack("direct", convolution, weight), nan(1, 6, 5, 5), torch.empty(1_000_000)
    with pytest.raises(ShadeFastError, match="'fft'"):
        supports("fft", convolution)
    with pytest.raises(ShadeFastError, match="one of stride and up is 1"):
        supports("direct", Convolution(4, 6, (3, 3), stride=2, up=2))
    with pytest.raises(ShadeFastError, match=r"weight is \[6, 4, 3\]"):
        pack("direct", convolution, weight[..., 0])
    with pytest.raises(ShadeFastError, match="channels_last"):
        bind("direct", convolution, packed, x.contiguous(), out, Epilogue(), scratch, 1)
    with pytest.raises(ShadeFastError, match="do not fit"):
        bind("direct", convolution, packed, x, nan(1, 5, 5, 5), Epilogue(), scratch, 1)
    with pytest.raises(ShadeFastError, match="scratch is"):
        bind("direct", convolution, packed, x, out, Epilogue(), scratch[:100], 1)
    with pytest.raises(ShadeFastError, match="packed is"):
        bind("direct", convolution, packed[:-1], x, out, Epilogue(), scratch, 1)
    with pytest.raises(ShadeFastError, match="threads=0"):
        bind("direct", convolution, packed, x, out, Epilogue(), scratch, 0)
    for bias in (torch.zeros(5), torch.zeros(6, dtype=torch.float64)):
        with pytest.raises(ShadeFastError, match="bias is"):
            bind("direct", convolution, packed, x, out, Epilogue(bias=bias), scratch, 1)
    mask = torch.zeros(mask_shape(out.shape), dtype=torch.int16)
    for part in ({"bias": torch.zeros(6)}, {"residual": out}, {"positive": mask}, {"gate": mask}):
        elsewhere = Epilogue(**{name: tensor.to("meta") for name, tensor in part.items()})
        with pytest.raises(ShadeFastError, match="is on meta, the result on cpu"):
            bind("direct", convolution, packed, x, out, elsewhere, scratch, 1)
    for place in range(4):
        tensors = [tensor.to("meta") if i == place else tensor for i, tensor in enumerate((packed, x, out, scratch))]
        with pytest.raises(ShadeFastError, match="is on meta: these kernels run on cpu"):
            bind("direct", convolution, *tensors[:3], Epilogue(), tensors[3], 1)


def test_packed_weights_do_not_depend_on_the_defaults_of_torch(other_defaults: Callable[[], Any]) -> None:
    convolution = Convolution(4, 6, (3, 3), padding=(1, 1))
    _, weight = draw(convolution, (1, 5, 5))
    expected = pack("direct", convolution, weight)
    with other_defaults():
        packed = pack("direct", convolution, weight)
    assert torch.equal(packed, expected)


def test_the_compiled_module_refuses_what_is_out_of_range() -> None:
    module = native.cpu()
    sound = (1, 5, 5, 4, 5, 5, 6, 3, 3, 1, 1, 1, 1)
    epilogue = (0, 0, 0, False, 0)
    assert module.convolve(0, sound, 0, 0, 0, epilogue, 0, 1) == 1
    for place in (3, 6, 7, 8, 9, 10):
        unsound = (*sound[:place], 0, *sound[place + 1 :])
        assert not module.convolution_supports(0, unsound)
        assert module.convolve(0, unsound, 64, 64, 64, epilogue, 64, 1) == 1
    assert module.convolve(99, sound, 64, 64, 64, epilogue, 64, 1) == 1
    assert module.packed_weights_size(99, sound) == 0
