"""The L2 distance of latents to their anchors, and its gradient.

    distance[b] = sqrt(sum over n of (latents[b, n] - anchor[b, n])²)
    gradient[b, n] = upstream[b] / distance[b] * (latents[b, n] - anchor[b, n]), 0 where distance[b] is 0

latents and anchor: float32, float16 or bfloat16 [B, C, h, w], gap-free and in one memory order, so that each image is a
run of C * h * w values; distance and upstream: float32 [B]. Differences and sums are float32.

Per value of size s, forward: 2s bytes read; backward: 2s read, s written. Each image is split over up to 512 programs,
so that one image alone fills the chip; their partial sums are added by a second kernel in a fixed order, without
atomics, so that a result does not depend on timing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
MOST_SPLITS = 512


def forward(latents: Tensor, anchor: Tensor) -> Tensor:
    """Distance of each latent to its anchor: float32 [B]."""
    images, elements = _sizes(latents)
    splits, blocks = _split(elements)
    partial = latents.new_empty((images, splits), dtype=torch.float32)
    distance = latents.new_empty(images, dtype=torch.float32)
    if images:
        squared_difference_kernel[(splits, images)](latents, anchor, partial, elements, blocks, BLOCK)
        root_kernel[(images,)](partial, distance, splits, MOST_SPLITS)
    return distance


def backward(upstream: Tensor, latents: Tensor, anchor: Tensor, distance: Tensor) -> Tensor:
    """Gradient in the latents, in their dtype and memory order."""
    images, elements = _sizes(latents)
    splits, blocks = _split(elements)
    gradient = torch.empty_like(latents)
    if images:
        gradient_kernel[(splits, images)](upstream, latents, anchor, distance, gradient, elements, blocks, BLOCK)
    return gradient


@triton.jit
def squared_difference_kernel(latents, anchor, partial, elements, blocks, block_size: tl.constexpr):
    split = tl.program_id(0)
    image = tl.program_id(1)
    origin = image.to(tl.int64) * elements
    total = tl.zeros([block_size], dtype=tl.float32)
    for block in range(blocks):
        offsets = (split * blocks + block) * block_size + tl.arange(0, block_size)
        inside = offsets < elements
        value = tl.load(latents + origin + offsets, mask=inside, other=0.0).to(tl.float32)
        wanted = tl.load(anchor + origin + offsets, mask=inside, other=0.0).to(tl.float32)
        difference = value - wanted
        total += difference * difference
    tl.store(partial + image * tl.num_programs(0) + split, tl.sum(total))


@triton.jit
def root_kernel(partial, distance, splits, split_size: tl.constexpr):
    image = tl.program_id(0)
    offsets = tl.arange(0, split_size)
    sums = tl.load(partial + image * splits + offsets, mask=offsets < splits, other=0.0)
    tl.store(distance + image, tl.sqrt(tl.sum(sums)))


@triton.jit
def gradient_kernel(upstream, latents, anchor, distance, gradient, elements, blocks, block_size: tl.constexpr):
    split = tl.program_id(0)
    image = tl.program_id(1)
    origin = image.to(tl.int64) * elements
    length = tl.load(distance + image)
    factor = tl.where(length > 0.0, tl.load(upstream + image) / tl.where(length > 0.0, length, 1.0), 0.0)
    for block in range(blocks):
        offsets = (split * blocks + block) * block_size + tl.arange(0, block_size)
        inside = offsets < elements
        value = tl.load(latents + origin + offsets, mask=inside, other=0.0).to(tl.float32)
        wanted = tl.load(anchor + origin + offsets, mask=inside, other=0.0).to(tl.float32)
        slope = factor * (value - wanted)
        tl.store(gradient + origin + offsets, slope.to(gradient.dtype.element_ty), mask=inside)


def _sizes(latents: Tensor) -> tuple[int, int]:
    images, channels, height, width = latents.shape
    return images, channels * height * width


def _split(elements: int) -> tuple[int, int]:
    """How many programs share an image, and how many blocks each of them works on."""
    blocks = triton.cdiv(triton.cdiv(elements, BLOCK), MOST_SPLITS)
    return max(triton.cdiv(elements, BLOCK * max(blocks, 1)), 1), blocks
