"""What tests of the frozen networks' layers share: hard shapes, every instruction set, every part of an epilogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from shade_fast.ops import native
from shade_fast.ops.epilogue import Epilogue, mask_shape, pack_mask, unpack_mask
from shade_fast.ops.native import Call

SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (1, 5, 1, 9),
    (3, 16, 4, 3),
    (1, 17, 6, 5),
    (1, 31, 2, 2),
    (1, 33, 3, 8),
    (1, 64, 9, 2),
    (2, 100, 3, 3),
    (0, 16, 4, 4),
    (2, 33, 70, 61),  # several blocks, and two threads
]
EPILOGUES = ["", "bias", "residual", "in place", "positive", "relu", "gate", "bias residual positive relu gate"]

Bind = Callable[[Tensor, Epilogue, int], Call]


ISAS = native.cpu().isas if native.cpu_available() else ()


def _selected(isa: str) -> Iterator[str]:
    module = native.cpu()
    before = module.selected_isa()
    if module.select_isa(isa):
        pytest.skip(f"this machine does not run {isa}")
    yield isa
    module.select_isa(before)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """For products, which have kernels of their own for "amx"."""
    yield from _selected(request.param)


@pytest.fixture(params=[name for name in ISAS if name != "amx"])
def vectors(request: pytest.FixtureRequest) -> Iterator[str]:
    """For all other layers, whose kernels are the same for "amx" and "avx512"."""
    yield from _selected(request.param)


@pytest.fixture
def every_isa() -> Iterator[list[str]]:
    """The instruction sets that this machine runs; the one in use is put back afterwards."""
    module = native.cpu()
    before = module.selected_isa()
    yield [isa for isa in module.isas if module.select_isa(isa) == 0]
    module.select_isa(before)


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def shape(request: pytest.FixtureRequest) -> tuple[int, int, int, int]:
    shape: tuple[int, int, int, int] = request.param
    return shape


@pytest.fixture(params=EPILOGUES, ids=lambda parts: parts or "plain")
def parts(request: pytest.FixtureRequest) -> str:
    parts: str = request.param
    return parts


class Layers:
    """Makes channels-last tensors, runs bound calls on them and compares what they write."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)

    def images(self, shape: Sequence[int]) -> Tensor:
        return self.channels_last(self.normal(*shape))

    @staticmethod
    def channels_last(tensor: Tensor) -> Tensor:
        return tensor.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)

    def poisoned(self, shape: Sequence[int]) -> Tensor:
        return self.channels_last(torch.full(tuple(shape), torch.nan))

    @staticmethod
    def same_on_any_threads(run: Callable[[int], Sequence[Tensor]]) -> Sequence[Tensor]:
        """What run(threads) gives, the same bits for 1 and 2 threads."""
        one, two = run(1), run(2)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        return one

    @staticmethod
    def run(call: Call) -> None:
        native.check(native.cpu(), call())

    def check_with_epilogue(self, bind: Bind, values: Tensor, parts: str, tolerance: float) -> None:
        """Compare epilogue(values) with what a call writes; `values` are float64.

        An error may be `tolerance` as a part of the largest value.
        """
        given = self._epilogue(parts, values)

        def run(threads: int) -> tuple[Tensor, ...]:
            out = self.poisoned(values.shape)
            epilogue = given
            if "in place" in parts:
                out.copy_(given.residual)
                epilogue = epilogue._replace(residual=out)
            if given.positive is not None:
                epilogue = epilogue._replace(positive=torch.full_like(given.positive, -1))
            self.run(bind(out, epilogue, threads))
            return (out,) if epilogue.positive is None else (out, epilogue.positive)

        exact = given._replace(
            bias=None if given.bias is None else given.bias.double(),
            residual=None if given.residual is None else given.residual.double(),
        )
        out, *masks = self.same_on_any_threads(run)
        bound = tolerance * max(1.0, float(values.abs().max()) if values.numel() else 0.0)
        torch.testing.assert_close(out.double(), exact.reference(values), rtol=0, atol=bound)
        before = Epilogue(bias=exact.bias, residual=exact.residual).reference(values)
        for mask in masks:
            bits = unpack_mask(mask, values.shape[1])
            assert torch.equal(pack_mask(bits), mask), "bits past the last channel are 0"
            assert torch.equal(bits | (before.abs() <= bound), (before > 0) | (before.abs() <= bound))

    def _epilogue(self, parts: str, values: Tensor) -> Epilogue:
        shape = values.shape
        return Epilogue(
            bias=self.normal(shape[1]) if "bias" in parts else None,
            residual=self.images(shape) if "residual" in parts or "in place" in parts else None,
            positive=torch.zeros(mask_shape(shape), dtype=torch.int16) if "positive" in parts else None,
            relu="relu" in parts,
            gate=pack_mask(self.normal(*shape) > 0) if "gate" in parts else None,
        )


@pytest.fixture
def layers(vectors: str) -> Iterator[Layers]:
    """One for each instruction set, which is selected meanwhile; torch runs on one thread, the tensors being small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Layers()
    torch.set_num_threads(before)
