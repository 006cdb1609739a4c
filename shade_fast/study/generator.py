"""The small text-to-image model: a rectified-flow transformer over an autoencoder's latents.

It is trained as Stable Diffusion 3 is (arXiv 2403.03206, 2209.03003): for a latent z, noise e and a time t,

    x = (1 - t) z + t e,    the network is to give v = e - z,

and drawn from by following -v from t = 1 to 0. The blocks are DiT's (arXiv 2212.09748), conditioned through their
norms on the time and on one vector for the caption.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from shade_fast.terms.errors import ShadeFastError


@dataclass(frozen=True)
class GeneratorShape:
    """channels, side: of the square latents. patch: latent elements of a token, along a side. text: width of a
    caption's embedding. width, depth, heads: of the transformer."""

    channels: int = 4
    side: int = 8
    patch: int = 2
    text: int = 384
    width: int = 192
    depth: int = 6
    heads: int = 6

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1 or self.width % self.heads:
            raise ShadeFastError(
                f"width={self.width}, depth={self.depth}, heads={self.heads}: give whole numbers, at least 1, and a "
                "width that is a multiple of the heads (of 32, where these follow from it)"
            )


class Generator(nn.Module):
    """Noisy latents [B, channels, side, side], times [B] in [0, 1] and captions [B, text] to velocities, as latents.

    A caption of zeros stands for none. The caller scales latents to mean 0 and deviation 1.
    """

    def __init__(self, shape: GeneratorShape) -> None:
        super().__init__()
        self.shape = shape
        tokens = (shape.side // shape.patch) ** 2
        features = shape.channels * shape.patch**2
        self.enter = nn.Linear(features, shape.width)
        self.places = nn.Parameter(0.02 * torch.randn(1, tokens, shape.width))
        self.time = nn.Sequential(nn.Linear(128, shape.width), nn.SiLU(), nn.Linear(shape.width, shape.width))
        self.text = nn.Sequential(nn.Linear(shape.text, shape.width), nn.SiLU(), nn.Linear(shape.width, shape.width))
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads) for _ in range(shape.depth))
        self.modulation = nn.Linear(shape.width, 2 * shape.width)
        self.leave = nn.Linear(shape.width, features)
        for layer in (self.modulation, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, latents: Tensor, times: Tensor, texts: Tensor) -> Tensor:
        # Each number of a unit vector of 384 is small: scaled to deviation 1.
        condition = self.time(_waves(times)) + self.text(texts * math.sqrt(self.shape.text))
        condition = functional.silu(condition)
        patch = self.shape.patch
        tokens = functional.pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2)
        tokens = self.enter(tokens) + self.places
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, -1)
        tokens = self.leave(_norm(tokens) * (1 + scale) + shift)
        side = self.shape.side // patch
        velocity: Tensor = functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (side, side)), patch)
        return velocity


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm that the condition shifts and scales, and a gate that is closed at
    first (adaLN-Zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.attention = nn.Linear(width, 3 * width)
        self.joined = nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, -1)
        parts = self.attention(_norm(tokens) * (1 + scale1) + shift1)
        query, key, value = parts.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + gate1 * self.joined(seen)
        changed: Tensor = tokens + gate2 * self.perceptron(_norm(tokens) * (1 + scale2) + shift2)
        return changed


def flow_loss(generator: Generator, latents: Tensor, texts: Tensor, times: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity of each sample, [B]; shapes as `Generator`'s."""
    at = times[:, None, None, None]
    velocity: Tensor = generator((1 - at) * latents + at * noise, times, texts)
    return (velocity - (noise - latents)).square().flatten(1).mean(1)


@torch.no_grad()
def draw(generator: Generator, texts: Tensor, noise: Tensor, steps: int = 25, guidance: float = 3.0) -> Tensor:
    """Latents [B, channels, side, side] for captions [B, text], by Euler's steps from noise, with classifier-free
    guidance (arXiv 2207.12598): velocities v(none) + guidance (v(text) - v(none))."""
    latents, both = noise, torch.cat([texts, torch.zeros_like(texts)])
    for step in range(steps):
        times = torch.full((2 * len(texts),), 1 - step / steps)
        captioned, without = generator(torch.cat([latents, latents]), times, both).chunk(2)
        latents = latents - (without + guidance * (captioned - without)) / steps
    return latents


def _norm(tokens: Tensor) -> Tensor:
    return functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)


def _waves(times: Tensor) -> Tensor:
    angles = 1000 * times[:, None] * torch.exp(-math.log(10_000) * torch.arange(64) / 64)
    return torch.cat([angles.cos(), angles.sin()], 1)
