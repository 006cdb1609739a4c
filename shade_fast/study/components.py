"""An autoencoder with smaller latents: the principal components of its own.

Latent diffusion models are trained on few numbers, 4 channels at an eighth of the side in Stable Diffusion. An
autoencoder for far larger models has many (FLUX.2's 32), most of them of fine detail, which a small generator does not
learn. Here each 2x2 patch of the latent is projected on the first principal components of photographs' patches. The
generator, and whoever protects images from it, take the two together as the encoder.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from shade_fast.encoders import Encoder
from shade_fast.images import UInt8Array
from shade_fast.study.examples import encode
from shade_fast.system.files import write_whole
from shade_fast.terms.errors import ShadeFastError

#: Side of the patches, in elements of the latent.
PATCH = 2


def with_components(encoder: Encoder, count: int, images: UInt8Array, path: Path) -> Encoder:
    """The encoder with `count` components for each patch of its latents, and its decoder behind them.

    images: uint8 [N, h, w, 3], photographs whose components these are. path: .safetensors file that they are kept in,
    and read from where it exists: another machine may round them otherwise, which makes another encoder.
    Raises ShadeFastError for a count below 1 or above the numbers of a patch, for a file that holds something else, and
    for an encoder without a decoder.
    """
    numbers = check_components(encoder, count)
    encoder.check_decoder()
    basis, mean = _read(path, count, numbers) if path.exists() else _found(encode(encoder, images), count)
    if not path.exists():
        write_whole(path, save({"basis": basis, "mean": mean}))
    return Encoder(
        _Projected(encoder.module, basis),
        name=f"{encoder.name}, {count} components",
        kind="module",
        factor=encoder.factor * PATCH,
        channels=count,
        load_decoder=lambda: _Restored(encoder.decoder(), basis, mean),
        device=encoder.device,
    )


def check_components(encoder: Encoder, count: int) -> int:
    """How many numbers a patch of the encoder's latents has. Raises ShadeFastError for more components than that."""
    numbers = encoder.channels * PATCH**2
    if not 1 <= count <= numbers:
        raise ShadeFastError(f"components={count}: encoder {encoder.name!r} has 1 to {numbers} of them")
    return numbers


class _Projected(nn.Module):
    """Images to the components of the latents' patches, [B, components, h / PATCH, w / PATCH]: a convolution."""

    def __init__(self, module: nn.Module, basis: Tensor) -> None:
        super().__init__()
        self.module = module
        self.project = nn.Conv2d(basis.shape[1] // PATCH**2, len(basis), PATCH, PATCH, bias=False)
        self.project.weight.data = basis.reshape(len(basis), -1, PATCH, PATCH).clone()

    def forward(self, images: Tensor) -> Tensor:
        components: Tensor = self.project(self.module(images))
        return components


class _Restored(nn.Module):
    """Components back to latents, with the mean for all other components, and to images."""

    def __init__(self, decoder: nn.Module, basis: Tensor, mean: Tensor) -> None:
        super().__init__()
        self.restore = nn.Conv2d(len(basis), basis.shape[1], 1)
        self.restore.weight.data = basis.T[:, :, None, None].clone()
        self.restore.bias = nn.Parameter(mean - basis.T @ (basis @ mean))
        self.decoder = decoder

    def forward(self, components: Tensor) -> Tensor:
        images: Tensor = self.decoder(functional.pixel_shuffle(self.restore(components), PATCH))
        return images


def _found(latents: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first components of latents' patches, orthonormal [count, C·PATCH²], and the patches' mean [C·PATCH²]."""
    patches = functional.pixel_unshuffle(latents.double(), PATCH).transpose(0, 1).flatten(1)
    mean = patches.mean(1)
    basis = torch.linalg.eigh(torch.cov(patches)).eigenvectors.flip(1)[:, :count].T
    # A component's sign is arbitrary: its largest number is made positive.
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    return (basis * largest.sign()).float().contiguous(), mean.float()


def _read(path: Path, count: int, numbers: int) -> tuple[Tensor, Tensor]:
    try:
        tensors = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise ShadeFastError(f"{path}: cannot be read ({error}); delete it, and what was made with it") from error
    basis, mean = tensors.get("basis"), tensors.get("mean")
    if basis is None or mean is None or basis.shape != (count, numbers) or mean.shape != (numbers,):
        raise ShadeFastError(f"{path}: does not hold {count} components of {numbers} numbers; give another folder")
    return basis, mean
