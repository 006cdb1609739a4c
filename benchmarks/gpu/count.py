"""What a step's ops add up to on a GPU: operations, bytes and memory, and by a data sheet's rates its time."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shade_fast.perceptual import Perceptual
from shade_fast.perceptual.trunks import TRUNKS

#: Bytes of a feature's value.
ITEM = 2
#: The share of a data sheet's rates that products and memory reach.
PRODUCTS, BANDWIDTH = 0.6, 0.8
#: Seconds of the host for an op that it launches, and for a kernel in a graph that is played again.
HOST, REPLAY = 8e-6, 1e-6
#: The name of the ops that bring a convolution's tensors from NCHW to NHWC and back.
TRANSPOSE = "transpose"
#: Bytes of the context, cuDNN's workspaces and the allocator.
RESERVED = 2e9


@dataclass(frozen=True)
class Device:
    """A data sheet: dense bfloat16 operations and bytes a second, bytes of memory."""

    name: str
    operations: float
    bandwidth: float
    memory: float


DEVICES = (
    Device("A100 80 GB SXM", 312e12, 2.039e12, 80e9),
    Device("H100 80 GB SXM", 989.4e12, 3.35e12, 80e9),
    Device("H200 141 GB SXM", 989.4e12, 4.8e12, 141e9),
)


@dataclass(frozen=True)
class Op:
    """One launch: operations of its products (0 where it has none) and the bytes that it moves."""

    name: str
    operations: float
    bytes: float

    @property
    def is_product(self) -> bool:
        return self.operations > 0


@dataclass(frozen=True)
class Count:
    """A step's ops, and bytes: the most that is kept for a backward at one time, what is held from step to step, of the
    largest feature map, of weights."""

    ops: list[Op]
    kept: float
    held: float
    largest: float
    weights: float

    def bytes(self, products: bool) -> float:
        return sum(op.bytes for op in self.ops if op.is_product == products)

    @property
    def transposed(self) -> float:
        """Bytes of the transposes alone, which are no products."""
        return sum(op.bytes for op in self.ops if op.name == TRANSPOSE)

    @property
    def operations(self) -> float:
        return sum(op.operations for op in self.ops)

    @property
    def memory(self) -> float:
        """Of the images of the step, without weights."""
        return self.kept + self.held + 3 * self.largest

    def seconds(self, device: Device, graph: bool) -> tuple[float, float]:
        """Of the products, and of everything else."""
        spent = [0.0, 0.0]
        for op in self.ops:
            least = max(op.operations / (PRODUCTS * device.operations), op.bytes / (BANDWIDTH * device.bandwidth))
            spent[0 if op.is_product else 1] += least + (REPLAY if graph else 0.0)
        if not graph:
            spent[1] += max(HOST * len(self.ops) - sum(spent), 0.0)
        return spent[0], spent[1]


def attention(query: Sequence[int], key: Sequence[int], gradient: bool) -> tuple[float, float]:
    """Operations and bytes of the fused attention of [B, C, h, w]: two products forward, five backward."""
    batch, channels, height, width = query
    pairs = batch * height * width * key[2] * key[3]
    tensors = (5 if gradient else 2) * size_of(query) + (3 if gradient else 2) * size_of(key)
    return (10.0 if gradient else 4.0) * pairs * channels, tensors


def size_of(dims: Sequence[int]) -> float:
    """Bytes of a feature map."""
    return float(ITEM * math.prod(dims))


@functools.cache
def vgg() -> Perceptual:
    """LPIPS' VGG as its shapes are; nothing reads its weights."""
    trunk = TRUNKS["vgg"]
    stages = trunk.build()
    heads = [torch.zeros(channels) for channels in trunk.channels]
    return Perceptual("vgg", stages, heads, minimum_side=trunk.minimum_side)


def images(batch: int, size: int) -> Tensor:
    return torch.zeros(batch, 3, size, size)


def on_meta(module: nn.Module) -> nn.Module:
    """A copy in float16 that has shapes alone."""
    return copy.deepcopy(module).to(device="meta", dtype=torch.float16)
