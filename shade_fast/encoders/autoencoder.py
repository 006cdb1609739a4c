"""diffusers' autoencoders, from a folder or an object: the classes of `CLASSES`, where one more is a row.

Their encoders take images in [-1, 1]. A model's trainers do not use what comes out as it is, but

    latents = (mean - shift) · scale

with `shift` and `scale` from the autoencoder's config: `scaling_factor` (SD 1 and 2: 0.18215, SDXL: 0.13025),
`shift_factor` (SD3: 0.0609 with 1.5305, FLUX: 0.1159 with 0.3611), or per-channel `latents_mean` and `latents_std`,
as diffusers' pipelines and training scripts apply them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shade_fast.encoders.encoder import Encoder
from shade_fast.terms.errors import ShadeFastError, reason


@dataclass(frozen=True)
class AutoencoderClass:
    """How an autoencoder of one of diffusers' classes is cut into an encoder and a decoder.

    kind: what `Encoder.kind` says. encoder, decoder: its modules in the order that they run, by attribute; one that is
    None is left out. factor: pixels per latent, of its config.
    """

    kind: str
    encoder: tuple[str, ...]
    decoder: tuple[str, ...]
    factor: Callable[[Any], int]


#: By the class's name, as `config.json` has it.
CLASSES = {
    "AutoencoderKL": AutoencoderClass(
        "kl",
        ("encoder", "quant_conv"),
        ("post_quant_conv", "decoder"),
        lambda config: 2 ** (len(config.block_out_channels) - 1),
    ),
    "AutoencoderTiny": AutoencoderClass(
        "tiny",
        ("encoder",),
        ("decoder",),
        lambda config: 2 ** (len(config.encoder_block_out_channels) - 1),
    ),
}


def read_autoencoder(folder: Path, name: str, device: torch.device | str) -> Encoder:
    """The autoencoder in a local folder, or in its subfolder `vae`, under a name. Code and pickles there are not run.

    Raises ShadeFastError that lists what was tried.
    """
    diffusers = _import_diffusers()
    tried = []
    for place in (folder, folder / "vae"):
        if not (place / "config.json").is_file():
            tried.append(f"{place} has no config.json")
            continue
        try:
            config: object = diffusers.AutoencoderKL.load_config(str(place), local_files_only=True)
        except Exception as error:  # diffusers raises many kinds
            tried.append(f"{place}: {reason(error)}")
            continue
        class_name = config.get("_class_name") if isinstance(config, dict) else None
        if not isinstance(class_name, str) or class_name not in CLASSES:
            tried.append(f"{place} holds {_known_as(class_name)}, not {' or '.join(CLASSES)}")
            continue
        return wrap_autoencoder(_read_weights(getattr(diffusers, class_name), place), name, device)
    raise ShadeFastError(f"no autoencoder for {name!r}: {'; '.join(tried)}")


def is_diffusers_model(module: nn.Module) -> bool:
    """Whether an object's class comes from diffusers, found without importing it."""
    return any(kind.__module__.startswith("diffusers.models.") for kind in type(module).__mro__)


def wrap_autoencoder(autoencoder: Any, name: str, device: torch.device | str, *, owned: bool = True) -> Encoder:
    """The encoder in a diffusers autoencoder object; without `owned` the object is copied and left as it is.

    Raises ShadeFastError for a class that is not in `CLASSES`.
    """
    diffusers = _import_diffusers()
    config = autoencoder.config
    known = next((row for name, row in CLASSES.items() if isinstance(autoencoder, getattr(diffusers, name, ()))), None)
    if known is None:
        raise ShadeFastError(
            f"{type(autoencoder).__name__} is not an autoencoder that is known here ({', '.join(CLASSES)}): "
            "wrap it in a function from images [B, 3, h, w] in [0, 1] to latents [B, C, h/f, w/f]"
        )
    before, after = ([getattr(autoencoder, part) for part in parts] for parts in (known.encoder, known.decoder))
    if config.in_channels != 3:
        raise ShadeFastError(f"the autoencoder {name!r} takes {config.in_channels} channels: RGB images have 3")
    channels = int(config.latent_channels)
    shift, scale = _shift_and_scale(config, channels, name)
    return Encoder(
        ScaledEncoder(_chain(before) if owned else _copied_chain(before), shift, scale),
        name=name,
        kind=known.kind,
        factor=known.factor(config),
        channels=channels,
        load_decoder=partial(_copied_decoder, after, shift, scale),
        device=device,
    )


