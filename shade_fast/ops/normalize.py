"""From uint8 images and their perturbations to a network's bfloat16 input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from shade_fast.ops import gpu, native
from shade_fast.ops.layout import check_images, in_order, per_image
from shade_fast.terms.errors import ShadeFastError


def normalize(
    clean: Tensor,
    delta: Tensor | None = None,
    *,
    gain: Sequence[float] = (2.0, 2.0, 2.0),
    offset: Sequence[float] = (-1.0, -1.0, -1.0),
    backend: str = "native",
) -> Tensor:
    """Make perturbed images what a network takes, each channel in its own way.

        result = bfloat16(gain[c] * clamp(clean / 255 + delta, 0, 1) + offset[c])

    in float32, each operation rounded on its own, the last half to even.

    Args:
        clean: uint8 [B, 3, H, W], the clean images.
        delta: float32 [B, 3, H, W], the perturbation in [0, 1] pixel units; None for none.
        gain, offset: three finite numbers each; those of the default take [0, 1] to [-1, 1].
        backend: "native" runs the compiled kernel on CUDA; on the CPU plain torch is the implementation. "reference"
            runs plain torch everywhere.

    Returns:
        bfloat16 [B, 3, H, W], channels-last. Not differentiable: the gradient in delta is gain times the result's.

    Any strides are allowed; channels-last tensors are read without a copy.

    Raises:
        ShadeFastError: shapes, dtypes, devices or factors do not fit, or the compiled module is missing.
    """
    check_images(clean, delta=delta)
    check_factors(gain, offset)
    with torch.no_grad():
        if backend == "reference":
            return reference(clean, delta, gain, offset)
        if backend != "native" or clean.device.type not in native.DEVICES:
            raise native.missing_backend(backend, clean.device)
        result: Tensor = _operator(clean, delta, list(gain), list(offset))
        return result


def reference(clean: Tensor, delta: Tensor | None, gain: Sequence[float], offset: Sequence[float]) -> Tensor:
    """The specification, in plain torch; arguments as in `normalize`."""
    factor, shift = factors(gain, offset, clean.device)
    shown = clean.float() / 255
    if delta is not None:
        shown = shown + delta
    values = factor * shown.clamp(0, 1) + shift
    return values.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


_operator = torch.library.custom_op("shade_fast::normalize", reference, mutates_args=(), device_types="cpu")


@_operator.register_kernel("cuda")
def on_gpu(clean: Tensor, delta: Tensor | None, gain: Sequence[float], offset: Sequence[float]) -> Tensor:
    """The compiled CUDA kernel."""
    module = native.cuda()
    with gpu.stream(clean) as stream:
        images, *moved = in_order(torch.channels_last, *(one for one in (clean, delta) if one is not None))
        result = new_input(images)
        pointers = [images.data_ptr(), moved[0].data_ptr() if moved else 0, result.data_ptr()]
        native.check(module, module.normalize(*pointers, *per_image(clean), gain, offset, stream))
    return result


@_operator.register_fake
def _(clean: Tensor, delta: Tensor | None, gain: Sequence[float], offset: Sequence[float]) -> Tensor:
    return new_input(clean)


def new_input(images: Tensor) -> Tensor:
    """Room for the network's input of images [B, 3, H, W]: bfloat16, channels-last."""
    return torch.empty_like(images, dtype=torch.bfloat16, memory_format=torch.channels_last)


def factors(gain: Sequence[float], offset: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Both as float32 [3, 1, 1], made on the device: what is copied there could not be recorded."""

    def made(values: Sequence[float]) -> Tensor:
        ones = [torch.full((1, 1), value, dtype=torch.float32, device=device) for value in values]
        return torch.stack(ones)

    return made(gain), made(offset)


def check_factors(gain: Sequence[float], offset: Sequence[float]) -> None:
    """Raise ShadeFastError unless there are three finite numbers of each, the gains not 0."""
    for name, values in (("gain", gain), ("offset", offset)):
        if len(values) != 3 or not all(math.isfinite(value) for value in values) or (name == "gain" and 0 in values):
            raise ShadeFastError(f"{name}={list(values)}: give three finite numbers, gains other than 0")
