"""The model of a step on a GPU: what it counts, and that the committed table is what it counts now."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict

import pytest
import torch
from torch import nn

from benchmarks import gpu_model, networks
from benchmarks.gpu_count import BANDWIDTH, DEVICES, HOST, PRODUCTS, REPLAY, Count, Op, on_meta
from benchmarks.gpu_fused import fused
from benchmarks.gpu_published import published
from benchmarks.rows import read_rows

SIZE = 64


@pytest.fixture(scope="module")
def counts() -> dict[str, Count]:
    return {"fused": fused(1, False, SIZE), "published": published(1, False, SIZE)}


def test_both_paths_have_the_same_products(counts: dict[str, Count]) -> None:
    assert math.isclose(counts["fused"].operations, counts["published"].operations, rel_tol=1e-3)


def test_a_batch_has_its_images_bytes(counts: dict[str, Count]) -> None:
    for path, count in ((fused, counts["fused"]), (published, counts["published"])):
        two = path(2, False, SIZE)
        assert math.isclose(two.bytes(products=False), 2 * count.bytes(products=False), rel_tol=0.02)
        assert math.isclose(two.kept, 2 * count.kept, rel_tol=0.02)
        assert two.weights == count.weights


def test_group_norms_by_hand(counts: dict[str, Count]) -> None:
    """With SiLU: 3 maps forward and 5 backward, one more where another gradient is added; none for the SiLU."""
    sizes: list[int] = []
    module = on_meta(networks.encoder("kl"))
    for norm in (one for one in module.modules() if isinstance(one, nn.GroupNorm)):
        norm.register_forward_hook(lambda norm, inputs, output: sizes.append(2 * output.numel()))
    module(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.float16, device="meta"))
    bytes_of: Counter[str] = Counter()
    for op in counts["fused"].ops:
        bytes_of[op.name] += int(op.bytes)
    total = sum(sizes)
    assert bytes_of["group_norm.moments"] == total
    assert bytes_of["group_norm.apply"] == bytes_of["group_norm.slopes"] == 2 * total
    assert 3 * total < bytes_of["group_norm.gradient"] < 4 * total
    assert bytes_of["silu"] == 0
    plain = Counter(dict.fromkeys(bytes_of, 0))
    for op in counts["published"].ops:
        plain[op.name] += int(op.bytes)
    assert plain["native_group_norm"] >= 3 * total
    assert plain["silu"] > total


def test_time_is_the_longer_of_rate_and_memory() -> None:
    device = DEVICES[1]
    count = Count([Op("a", device.operations, 0.0), Op("b", 0.0, device.bandwidth)], 0.0, 0.0, 0.0)
    products, other = count.seconds(device, graph=True)
    assert products == pytest.approx(1 / PRODUCTS + REPLAY)
    assert other == pytest.approx(1 / BANDWIDTH + REPLAY)
    small = Count([Op("a", 1.0, 1.0)] * 1000, 0.0, 0.0, 0.0)
    assert sum(small.seconds(device, graph=False)) == pytest.approx(1000 * HOST)


def test_the_committed_table_is_what_is_counted() -> None:
    table = read_rows(gpu_model.TABLE)
    count = fused(1, False, gpu_model.SIZE)
    made = list(gpu_model._rows("fused", count, 1, f"kl.{gpu_model.SIZE}"))
    for row in made:
        assert {name: gpu_model._written(value) for name, value in asdict(row).items()} in table
    assert {row["path"] for row in table} == set(gpu_model.PATHS)
    forward = sum(op.operations for op in count.ops if op.name in ("convolution", "attention"))
    assert forward / 2e9 == pytest.approx(558, abs=1)
