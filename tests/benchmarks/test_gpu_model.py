"""The model of a step on a GPU: what it counts, and that the committed table is what it counts now."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import nn

from benchmarks import networks
from benchmarks.gpu import model
from benchmarks.gpu.count import BANDWIDTH, DEVICES, HOST, PRODUCTS, REPLAY, Count, Op
from benchmarks.gpu.fused import fused
from benchmarks.gpu.published import published
from benchmarks.gpu.record import recorded
from benchmarks.rows import read_rows
from shade_fast.ops.residual_group_norm import residual_group_norm

SIZE = 64


@pytest.fixture(scope="module")
def counts() -> dict[str, Count]:
    return {"fused": fused(1, False, SIZE), "published": published(1, False, SIZE)}


def test_both_paths_have_the_same_products(counts: dict[str, Count]) -> None:
    """But for a row and a column of results more of the strided convolutions, not few of so small an image's."""
    assert 1 <= counts["fused"].operations / counts["published"].operations < 1.01


def test_a_batch_has_its_images_bytes(counts: dict[str, Count]) -> None:
    for path, count in ((fused, counts["fused"]), (published, counts["published"])):
        two = path(2, False, SIZE)
        assert math.isclose(two.bytes(products=False), 2 * count.bytes(products=False), rel_tol=0.02)
        assert math.isclose(two.kept, 2 * count.kept, rel_tol=0.02)
        assert two.weights == count.weights


def test_group_norms_by_hand() -> None:
    """With SiLU: 3 maps forward and 5 backward; of a sum 5 forward, and 6 backward with another gradient added."""
    size = 2.0 * 32 * 8 * 8
    gamma = torch.empty(32, device="meta")

    def images() -> torch.Tensor:
        maps = torch.empty(1, 32, 8, 8, device="meta", dtype=torch.bfloat16, memory_format=torch.channels_last)
        return maps.requires_grad_()

    def maps(addend: torch.Tensor | None, keep: bool) -> list[float]:
        def step() -> None:
            x = images()
            total, y = residual_group_norm(
                x, gamma, gamma, groups=8, epsilon=1e-6, activation="silu", addend=addend, keep=keep
            )
            outputs = [y] if total is None else [y, total]
            torch.autograd.grad(outputs, x, [torch.empty_like(output) for output in outputs])

        count = recorded(step, [gamma])
        of = {op.name: op.bytes for op in count.ops if op.bytes}
        names = ("shade_fast::residual_group_norm", "shade_fast::residual_group_norm_gradient")
        assert count.kept == pytest.approx(size, rel=0.1)
        return [of[name] / size for name in names]

    assert maps(None, False) == pytest.approx([3, 5], rel=0.1)
    assert maps(images().detach(), False) == pytest.approx([5, 5], rel=0.1)
    assert maps(images().detach(), True) == pytest.approx([5, 6], rel=0.1)


def test_kept_is_the_most_at_one_time_and_held_what_was_there() -> None:
    weight, images = (torch.empty(64, 64, device="meta", dtype=torch.float16) for _ in range(2))
    size = 2.0 * 64 * 64

    def graph(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = images.detach().requires_grad_()
        y = x * 2 * weight
        for _ in range(count):
            y = y.exp()  # keeps its result
        return x, y

    def one_after_the_other() -> None:
        for count in (3, 2):
            x, y = graph(count)
            torch.autograd.grad(y.sum(), x)

    def together() -> None:
        graphs = [graph(3), graph(2)]
        for x, y in graphs:
            torch.autograd.grad(y.sum(), x)

    counts = [recorded(step, [weight]) for step in (one_after_the_other, together)]
    assert [count.kept / size for count in counts] == [3, 5]
    assert [count.held / size for count in counts] == [1, 1]
    assert counts[0].weights == size


def test_what_is_fused_has_no_pass_of_its_own(counts: dict[str, Count]) -> None:
    names = {path: Counter(op.name for op in count.ops) for path, count in counts.items()}
    norms = sum(isinstance(module, nn.GroupNorm) for module in networks.encoder("kl").modules())
    assert names["fused"]["shade_fast::residual_group_norm"] == 3 * norms
    assert names["fused"]["silu"] == names["fused"]["native_group_norm"] == 0
    assert names["published"]["native_group_norm"] == names["published"]["silu"] + 1 == norms
    assert names["fused"]["convolution"] < names["published"]["convolution"]  # some are products of matrices


def test_convolutions_of_nchw_are_transposed_before_and_after_both_ways() -> None:
    weight = torch.empty(8, 4, 3, 3, device="meta", dtype=torch.float16)
    x = torch.empty(1, 4, 16, 16, device="meta", dtype=torch.float16).requires_grad_()

    def convolve(form: torch.memory_format) -> float:
        def step() -> None:
            kernel = weight.contiguous(memory_format=form)
            y = nn.functional.conv2d(x.contiguous(memory_format=form), kernel, padding=1)
            torch.autograd.grad(y, x, torch.empty_like(y))

        count = recorded(step, [])
        assert count.transposed <= count.bytes(products=False)
        return count.transposed

    maps = 2.0 * 16 * 16 * (4 + 8)
    assert convolve(torch.contiguous_format) == 2 * 2 * maps
    assert convolve(torch.channels_last) == 0


def test_time_is_the_longer_of_rate_and_memory() -> None:
    device = DEVICES[1]
    count = Count([Op("a", device.operations, 0.0), Op("b", 0.0, device.bandwidth)], 0.0, 0.0, 0.0, 0.0)
    products, other = count.seconds(device, graph=True)
    assert products == pytest.approx(1 / PRODUCTS + REPLAY)
    assert other == pytest.approx(1 / BANDWIDTH + REPLAY)
    small = Count([Op("a", 1.0, 1.0)] * 1000, 0.0, 0.0, 0.0, 0.0)
    assert sum(small.seconds(device, graph=False)) == pytest.approx(1000 * HOST)


def test_the_committed_table_is_what_is_counted() -> None:
    table = read_rows(model.TABLE)
    alone, compared = (fused(1, lpips, model.SIZE) for lpips in (False, True))
    rows = list(model.rows_of("fused", alone, 1, f"kl.{model.SIZE}"))
    rows += model.rows_of("fused", compared, 1, f"kl.{model.SIZE}.lpips")
    for row in rows:
        assert model.as_text(row) in table
    assert {row["path"] for row in table} == set(model.PATHS)
    shown, _ = model.table(table).split("\n\nFused over published")
    assert shown in (model.TABLE.parents[2] / "docs" / "lab" / "gpu.md").read_text()
    # Of the linear layers' products half are the gradient's.
    shares = {"convolution": 1, "attention": 1, "addmm": 0.5, "mm": 0.5}
    forward = sum(shares.get(op.name, 0) * op.operations for op in published(1, False, model.SIZE).ops)
    assert forward / 2e9 == pytest.approx(558, abs=1)