class ScaledEncoder(nn.Module):
    """Images in [0, 1] to scaled latents: `(network(2·images - 1)[:, :channels] - shift) · scale`.

    The network of an `AutoencoderKL` gives 2·channels: the posterior's mean, its mode, and then its log-variance, which
    is left. shift, scale: [1, channels, 1, 1].
    """

    def __init__(self, network: nn.Module, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)
        self.shift: Tensor
        self.scale: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """images: float32 [B, 3, h, w] in [0, 1]."""
        mean: Tensor = self.network(images * 2 - 1)[:, : self.shift.shape[1]]
        return (mean - self.shift) * self.scale


class ScaledDecoder(nn.Module):
    """Scaled latents to images about [0, 1]: `(network(latents / scale + shift) + 1) / 2`."""

    def __init__(self, network: nn.Module, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)
        self.shift: Tensor
        self.scale: Tensor

    def forward(self, latents: Tensor) -> Tensor:
        """latents: float32 [B, channels, h, w]."""
        images: Tensor = self.network(latents / self.scale + self.shift)
        return (images + 1) / 2


def _import_diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ShadeFastError(f"a diffusers autoencoder needs diffusers ({error}): pip install diffusers") from error
    return diffusers


def _read_weights(kind: Any, place: Path) -> Any:
    failures = []
    for variant in (None, "fp16"):  # many repositories hold half-precision files only
        try:
            autoencoder, info = kind.from_pretrained(
                str(place),
                local_files_only=True,
                use_safetensors=True,
                variant=variant,
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        except Exception as error:  # diffusers raises many kinds
            failures.append(reason(error))
            continue
        missing = sorted(info["missing_keys"])
        if missing:
            raise ShadeFastError(
                f"the weights in {place} lack {len(missing)} that its config.json asks for: "
                f"{', '.join(missing[:3])}; download them again"
            )
        return autoencoder
    raise ShadeFastError(f"cannot read the weights in {place}: {'; with variant fp16: '.join(failures)}")


def _shift_and_scale(config: Any, channels: int, name: str) -> tuple[Tensor, Tensor]:
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    shift = config.get("shift_factor") if mean is None else mean
    scale = config.get("scaling_factor")
    try:
        shift = torch.tensor(0.0 if shift is None else shift, dtype=torch.float32).expand(channels)
        scale = torch.tensor(1.0 if scale is None else scale, dtype=torch.float32).expand(channels)
        if deviation is not None:
            scale = scale / torch.tensor(deviation, dtype=torch.float32).expand(channels)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ShadeFastError(
            f"the config of {name!r} scales its latents with values that are not one number or {channels}: {error}"
        ) from error
    if not (shift.isfinite().all() and scale.isfinite().all() and (scale != 0).all()):
        raise ShadeFastError(f"the config of {name!r} scales its latents by zero or a value that is not finite")
    return shift.reshape(1, channels, 1, 1).clone(), scale.reshape(1, channels, 1, 1).clone()


def _chain(parts: Sequence[nn.Module | None]) -> nn.Module:
    return nn.Sequential(*(part for part in parts if part is not None))


def _copied_chain(parts: Sequence[nn.Module | None]) -> nn.Module:
    chain = copy.deepcopy(_chain(parts))
    module: Any
    for module in chain.modules():
        # Gradient checkpointing that a training script switched on only costs time here, and makes AutoencoderTiny skip
        # the step from [-1, 1] to [0, 1].
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False
    return chain


def _copied_decoder(parts: Sequence[nn.Module | None], shift: Tensor, scale: Tensor) -> nn.Module:
    return ScaledDecoder(_copied_chain(parts), shift.clone(), scale.clone())


def _known_as(class_name: object) -> str:
    return f"a {class_name}" if class_name else "a model without a diffusers class"
