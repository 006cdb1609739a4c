"""Binding a compiled kernel to tensors: checks of their shapes, and a call that keeps them alive."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from shade_fast.ops import gpu
from shade_fast.ops.layout import check_channels_last
from shade_fast.ops.native import Call
from shade_fast.terms.errors import ShadeFastError

_CPU = torch.device("cpu")


def bound(kernel: Callable[..., int], *arguments: Any) -> Call:
    """The call of `kernel` with these arguments: tensors as addresses, absent ones 0, tuples part by part.

    The tensors live as long as the call does.
    """
    call = functools.partial(kernel, *(_plain(argument) for argument in arguments))
    call.__dict__["arguments"] = arguments
    return call


def extent(tensor: Tensor) -> tuple[int, int, int]:
    """Images, pixels and channels of a tensor [B, C, h, w]."""
    images, channels, height, width = tensor.shape
    return images, height * width, channels


def check_images(result: Tensor, *, or_gpu: bool = False, **inputs: Tensor) -> None:
    """Raise ShadeFastError unless all are dense channels-last float32 tensors on the CPU, of the result's shape.

    or_gpu: the op has kernels there too; then all may be on one GPU, in one of `gpu.DTYPES`.
    """
    there = or_gpu and gpu.on_gpu(result)
    dtype = result.dtype if there and result.dtype in gpu.DTYPES else torch.float32
    for name, tensor in {"out": result, **inputs}.items():
        check_channels_last(name, tensor, dtype)
        check_device(name, tensor, result.device if there else _CPU)
        if tensor.shape != result.shape:
            raise ShadeFastError(f"{name} is {list(tensor.shape)}, out {list(result.shape)}: give one shape")


def check_array(
    name: str,
    tensor: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device = _CPU,
) -> None:
    """Raise ShadeFastError unless a tensor is a contiguous array of this shape and dtype on a device."""
    check_device(name, tensor, device)
    if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape) or not tensor.is_contiguous():
        raise ShadeFastError(
            f"{name} is {tensor.dtype} {list(tensor.shape)} with strides {tensor.stride()}: "
            f"give contiguous {dtype} {list(shape)}"
        )


def check_scratch(scratch: Tensor, size: int, device: torch.device = _CPU, *, name: str = "scratch") -> None:
    """Raise ShadeFastError unless a tensor is contiguous float32 on a device with `size` values or more."""
    check_device(name, scratch, device)
    if scratch.dtype != torch.float32 or not scratch.is_contiguous() or scratch.numel() < size:
        raise ShadeFastError(f"{name} is {scratch.dtype} {list(scratch.shape)}: give contiguous float32 [{size}]")


def check_device(name: str, tensor: Tensor, device: torch.device = _CPU) -> None:
    """Raise ShadeFastError unless a tensor is on a device."""
    if tensor.device != device:
        raise ShadeFastError(f"{name} is on {tensor.device}: these kernels run on {device}")


def _plain(argument: Any) -> Any:
    if argument is None:
        return 0
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    if isinstance(argument, tuple):
        return tuple(_plain(part) for part in argument)
    return argument
