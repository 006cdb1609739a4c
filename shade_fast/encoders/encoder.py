"""What every encoder is, whatever file or object it came from."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from shade_fast.terms.errors import ShadeFastError


class Encoder:
    """A frozen map from images to latents, and back where a decoder is known.

    Attributes:
        name: what to call it in a report.
        kind: where it came from: `embedded`, `kl`, `tiny`, `taesd`, `module` or `callable`.
        module: the map itself, float32 [B, 3, h, w] in [0, 1] to latents [B, channels, h/factor, w/factor];
            in eval mode, no weight wants a gradient.
        factor: pixels of the image per element of the latent, along each side.
        channels: channels of the latent.
        sha256: hash of the weights and of the latent's scaling (see `weights_sha256`); None without any.
        device: where `module` is; a plain callable decides for itself.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        kind: str,
        factor: int,
        channels: int,
        load_decoder: Callable[[], nn.Module] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Take over `module` (it is frozen in place).

        `load_decoder` is called at the first `decode`; it gives a module of its own, from latents to images in
        [0, 1], that nobody else holds.
        """
        self.name = name
        self.kind = kind
        self.factor = factor
        self.channels = channels
        self.device = torch.device(device)
        self.module = _freeze(module, self.device)
        self.sha256 = weights_sha256(module)
        self._load_decoder = load_decoder
        self._decoder: nn.Module | None = None

    def __repr__(self) -> str:
        return f"Encoder({self.name!r}, {self.kind}, factor={self.factor}, channels={self.channels}, {self.device})"

    @property
    def has_decoder(self) -> bool:
        """Whether `decode` works."""
        return self._load_decoder is not None

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images: the mean where the encoder is a distribution, scaled as its model's trainers scale it.

        images: floating point [B, 3, h, w], RGB in [0, 1], h and w multiples of `factor`.
        Returns float32 [B, channels, h/factor, w/factor], differentiable in `images`.
        Raises ShadeFastError for another shape or dtype.
        """
        self.check_images(images)
        latents: Tensor = self.module(images.float()).float()
        batch, _, height, width = images.shape
        expected = (batch, self.channels, height // self.factor, width // self.factor)
        if latents.shape != expected:
            raise ShadeFastError(
                f"encoder {self.name!r} gave latents {list(latents.shape)} for images {list(images.shape)}, "
                f"not {list(expected)}: its factor or channels change with the size; give it images of another size"
            )
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Images that the model sees in latents: float32 [B, 3, h·factor, w·factor], RGB clamped to [0, 1].

        latents: floating point [B, channels, h, w], scaled as `encode` gives them.
        Raises ShadeFastError where there is no decoder, and for another shape or dtype.
        """
        self.check_decoder()
        if latents.ndim != 4 or latents.shape[1] != self.channels or not latents.is_floating_point():
            raise ShadeFastError(
                f"encoder {self.name!r} decodes floating-point latents [B, {self.channels}, h, w]; "
                f"got {latents.dtype} {list(latents.shape)}"
            )
        images: Tensor = self.decoder()(latents.float()).clamp(0, 1)
        return images

    def decoder(self) -> nn.Module:
        """What `decode` runs, loaded at the first use: float32 latents to images that are not clamped yet.

        Raises ShadeFastError where there is no decoder.
        """
        load = self._decoder_loader()
        if self._decoder is None:
            self._decoder = _freeze(load(), self.device)
        return self._decoder

    def check_decoder(self) -> None:
        """Raise ShadeFastError where there is no decoder."""
        self._decoder_loader()

    def _decoder_loader(self) -> Callable[[], nn.Module]:
        if self._load_decoder is None:
            raise ShadeFastError(
                f"encoder {self.name!r} has no decoder: load a diffusers autoencoder, or put a TAESD-family decoder "
                "file beside the encoder's ('encoder' in the name replaced by 'decoder')"
            )
        return self._load_decoder

    def to(self, device: torch.device | str) -> Encoder:
        """This encoder on a device: itself where it is there already, otherwise an independent copy."""
        device = torch.device(device)
        if device == self.device:
            return self
        moved = copy.copy(self)
        moved.device = device
        moved.module = _freeze(copy.deepcopy(self.module), device)
        moved._decoder = None
        return moved

    def frozen(self, freeze: Callable[[nn.Module], nn.Module]) -> Encoder:
        """This encoder with its map, and its decoder's, executed by what `freeze` makes of them (see
        `shade_fast.runtime.freeze`)."""
        frozen = copy.copy(self)
        frozen.module = freeze(self.module)
        if self.has_decoder:
            frozen._load_decoder = lambda: freeze(self.decoder())
            frozen._decoder = None
        return frozen

    def without_decoder(self) -> Encoder:
        """This encoder without its decoder; it can be pickled where its module can."""
        plain = copy.copy(self)
        plain._load_decoder = plain._decoder = None
        return plain

    def describe(self) -> dict[str, str | int | bool | None]:
        """The encoder as plain values, for a report or a manifest."""
        return {
            "name": self.name,
            "kind": self.kind,
            "factor": self.factor,
            "channels": self.channels,
            "sha256": self.sha256,
            "parameters": sum(parameter.numel() for parameter in self.module.parameters()),
            "has_decoder": self.has_decoder,
        }

    def check_images(self, images: Tensor) -> None:
        """Raise ShadeFastError for what `encode` does not take."""
        if not isinstance(images, Tensor):
            raise ShadeFastError(f"encoder {self.name!r} takes a tensor; got {type(images).__name__}")
        if not images.is_floating_point():
            raise ShadeFastError(
                f"encoder {self.name!r} takes floating-point images in [0, 1]; got {images.dtype}: divide by 255 first"
            )
        if (
            images.ndim != 4
            or images.shape[1] != 3
            or any(side < self.factor or side % self.factor for side in images.shape[2:])
        ):
            raise ShadeFastError(
                f"encoder {self.name!r} takes images [B, 3, h, w] with h and w multiples of {self.factor} and at least "
                f"{self.factor}; got {list(images.shape)}: resize or crop them first"
            )


def weights_sha256(module: nn.Module) -> str | None:
    """Hash of a module's parameters and buffers: names in sorted order, dtypes, shapes and bytes; None without any."""
    tensors = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    if not tensors:
        return None
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _freeze(module: nn.Module, device: torch.device) -> nn.Module:
    return module.eval().requires_grad_(False).float().to(device)
