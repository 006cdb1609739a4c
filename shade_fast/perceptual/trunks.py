"""The trunks of the LPIPS networks, each cut after the last activation that LPIPS compares.

A trunk is a `ModuleList` of stages; the output of every stage is compared. The layer shapes are those of AlexNet,
VGG-16 and SqueezeNet 1.1 as torchvision publishes their weights (arXiv 1404.5997, 1409.1556, 1602.07360), with the
compared activations of LPIPS (arXiv 1801.03924); the shift-tolerant variants, which blur before they subsample, are
those of ShiftTolerant-LPIPS (arXiv 2207.13686).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Trunk:
    """A trunk's construction and the facts that its loader and its caller need.

    `build` returns the stages with uninitialised weights, and draws no random numbers. `channels` are those of each
    stage's output. `weight_keys` name the convolutions in published weight files, in the order of `modules()`.
    `minimum_side` is the shortest image side, in pixels, that every stage can take.
    """

    build: Callable[[], nn.ModuleList]
    channels: tuple[int, ...]
    weight_keys: tuple[str, ...]
    minimum_side: int


class BlurPool(nn.Module):
    """Halve a feature map [B,C,h,w] after a [1,2,1]x[1,2,1]/16 blur; two reflected pixels on every side."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("kernel", (row[:, None] * row)[None, None], persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        channels = features.shape[1]
        padded = F.pad(features, (2, 2, 2, 2), mode="reflect")
        return F.conv2d(padded, self.kernel.expand(channels, 1, 3, 3), stride=2, groups=channels)


class Fire(nn.Module):
    """SqueezeNet's block: a 1x1 convolution to few channels, then 1x1 and 3x3 ones side by side."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = _convolution(channels, squeezed, 1)
        self.expand1x1 = _convolution(squeezed, expanded, 1)
        self.expand3x3 = _convolution(squeezed, expanded, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        squeezed = F.relu(self.squeeze(features), inplace=True)
        return F.relu(torch.cat([self.expand1x1(squeezed), self.expand3x3(squeezed)], dim=1), inplace=True)


def _convolution(channels: int, filters: int, side: int, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    layer = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d, channels, filters, side, stride=stride, padding=padding
    )
    return cast(nn.Conv2d, layer)


def _relu() -> nn.ReLU:
    return nn.ReLU(inplace=True)


def _vgg(pool: Callable[[], list[nn.Module]]) -> nn.ModuleList:
    channels = 3
    stages: list[nn.Sequential] = []
    for filters, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers = pool() if stages else []
        for _ in range(repeats):
            layers += [_convolution(channels, filters, 3, padding=1), _relu()]
            channels = filters
        stages.append(nn.Sequential(*layers))
    return nn.ModuleList(stages)


def _alex(first: list[nn.Module], pool: Callable[[], list[nn.Module]]) -> nn.ModuleList:
    return nn.ModuleList(
        [
            nn.Sequential(*first, _relu()),
            nn.Sequential(*pool(), _convolution(64, 192, 5, padding=2), _relu()),
            nn.Sequential(*pool(), _convolution(192, 384, 3, padding=1), _relu()),
            nn.Sequential(_convolution(384, 256, 3, padding=1), _relu()),
            nn.Sequential(_convolution(256, 256, 3, padding=1), _relu()),
        ]
    )


def _squeeze() -> nn.ModuleList:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.ModuleList(
        [
            nn.Sequential(_convolution(3, 64, 3, stride=2), _relu()),
            nn.Sequential(pool(), Fire(64, 16, 64), Fire(128, 16, 64)),
            nn.Sequential(pool(), Fire(128, 32, 128), Fire(256, 32, 128)),
            nn.Sequential(pool(), Fire(256, 48, 192)),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
        ]
    )


def _hub_keys(*layers: int) -> tuple[str, ...]:
    return tuple(f"features.{layer}" for layer in layers)


def _fire_keys(*layers: int) -> tuple[str, ...]:
    return tuple(f"features.{layer}.{part}" for layer in layers for part in ("squeeze", "expand1x1", "expand3x3"))


def _slice_keys(*slices: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(f"net.slice{number}.{layer}" for number, layers in enumerate(slices, 1) for layer in layers)


_VGG_CHANNELS = (64, 128, 256, 512, 512)
_ALEX_CHANNELS = (64, 192, 384, 256, 256)

TRUNKS = {
    "vgg": Trunk(
        build=lambda: _vgg(lambda: [nn.MaxPool2d(2, 2)]),
        channels=_VGG_CHANNELS,
        weight_keys=_hub_keys(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        minimum_side=16,
    ),
    "st-vgg": Trunk(
        build=lambda: _vgg(lambda: [nn.MaxPool2d(2, 1), BlurPool()]),
        channels=_VGG_CHANNELS,
        weight_keys=_slice_keys((0, 2), (6, 8), (12, 14, 16), (20, 22, 24), (28, 30, 32)),
        minimum_side=18,
    ),
    "alex": Trunk(
        build=lambda: _alex([_convolution(3, 64, 11, stride=4, padding=2)], lambda: [nn.MaxPool2d(3, 2)]),
        channels=_ALEX_CHANNELS,
        weight_keys=_hub_keys(0, 3, 6, 8, 10),
        minimum_side=31,
    ),
    "st-alex": Trunk(
        build=lambda: _alex([_convolution(3, 64, 11, padding=2), BlurPool()], lambda: [nn.MaxPool2d(3, 1), BlurPool()]),
        channels=_ALEX_CHANNELS,
        weight_keys=_slice_keys((0,), (5,), (9,), (11,), (13,)),
        minimum_side=21,
    ),
    "squeeze": Trunk(
        build=_squeeze,
        channels=(64, 128, 256, 384, 384, 512, 512),
        weight_keys=("features.0", *_fire_keys(3, 4, 6, 7, 9, 10, 11, 12)),
        minimum_side=17,
    ),
}
