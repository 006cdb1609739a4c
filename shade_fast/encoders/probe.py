"""A user's own encoder, a module or a function: wrapped, and its factor and channels found by trying it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from shade_fast.encoders.encoder import Encoder
from shade_fast.terms.errors import ShadeFastError, reason

BASE_SIZES = (64, 256, 512)
"""Sides in pixels that are tried in turn; the larger ones where an encoder refuses the smaller."""


def wrap_module(module: nn.Module, device: torch.device | str) -> Encoder:
    """An encoder around a copy of a module from images in [0, 1] to latents; the module itself is left as it is."""
    name = type(module).__name__
    try:
        private = copy.deepcopy(module).eval().requires_grad_(False).float().to(device)
    except Exception as error:  # whatever a module's own copying and moving raise
        raise ShadeFastError(
            f"the module {name} cannot be copied and moved to {device} ({reason(error)}): give a function that calls it"
        ) from error
    factor, channels = probe(private, name, device)
    return Encoder(private, name=name, kind="module", factor=factor, channels=channels, device=device)


def wrap_callable(function: Callable[[Tensor], Tensor], device: torch.device | str) -> Encoder:
    """An encoder around a function from images in [0, 1] to latents, which chooses its own device."""
    name = str(getattr(function, "__name__", type(function).__name__))
    factor, channels = probe(function, name, device)
    return Encoder(Function(function), name=name, kind="callable", factor=factor, channels=channels, device=device)


class Function(nn.Module):
    """A plain function wrapped as a module; copies share it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        """images: float32 [B, 3, h, w] in [0, 1]."""
        return self.function(images)

    def __deepcopy__(self, memo: dict[int, Any]) -> Function:
        return Function(self.function)


def probe(encode: Callable[[Tensor], Tensor], name: str, device: torch.device | str = "cpu") -> tuple[int, int]:
    """Factor and channels of a map from images [2, 3, h, w] in [0, 1] to latents, tried on a square and two oblongs.

    Raises ShadeFastError where it refuses every size, or gives anything but finite floating-point latents
    [2, channels, h/factor, w/factor] that depend on the image alone and have a gradient in it.
    """
    refusals = []
    for base in BASE_SIZES:
        trials = []
        for height, width in ((base, base), (2 * base, base), (base, 2 * base)):
            images = _noise(height, width, device)
            try:
                with torch.no_grad():
                    latents: object = encode(images)
            except Exception as error:  # a user's code raises what it likes
                refusals.append(f"{height}x{width}: {reason(error)}")
                break
            trials.append((images, _checked(latents, name, images)))
        else:
            factor, channels = _factor_and_channels(trials, name)
            _check_gradient(encode, name, *trials[0])
            return factor, channels
    raise ShadeFastError(
        f"encoder {name!r} refused every image that it was tried with, float32 [2, 3, h, w] in [0, 1] "
        f"({'; '.join(refusals)}): it must take both oblong and square ones, and two at a time"
    )


def _checked(latents: object, name: str, images: Tensor) -> Tensor:
    asked = f"encoder {name!r}, given images {list(images.shape)},"
    if not isinstance(latents, Tensor):
        raise ShadeFastError(f"{asked} gave a {type(latents).__name__}, not a tensor: return the latents alone")
    if latents.ndim != 4 or latents.shape[0] != images.shape[0] or 0 in latents.shape:
        raise ShadeFastError(f"{asked} gave {list(latents.shape)}, not latents [{images.shape[0]}, C, h/f, w/f]")
    if not latents.is_floating_point():
        raise ShadeFastError(f"{asked} gave {latents.dtype}, not floating-point latents")
    if not latents.isfinite().all():
        raise ShadeFastError(f"{asked} gave latents that are not finite: check its weights and precision")
    return latents


def _factor_and_channels(trials: list[tuple[Tensor, Tensor]], name: str) -> tuple[int, int]:
    seen = ", ".join(f"{list(images.shape)} -> {list(latents.shape)}" for images, latents in trials)
    channels = {latents.shape[1] for _, latents in trials}
    if len(channels) > 1:
        raise ShadeFastError(f"encoder {name!r} gives latents whose channels change with the image's size: {seen}")
    factor = trials[0][0].shape[2] // trials[0][1].shape[2]
    if any(
        pixels != factor * elements
        for images, latents in trials
        for pixels, elements in zip(images.shape[2:], latents.shape[2:], strict=True)
    ):
        raise ShadeFastError(
            f"encoder {name!r} gives latents that are not smaller than the image by one whole factor: {seen}"
        )
    return factor, channels.pop()


def _check_gradient(encode: Callable[[Tensor], Tensor], name: str, images: Tensor, before: Tensor) -> None:
    images = images.clone().requires_grad_(True)
    fix = "leave out no_grad, detach, rounding and numpy inside it"
    try:
        with torch.enable_grad():
            latents = encode(images)
            (gradient,) = torch.autograd.grad(latents.square().sum(), images)
    except Exception as error:  # a user's code raises what it likes
        raise ShadeFastError(f"encoder {name!r} is not differentiable in the image ({reason(error)}): {fix}") from error
    if not gradient.isfinite().all() or not gradient.any():
        state = "zero everywhere" if gradient.isfinite().all() else "not finite"
        raise ShadeFastError(f"encoder {name!r} is not differentiable in the image (its gradient is {state}): {fix}")
    if not torch.allclose(latents.detach().float(), before.float(), rtol=1e-2, atol=1e-2 * float(before.abs().max())):
        raise ShadeFastError(
            f"encoder {name!r} gives other latents for the same image when asked again: return the distribution's "
            "mean, not a sample"
        )


def _noise(height: int, width: int, device: torch.device | str) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.rand(2, 3, height, width, generator=generator).to(device)
