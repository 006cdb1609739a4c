"""The inner step of the search for the largest scale of a perturbation whose rounded image holds a bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shade_fast.ops import gpu, native
from shade_fast.ops.layout import check_images, check_levels, in_order, per_image
from shade_fast.ops.quantize import reference as quantized
from shade_fast.terms.errors import ShadeFastError


def bisect_scale(
    clean: Tensor,
    delta: Tensor,
    distance: Tensor,
    interval: Tensor,
    *,
    bound: float,
    levels: int,
    guess: bool = False,
    gain: Sequence[float] = (2.0, 2.0, 2.0),
    offset: Sequence[float] = (-1.0, -1.0, -1.0),
    backend: str = "native",
) -> tuple[Tensor, Tensor]:
    """Narrow each image's interval by the distance at its last scale, and make the image at its next one.

        held        = distance <= bound
        low, high   = (scale, high) where held, else (low, scale)
        scale       = (low + high) / 2; with `guess`, where not held: scale * bound / distance
        images      = bfloat16(gain[c] * quantize(clean, delta, scale, levels) / 255 + offset[c])

    `start` gives the interval before the first distance, which is that at scale 1: an image that holds the bound there
    keeps scale 1. After the last step `quantize` with `low` gives the pixels. Nothing is decided on the host, so that a
    whole search can be recorded and played again.

    Args:
        clean: uint8 [B, 3, H, W], the clean images.
        delta: float32 [B, 3, H, W], the perturbation in [0, 1] pixel units.
        distance: float32 [B], at each image's last scale; NaN does not hold the bound.
        interval: float32 [B, 3]: low, which holds the bound, high, which does not, and the scale tried last.
        bound: of the distance, 0 or more.
        levels: as in `quantize`.
        guess: whether a distance is taken to grow in proportion to the scale; for the first step, as it does at least
            so near the bound.
        gain, offset: three finite numbers each; those of the default take [0, 1] to [-1, 1].
        backend: "native" runs the compiled kernel on CUDA; on the CPU plain torch is the implementation. "reference"
            runs plain torch everywhere.

    Returns:
        The next interval, float32 [B, 3]; and the images as a network's input, bfloat16 [B, 3, H, W], channels-last.

    Raises:
        ShadeFastError: shapes, dtypes, devices, factors, bound or levels do not fit, or the compiled module is missing.
    """
    check_images(clean, delta=delta)
    _check_factors(gain, offset)
    for name, tensor, shape in (("distance", distance, (len(clean),)), ("interval", interval, (len(clean), 3))):
        if tensor.dtype != torch.float32 or tuple(tensor.shape) != shape or tensor.device != clean.device:
            raise ShadeFastError(
                f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}: "
                f"give float32 {list(shape)} on {clean.device}"
            )
    if not bound >= 0:
        raise ShadeFastError(f"bound={bound}: it must be 0 or larger")
    check_levels(levels)
    with torch.no_grad():
        if backend == "reference":
            return reference(clean, delta, distance, interval, bound, levels, guess, gain, offset)
        if backend != "native" or clean.device.type not in native.DEVICES:
            raise native.missing_backend(backend, clean.device)
        result: tuple[Tensor, Tensor] = _operator(
            clean, delta, distance, interval, bound, levels, guess, list(gain), list(offset)
        )
        return result


def start(images: int, device: torch.device | str = "cpu") -> Tensor:
    """The interval of each image whose distance at scale 1 is not known yet: float32 [images, 3]."""
    return torch.tensor([0.0, 1.0, 1.0], dtype=torch.float32, device=device).expand(images, 3).contiguous()


def reference(
    clean: Tensor,
    delta: Tensor,
    distance: Tensor,
    interval: Tensor,
    bound: float,
    levels: int,
    guess: bool,
    gain: Sequence[float],
    offset: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """The specification, in plain torch; arguments as in `bisect_scale`."""
    low, high, scale = interval.unbind(1)
    limit = distance.new_full((), bound)
    held = distance <= limit
    low, high = torch.where(held, scale, low), torch.where(held, high, scale)
    middle = (low + high) * 0.5
    guessed = scale * (limit / distance)
    scale = torch.where(~held & distance.isfinite(), guessed, middle) if guess else middle
    pixels = quantized(clean, delta, scale, levels)
    return torch.stack([low, high, scale], dim=1), _normalized(pixels, gain, offset)


_operator = torch.library.custom_op("shade_fast::bisect_scale", reference, mutates_args=(), device_types="cpu")


@_operator.register_kernel("cuda")
def on_gpu(
    clean: Tensor,
    delta: Tensor,
    distance: Tensor,
    interval: Tensor,
    bound: float,
    levels: int,
    guess: bool,
    gain: Sequence[float],
    offset: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """The compiled CUDA kernel."""
    module = native.cuda()
    with gpu.stream(clean) as stream:
        clean, delta = in_order(torch.channels_last, clean, delta)
        distance, interval = distance.contiguous(), interval.contiguous()
        following, images = torch.empty_like(interval), _new_input(clean)
        pointers = [tensor.data_ptr() for tensor in (clean, delta, distance, interval, following, images)]
        parameters = (bound, guess, levels, (*gain, *offset), stream)
        native.check(module, module.bisect_scale(*pointers, *per_image(clean), *parameters))
    return following, images


@_operator.register_fake
def _(clean: Tensor, delta: Tensor, distance: Tensor, interval: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return interval.new_empty(interval.shape), _new_input(clean)


def _normalized(pixels: Tensor, gain: Sequence[float], offset: Sequence[float]) -> Tensor:
    factor, shift = _factors(gain, offset, pixels.device)
    values = factor * (pixels.float() / 255) + shift
    return values.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


def _new_input(images: Tensor) -> Tensor:
    """Room for the network's input of images [B, 3, H, W]: bfloat16, channels-last."""
    return torch.empty_like(images, dtype=torch.bfloat16, memory_format=torch.channels_last)


def _factors(gain: Sequence[float], offset: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Both as float32 [3, 1, 1], made on the device: what is copied there could not be recorded."""

    def of_channels(values: Sequence[float]) -> Tensor:
        return torch.stack([torch.full((1, 1), value, dtype=torch.float32, device=device) for value in values])

    return of_channels(gain), of_channels(offset)


def _check_factors(gain: Sequence[float], offset: Sequence[float]) -> None:
    """Raise ShadeFastError unless there are three finite numbers of each, the gains not 0."""
    for name, values in (("gain", gain), ("offset", offset)):
        if len(values) != 3 or not all(math.isfinite(value) for value in values) or (name == "gain" and 0 in values):
            raise ShadeFastError(f"{name}={list(values)}: give three finite numbers, gains other than 0")
