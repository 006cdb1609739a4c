"""Memory order of image tensors: kernels see images as gap-free runs of values in one order."""

from __future__ import annotations

import torch
from torch import Tensor

from shade_fast.terms.errors import ShadeFastError


def memory_order(tensor: Tensor) -> torch.memory_format:
    """Channels-last where a [B, C, H, W] tensor lies that way in memory, else contiguous."""
    if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def in_order(order: torch.memory_format, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Each [B, C, H, W] tensor in one memory order; those that already lie so are returned as they are."""
    return tuple(tensor.contiguous(memory_format=order) for tensor in tensors)


def channels_last(tensor: Tensor) -> Tensor:
    """A [B, C, H, W] tensor in the channels-last memory format; one that lies so is returned as it is."""
    return tensor.contiguous(memory_format=torch.channels_last)


def per_image(tensor: Tensor) -> tuple[int, int]:
    """How many images a [B, C, H, W] tensor holds, and how many values each has."""
    images, channels, height, width = tensor.shape
    return images, channels * height * width


def check_images(clean: Tensor, **others: Tensor | None) -> None:
    """Raise ShadeFastError unless clean is uint8 [B, 3, H, W], and the others float32 of its shape on its device."""
    if clean.dtype != torch.uint8 or clean.ndim != 4 or clean.shape[1] != 3:
        raise ShadeFastError(f"clean is {clean.dtype} {list(clean.shape)}: give uint8 [B, 3, H, W]")
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.dtype != torch.float32 or tensor.shape != clean.shape:
            raise ShadeFastError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}: give float32 {list(clean.shape)}, as clean has"
            )
        if tensor.device != clean.device:
            raise ShadeFastError(f"{name} is on {tensor.device}, clean on {clean.device}: move it there")


def check_levels(levels: float) -> None:
    """Raise ShadeFastError unless levels, the largest change of a uint8 value, is a whole number in [0, 255]."""
    if levels != int(levels) or not 0 <= levels <= 255:
        raise ShadeFastError(f"levels={levels}: it must be a whole number in [0, 255]")


def check_channels_last(name: str, tensor: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Raise ShadeFastError unless a tensor is dense [B, C, h, w] of a dtype, its channels adjacent in memory."""
    if tensor.dtype != dtype or tensor.ndim != 4 or not tensor.permute(0, 2, 3, 1).is_contiguous():
        raise ShadeFastError(
            f"{name} is {tensor.dtype} {list(tensor.shape)} with strides {tensor.stride()}: "
            f"give {str(dtype).removeprefix('torch.')} [B, C, h, w] in the channels_last memory format"
        )
