"""Encoders that a worker's process can import: a tiny one, and others that go wrong."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
from torch import nn

#: The grey that `Deadly` dies of.
DEADLY = 51


class Tiny(nn.Module):
    """An encoder of factor 8 and 4 channels with random weights."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.SiLU(), nn.Conv2d(16, 4, 3, 2, 1))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, 0.3, generator=generator)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self.layers(images)
        return latents


class Deadly(Tiny):
    """Its process is killed, as by a system without memory, when it is shown an image that is all of one grey."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if bool(((images - DEADLY / 255).abs() < 1e-3).all()):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)


class Hanging(Tiny):
    """Its process stands still, as in a driver that never answers, when it is shown an image all of one grey."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if bool(((images - DEADLY / 255).abs() < 1e-3).all()):
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().forward(images)


class Slow(Tiny):
    """Takes half a second for each step."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.5)
        return super().forward(images)


class Homebound(Tiny):
    """Can be copied, but made nowhere but in the process where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.home = os.getpid()

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["home"] != os.getpid():
            raise RuntimeError("left its home")
        super().__setstate__(state)


class Hungry(Tiny):
    """Once it knows what memory it has, it raises torch's own error for more; it counts what it is given.

    most: width of images -> how many of them it has memory for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most: dict[int, int] = {}
        self.given: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.given.append(len(images))
        if len(images) > self.most.get(images.shape[3], len(images)):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it.")
        return super().forward(images)
