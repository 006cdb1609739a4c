"""What the ops of `benchmarks/ops.py` run on: random feature maps and random images, the same each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from shade_fast.ops.bisect_scale import start as first_interval

LINF = 16 / 255


class Features:
    """Feature maps [1, channels, side, side] in bfloat16, channels last, and a network's values for each channel."""

    def __init__(self, channels: int, side: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)

        def maps() -> Tensor:
            values = torch.randn((1, channels, side, side), generator=generator).to(device, torch.bfloat16)
            return values.contiguous(memory_format=torch.channels_last)

        def per_channel() -> Tensor:
            return torch.randn(channels, generator=generator).to(device)

        self.x, self.addend, self.upstream = maps(), maps(), maps()
        self.gamma, self.beta, self.bias = per_channel(), per_channel(), per_channel()
        self.head = torch.rand(channels, generator=generator).to(device)
        self.clean = functional.normalize(self.addend.float(), dim=1).to(self.x.dtype)
        self.bytes = self.x.numel() * self.x.element_size()


@dataclass(frozen=True)
class Pixels:
    """Images [B, 3, h, w] of the file's size as the pixel ops take them, delta inside the bound."""

    clean: Tensor
    delta: Tensor
    gradient: Tensor
    momentum: Tensor
    scale: Tensor
    distance: Tensor
    interval: Tensor

    @classmethod
    def random(
        cls,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        order: torch.memory_format = torch.contiguous_format,
    ) -> Pixels:
        """The same values for the same shape."""
        generator = torch.Generator().manual_seed(0)

        def placed(values: Tensor) -> Tensor:
            return values.to(device).contiguous(memory_format=order)

        def normal() -> Tensor:
            return torch.randn(shape, generator=generator)

        clean = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        delta = (torch.rand(shape, generator=generator) * 2 - 1) * LINF
        scale, distance = (torch.full(shape[:1], value, device=device) for value in (0.9, 1.0))
        interval = first_interval(len(clean), device)
        values = (placed(tensor) for tensor in (clean, delta, 1e-4 * normal(), normal()))
        return cls(*values, scale, distance, interval)

    def cpu(self) -> Pixels:
        return Pixels(*(getattr(self, field.name).cpu() for field in fields(self)))

    def copied(self, names: Sequence[str]) -> Pixels:
        """With copies of some of the tensors."""
        return replace(self, **{name: getattr(self, name).clone() for name in names})


@dataclass(frozen=True)
class Inputs:
    """What the checks run on: feature maps of `channels` and `side`, 8 images of `image` by `image` pixels."""

    channels: int
    side: int
    image: int
    device: torch.device

    @cached_property
    def features(self) -> Features:
        return Features(self.channels, self.side, self.device)

    @cached_property
    def pixels(self) -> Pixels:
        return Pixels.random((8, 3, self.image, self.image), self.device, torch.channels_last)
