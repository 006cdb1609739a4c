"""Products of matrices against plain torch in float64: sides with tails, either operand transposed, rows apart."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from shade_fast.ops import matrix_product, native
from shade_fast.terms.errors import ShadeFastError

pytestmark = pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")

# Rows, depth, columns: around the tile's, the panel's and the block's sides.
SIZES = [(1, 1, 1), (3, 5, 7), (14, 16, 32), (15, 17, 33), (113, 40, 31), (2, 513, 48), (230, 1030, 17), (64, 64, 100)]

# What each of the summed products may be off by, in float32 and of values split into two bfloat16s.
ROUNDING = {"direct": 2e-6, "tiles": 1e-5}


def matrix(rows: int, columns: int, layout: str, seed: int) -> Tensor:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    if layout == "transposed":
        return values.t().contiguous().t()
    return torch.cat([values, values], dim=1)[:, :columns] if layout == "rows apart" else values


@pytest.mark.parametrize(
    "layouts",
    [("plain", "plain"), ("transposed", "rows apart"), ("rows apart", "transposed"), ("transposed", "transposed")],
)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_isa_equals_the_reference(
    size: tuple[int, int, int], layouts: tuple[str, str], every_isa: list[str]
) -> None:
    rows, depth, columns = size
    left, right = matrix(rows, depth, layouts[0], 0), matrix(depth, columns, layouts[1], 1)
    before = torch.randn(rows, columns, generator=torch.Generator().manual_seed(2))
    for isa in every_isa:
        native.cpu().select_isa(isa)
        for algorithm, accumulate in itertools.product(filter(matrix_product.supports, ROUNDING), (False, True)):
            expected = before.double()
            matrix_product.reference(left.double(), right.double(), expected, 0.3, accumulate)
            made = []
            for threads in (1, 2):
                wide = torch.full((rows, columns + 5), torch.nan)
                out = wide[:, :columns]
                if accumulate:
                    out.copy_(before)
                scratch = torch.full((matrix_product.scratch_size(depth, columns, threads, algorithm),), torch.nan)
                call = matrix_product.bind(
                    left, right, out, scratch, threads, algorithm=algorithm, factor=0.3, accumulate=accumulate
                )
                assert call() == 0
                assert bool(wide[:, columns:].isnan().all())
                bound = ROUNDING[algorithm] * (1 + depth**0.5)
                torch.testing.assert_close(out.double(), expected, rtol=0, atol=bound)
                made.append(out)
            assert torch.equal(made[0], made[1])


def test_nothing_to_do() -> None:
    out = torch.empty(0, 5)
    assert matrix_product.bind(torch.empty(0, 3), torch.empty(3, 5), out, torch.empty(100_000), 1)() == 0


@pytest.mark.parametrize(
    ("left", "right", "out", "message"),
    [
        ((3, 4), (5, 6), (3, 6), "the sides do not fit"),
        ((3, 4), (4, 6), (3, 5), "the sides do not fit"),
        ((3, 0), (0, 6), (3, 6), "the sides do not fit"),
    ],
)
def test_sides_that_do_not_fit(
    left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ShadeFastError, match=message):
        matrix_product.bind(torch.zeros(left), torch.zeros(right), torch.zeros(out), torch.zeros(10_000), 1)


def test_layouts_and_scratch_that_are_not_enough() -> None:
    plain = torch.zeros(8, 8)
    with pytest.raises(ShadeFastError, match="right is"):
        matrix_product.bind(plain, torch.zeros(16, 16)[::2, ::2], plain.clone(), torch.zeros(100_000), 1)
    with pytest.raises(ShadeFastError, match="its rows are dense"):
        matrix_product.bind(plain, plain, plain.clone().t(), torch.zeros(100_000), 1)
    for scratch in (torch.zeros(3), torch.zeros(200_000)[::2], torch.zeros(100_000, dtype=torch.float64)):
        with pytest.raises(ShadeFastError, match="scratch is"):
            matrix_product.bind(plain, plain, plain.clone(), scratch, 1)
    for place in range(4):
        tensors = [plain, plain, plain.clone(), torch.zeros(100_000)]
        tensors[place] = tensors[place].to("meta")
        with pytest.raises(ShadeFastError, match="is on meta: these kernels run on cpu"):
            matrix_product.bind(*tensors, 1)
    with pytest.raises(ShadeFastError, match="'winograd4': direct, or tiles where"):
        matrix_product.bind(plain, plain, plain.clone(), torch.zeros(100_000), 1, algorithm="winograd4")
