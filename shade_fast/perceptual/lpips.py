"""LPIPS, with the clean image's features computed once and only the perturbed image's gradient made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shade_fast.errors import ShadeFastError
from shade_fast.ops.lpips_layer import lpips_layer, unit_length

# LPIPS takes images in [-1,1] to (image - shift) / scale, per RGB channel.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class Perceptual(nn.Module):
    """A frozen LPIPS network: the perceptual distance of two images, about 0 (same) to 1 (unlike).

    Images are float [B,3,h,w] RGB in [0,1], of the network's dtype (float32, or float64 after `.to(torch.float64)`)
    and device, in any memory layout; they are never written to. An image with a side under `minimum_side` pixels (vgg
    16, st-vgg 18, alex 31, st-alex 21, squeeze 17) is padded to it with its edge pixels, evenly on both sides; both
    images alike. Unfit images or features raise ShadeFastError.

    `name` is the network's, `source` the file of its trunk, `sha256` the digest of all the weights in use.

    Formula and numerics: arXiv 1801.03924, version 0.1 of the published networks.
    """

    gain: Tensor
    offset: Tensor

    def __init__(
        self,
        name: str,
        trunk: nn.ModuleList,
        heads: Sequence[Tensor],
        *,
        minimum_side: int,
        source: Path | None = None,
        sha256: str | None = None,
    ) -> None:
        """Freeze `trunk`, a list of stages, with one head [C] for the output [B,C,h,w] of each stage."""
        super().__init__()
        self.name = name
        self.source = source
        self.sha256 = sha256
        self.minimum_side = minimum_side
        self.trunk = trunk
        self.heads = nn.ParameterList([nn.Parameter(head) for head in heads])
        scale, shift = torch.tensor(_SCALE), torch.tensor(_SHIFT)
        self.register_buffer("gain", (2.0 / scale)[None, :, None, None], persistent=False)
        self.register_buffer("offset", (-(1.0 + shift) / scale)[None, :, None, None], persistent=False)
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """The clean images' side of the distance, to compute once and keep.

        images: [B,3,h,w] in [0,1]. Returns one tensor [B,C,h',w'] per compared layer, of unit length along C.
        """
        return tuple(unit_length(activations, backend="reference") for activations in self._activations(images))

    def distance(self, images: Tensor, clean_features: Sequence[Tensor]) -> Tensor:
        """The distance [B] of `images` from the clean images whose `features` are given; differentiable in `images`.

        images: [B,3,h,w] in [0,1], as many and as large as the clean images were.
        """
        if len(clean_features) != len(self.heads):
            raise ShadeFastError(
                f"{self.name} compares {len(self.heads)} layers, but {len(clean_features)} clean features were given: "
                f"take them from features() of the same network"
            )
        layers = []
        for activations, clean, head in zip(self._activations(images), clean_features, self.heads, strict=True):
            if activations.shape != clean.shape:
                raise ShadeFastError(
                    f"images of shape {tuple(images.shape)} make {self.name} features of shape "
                    f"{tuple(activations.shape)}, the clean features have {tuple(clean.shape)}: "
                    f"both must come from the same number of images of the same size"
                )
            layers.append(lpips_layer(activations, clean.detach(), head, backend="reference"))
        return torch.stack(layers).sum(0)

    def forward(self, images: Tensor, clean_images: Tensor) -> Tensor:
        """The distance [B] of two batches [B,3,h,w] in [0,1]; differentiable in the first."""
        return self.distance(images, self.features(clean_images))

    def _activations(self, images: Tensor) -> Iterator[Tensor]:
        self._check(images)
        # The zero padding of the first convolution is that of the scaled image, so the scaling cannot move into its
        # weights.
        features = _pad_to(images, self.minimum_side) * self.gain + self.offset
        for stage in self.trunk:
            features = stage(features)
            yield features

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ShadeFastError(f"images must be [B,3,h,w] with at least one pixel, not {tuple(images.shape)}")
        if images.dtype != self.gain.dtype or images.device != self.gain.device:
            raise ShadeFastError(
                f"images are {images.dtype} on {images.device}, {self.name} is {self.gain.dtype} on "
                f"{self.gain.device}: move one with .to(...)"
            )


def _pad_to(images: Tensor, side: int) -> Tensor:
    height, width = images.shape[2:]
    down, across = max(side - height, 0), max(side - width, 0)
    if not down and not across:
        return images
    return F.pad(images, (across // 2, across - across // 2, down // 2, down - down // 2), mode="replicate")
