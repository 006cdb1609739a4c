"""Memory order of image tensors: kernels see images as gap-free runs of values in one order."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_order(tensor: Tensor) -> torch.memory_format:
    """Channels-last where a [B, C, H, W] tensor lies that way in memory, else contiguous."""
    if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def in_order(order: torch.memory_format, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Each [B, C, H, W] tensor in one memory order; those that already lie so are returned as they are."""
    return tuple(tensor.contiguous(memory_format=order) for tensor in tensors)


def per_image(tensor: Tensor) -> tuple[int, int]:
    """How many images a [B, C, H, W] tensor holds, and how many values each has."""
    images, channels, height, width = tensor.shape
    return images, channels * height * width
