"""The embedded autoencoder: a small f8 encoder and decoder with 4 latent channels, made for trials and tests."""

from __future__ import annotations

import torch
from torch import nn

FACTOR = 8
CHANNELS = 4


class EmbeddedEncoder(nn.Module):
    """Images to latents, deterministically: the latent is the mean, there is nothing to sample.

    Input `[B, 3, h, w]`, RGB in [0, 1], h and w multiples of 8; output `[B, 4, h/8, w/8]`, about zero mean and unit
    standard deviation in every channel over photographs. 31 thousand multiply-adds for every input pixel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            ResidualBlock(32),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            ResidualBlock(64),
            ResidualBlock(64),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            ResidualBlock(128),
            ResidualBlock(128),
            ResidualBlock(128),
            nn.Conv2d(128, CHANNELS, 3, padding=1),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self.layers(images - 0.5)
        return latents


class EmbeddedDecoder(nn.Module):
    """Latents to images: `[B, 4, h, w]` to `[B, 3, 8h, 8w]`, RGB around [0, 1], not clamped.

    The clamp is left to the caller, so that the gradient at the ends of the range is his choice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(CHANNELS, 128, 3, padding=1),
            ResidualBlock(128),
            ResidualBlock(128),
            ResidualBlock(128),
            nn.Conv2d(128, 256, 3, padding=1),
            nn.PixelShuffle(2),
            ResidualBlock(64),
            ResidualBlock(64),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.PixelShuffle(2),
            ResidualBlock(32),
            nn.Conv2d(32, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        images: torch.Tensor = self.layers(latents) + 0.5
        return images


class ResidualBlock(nn.Module):
    """`relu(x + conv(relu(conv(x))))` with 3x3 convolutions; shape and channel count are kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.relu(values + self.second(torch.relu(self.first(values))))
