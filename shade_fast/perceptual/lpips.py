"""LPIPS, with the clean image's features computed once and only the perturbed image's gradient made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shade_fast.ops.lpips_layer import lpips_layer, unit_length
from shade_fast.terms.errors import ShadeFastError

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
        self.activations = _Activations(trunk, minimum_side)
        self.heads = nn.ParameterList([nn.Parameter(head) for head in heads])
        #: what `features` runs: images to the clean side of the distance
        self.clean_side: nn.Module = _Features(self.activations, "reference")
        self._distances: nn.Module = _Distances(self.activations, self.heads, "reference")
        self.requires_grad_(False)
        self.eval()

    def frozen(self, freeze: Callable[[nn.Module], nn.Module]) -> Perceptual:
        """This network executed by what `freeze` makes of its two maps (see `shade_fast.runtime.freeze`)."""
        frozen = copy.copy(self)
        frozen._modules = dict(self._modules)
        frozen.clean_side = freeze(_Features(self.activations, "native"))
        frozen._distances = freeze(_Distances(self.activations, self.heads, "native"))
        return frozen

    @property
    def distances(self) -> nn.Module:
        """What `distance` runs: images and clean features to each layer's share."""
        return self._distances

    @torch.no_grad()
    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """The clean images' side of the distance, to compute once and keep.

        images: [B,3,h,w] in [0,1]. Returns one tensor [B,C,h',w'] per compared layer, of unit length along C.
        """
        self._check(images)
        features: tuple[Tensor, ...] = self.clean_side(images)
        return features

    def distance(self, images: Tensor, clean_features: Sequence[Tensor]) -> Tensor:
        """The distance [B] of `images` from the clean images whose `features` are given; differentiable in `images`.

        images: [B,3,h,w] in [0,1], as many and as large as the clean images were.
        """
        self._check(images)
        if len(clean_features) != len(self.heads):
            raise ShadeFastError(
                f"{self.name} compares {len(self.heads)} layers, but {len(clean_features)} clean features were given: "
                f"take them from features() of the same network"
            )
        distances = self._distances(images, *(features.detach() for features in clean_features))
        return torch.stack(distances).sum(0)

    def forward(self, images: Tensor, clean_images: Tensor) -> Tensor:
        """The distance [B] of two batches [B,3,h,w] in [0,1]; differentiable in the first."""
        return self.distance(images, self.features(clean_images))

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ShadeFastError(f"images must be [B,3,h,w] with at least one pixel, not {tuple(images.shape)}")
        gain = self.activations.gain
        if images.dtype != gain.dtype or images.device != gain.device:
            raise ShadeFastError(
                f"images are {images.dtype} on {images.device}, {self.name} is {gain.dtype} on "
                f"{gain.device}: move one with .to(...)"
            )


class _Activations(nn.Module):
    """Images to what every stage of the trunk makes of them."""

    gain: Tensor
    offset: Tensor

    def __init__(self, trunk: nn.ModuleList, minimum_side: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.minimum_side = minimum_side
        scale, shift = torch.tensor(_SCALE), torch.tensor(_SHIFT)
        self.register_buffer("gain", (2.0 / scale)[None, :, None, None], persistent=False)
        self.register_buffer("offset", (-(1.0 + shift) / scale)[None, :, None, None], persistent=False)

    def forward(self, images: Tensor) -> Iterator[Tensor]:
        # The zero padding of the first convolution is that of the scaled image, so the scaling cannot move into its
        # weights.
        features = _pad_to(images, self.minimum_side) * self.gain + self.offset
        for stage in self.trunk:
            features = stage(features)
            yield features


class _Features(nn.Module):
    """Images to the clean side of the distance."""

    def __init__(self, activations: nn.Module, backend: str) -> None:
        super().__init__()
        self.activations = activations
        self.backend = backend

    def over(self, change: Callable[[nn.Module], nn.Module]) -> _Features:
        """The same sums over what `change` makes of the trunk."""
        return _Features(change(self.activations), self.backend)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(unit_length(activations, backend=self.backend) for activations in self.activations(images))


class _Distances(nn.Module):
    """Images and clean features to each layer's share of the distance, [B]."""

    def __init__(self, activations: nn.Module, heads: nn.ParameterList, backend: str) -> None:
        super().__init__()
        self.activations = activations
        self.heads = heads
        self.backend = backend

    def over(self, change: Callable[[nn.Module], nn.Module]) -> _Distances:
        """The same sums over what `change` makes of the trunk."""
        return _Distances(change(self.activations), self.heads, self.backend)

    def forward(self, images: Tensor, *clean_features: Tensor) -> tuple[Tensor, ...]:
        layers = []
        for activations, clean, head in zip(self.activations(images), clean_features, self.heads, strict=True):
            if activations.shape != clean.shape:
                raise ShadeFastError(
                    f"images of shape {tuple(images.shape)} make features of shape {tuple(activations.shape)}, the "
                    f"clean features have {tuple(clean.shape)}: "
                    "both must come from the same number of images of the same size"
                )
            layers.append(lpips_layer(activations, clean, head, backend=self.backend))
        return tuple(layers)


def _pad_to(images: Tensor, side: int) -> Tensor:
    height, width = images.shape[2:]
    down, across = max(side - height, 0), max(side - width, 0)
    if not down and not across:
        return images
    return F.pad(images, (across // 2, across - across // 2, down // 2, down - down // 2), mode="replicate")
