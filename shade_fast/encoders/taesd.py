"""TAESD-family files: TAESD, TAESDXL, TAESD3, TAEF1 and TAEF2, `.safetensors` or `.pth`.

The layout is that of github.com/madebyollin/taesd, known by the numbers of its layers. Both halves map RGB in [0, 1]
to and from latents that are already scaled as the large model's trainers scale theirs.
"""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from shade_fast.encoders.encoder import Encoder
from shade_fast.terms.errors import ShadeFastError, reason

WIDTH = 64
FACTOR = 8
SUFFIXES = (".safetensors", ".pth", ".pt")


def read_taesd(path: Path, device: torch.device | str) -> Encoder:
    """The encoder in a TAESD-family file, its decoder from the same file or the one beside it.

    Keys are the layers' numbers, after a prefix or none: `0.weight`, `encoder.0.weight`, `encoder.layers.0.weight`.
    The latent's channels and the mid-block GroupNorm are read from the weights. No pickled code runs.
    Raises ShadeFastError for a file that cannot be read and for missing, unknown or misshapen weights.
    """
    weights = read_tensors(path)
    encoder = _build("encoder", weights, path)
    channels = encoder.get_parameter("14.weight").shape[0]
    return Encoder(
        encoder,
        name=re.sub(r"[_.-]?encoder", "", path.stem) or path.stem,
        kind="taesd",
        factor=FACTOR,
        channels=channels,
        load_decoder=_decoder_loader(weights, path),
        device=device,
    )


def taesd_encoder(channels: int, midblock_norm: bool) -> nn.Sequential:
    """Untrained encoder: images [B, 3, h, w] in [0, 1] to latents [B, channels, h/8, w/8]."""
    layers: list[nn.Module] = [_conv(3, WIDTH), Block()]
    for resolution in (2, 4, 8):
        layers.append(_conv(WIDTH, WIDTH, stride=2, bias=False))
        layers += [Block(midblock_norm and resolution == 8) for _ in range(3)]
    return nn.Sequential(*layers, _conv(WIDTH, channels))


def taesd_decoder(channels: int, midblock_norm: bool) -> nn.Sequential:
    """Untrained decoder: latents [B, channels, h, w] to images [B, 3, 8·h, 8·w] about [0, 1]."""
    layers: list[nn.Module] = [SoftClamp(), _conv(channels, WIDTH), nn.ReLU()]
    for resolution in (8, 4, 2):
        layers += [Block(midblock_norm and resolution == 8) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), _conv(WIDTH, WIDTH, bias=False)]
    return nn.Sequential(*layers, Block(), _conv(WIDTH, 3))


class Block(nn.Module):
    """Residual block on [B, 64, h, w]: `relu(conv(y) + y)`, where `y = x + pool(x)` with a norm and `y = x` without.

    `conv` is three 3x3 convolutions with ReLU between; `pool` widens to 256 channels, normalises in 4 groups over the
    whole picture, and narrows again.
    """

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH))
        self.pool: nn.Module | None = None
        if norm:
            self.pool = nn.Sequential(
                nn.Conv2d(WIDTH, 4 * WIDTH, 1, bias=False),
                nn.GroupNorm(4, 4 * WIDTH),
                nn.ReLU(),
                nn.Conv2d(4 * WIDTH, WIDTH, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 [B, 64, h, w]."""
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class SoftClamp(nn.Module):
    """`3·tanh(x / 3)`: latents kept in [-3, 3]."""

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape."""
        return torch.tanh(x / 3) * 3


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors in a `.safetensors` or torch file, which may hold nothing else; no pickled code runs.

    Raises ShadeFastError naming the file and what is wrong with it.
    """
    content: object
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ShadeFastError(
            f"{path} was not read: it is a pickle that asks for more than plain tensors (code, perhaps), or no torch "
            "file at all; get the weights as .safetensors, or save the state_dict alone"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise ShadeFastError(
            f"cannot read {path} ({reason(error)}): it is damaged or holds no weights; get the file again"
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ShadeFastError(f"{path} holds more than named tensors; save the encoder's state_dict alone")
    return dict(content)


def _conv(inputs: int, outputs: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


_KEY = re.compile(r"(?P<prefix>(?:[A-Za-z_]\w*\.)*)(?P<layer>\d+)\.(?P<rest>.+)")

_HALVES: dict[str, tuple[Callable[[int, bool], nn.Sequential], str, int]] = {
    "encoder": (taesd_encoder, "14.weight", 0),
    "decoder": (taesd_decoder, "1.weight", 1),
}


def _build(half: str, weights: dict[str, Tensor], path: Path) -> nn.Sequential:
    """One half with its weights in it; the latent's channels stand in one weight's shape."""
    create, latent_key, latent_axis = _HALVES[half]
    layers = _layers(half, weights)
    latent_weight = layers.get(latent_key)
    channels = latent_weight.shape[latent_axis] if latent_weight is not None and latent_weight.ndim == 4 else 4
    network = create(channels, any(".pool." in key for key in layers))

    expected = network.state_dict()
    faults = [f"no {key}" for key in expected if key not in layers]
    faults += [f"unknown {key}" for key in layers if key not in expected]
    faults += [
        f"{key} is {tensor.dtype} {list(tensor.shape)}, not floating-point {list(expected[key].shape)}"
        for key, tensor in layers.items()
        if key in expected and (tensor.shape != expected[key].shape or not tensor.is_floating_point())
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ShadeFastError(
            f"{path} is not a TAESD-family {half}: {'; '.join(faults[:3])}{more}. "
            "An AutoencoderKL is given as its diffusers folder, with the config.json beside the weights"
        )
    network.load_state_dict(layers)
    return network


def _layers(half: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The half's weights by layer number, their prefix removed; keys of another form keep their name."""
    other = "decoder" if half == "encoder" else "encoder"
    matches = {key: _KEY.fullmatch(key) for key in weights if other not in key}
    prefixes = Counter(match["prefix"] for match in matches.values() if match)
    prefix = max(prefixes, key=lambda prefix: (half in prefix, prefixes[prefix]), default="")
    numbers = [int(match["layer"]) for match in matches.values() if match and match["prefix"] == prefix]
    # diffusers counts the decoder's layers without its clamp, so its numbers begin one earlier.
    offset = 1 if half == "decoder" and 0 in numbers else 0
    return {
        f"{int(match['layer']) + offset}.{match['rest']}" if match and match["prefix"] == prefix else key: weights[key]
        for key, match in matches.items()
    }


def _decoder_loader(weights: dict[str, Tensor], path: Path) -> Callable[[], nn.Module] | None:
    if any("decoder." in key for key in weights):
        return partial(_build, "decoder", weights, path)
    beside = path.with_name(path.name.replace("encoder", "decoder"))
    return partial(_read_decoder, beside) if beside != path and beside.is_file() else None


def _read_decoder(path: Path) -> nn.Module:
    return _build("decoder", read_tensors(path), path)
