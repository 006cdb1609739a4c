"""LPIPS networks from no file: random weights that keep the activations' size from layer to layer."""

from __future__ import annotations

import torch
from torch import nn

from shade_fast.perceptual import Perceptual
from shade_fast.perceptual.trunks import TRUNKS


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            fan = layer.weight[0].numel()
            layer.weight.normal_(0.0, (2.0 / fan) ** 0.5, generator=generator)
            layer.bias.normal_(0.0, 0.1, generator=generator)


def random_perceptual(name: str) -> Perceptual:
    """A network of that architecture with random weights and heads."""
    trunk = TRUNKS[name]
    stages = trunk.build()
    randomise(stages)
    generator = torch.Generator().manual_seed(8)
    heads = [torch.rand(channels, generator=generator) for channels in trunk.channels]
    return Perceptual(name, stages, heads, minimum_side=trunk.minimum_side)
