"""`load_encoder`: a name, a path, a model of the hub, a module or a function made an `Encoder`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from shade_fast.encoders.autoencoder import is_diffusers_model, read_autoencoder, wrap_autoencoder
from shade_fast.encoders.encoder import Encoder
from shade_fast.encoders.hub import AUTOENCODER, PREFIX, find_model, is_identifier
from shade_fast.encoders.probe import probe, wrap_callable, wrap_module
from shade_fast.encoders.taesd import SUFFIXES, read_taesd, read_tensors
from shade_fast.terms.errors import ShadeFastError

EncoderSpec = Encoder | str | os.PathLike[str] | nn.Module | Callable[[Tensor], Tensor]


def load_encoder(spec: EncoderSpec, device: torch.device | str = "cpu") -> Encoder:
    """The frozen encoder, in float32 on `device`, that a spec stands for.

    spec: one of
        an `Encoder`, returned as it is, on the device where it is;
        `"embedded"`, the small encoder in the package;
        a diffusers folder with one of `autoencoder.CLASSES`, alone or as a pipeline's `vae`; the same in the
            hub's cache, `owner/name`, or to be downloaded from the hub, `hub:owner/name`;
        a TAESD-family file, `.safetensors`, `.pth` or `.pt`;
        a diffusers autoencoder object;
        any other module, or a function, from float32 images [B, 3, h, w] in [0, 1] to latents [B, C, h/f, w/f],
        whose f and C are found by trying it on small images.
    A module that is given is copied, never changed.

    Raises ShadeFastError, saying what was tried, for an unknown spec, for weights that cannot be read and for an
    encoder that does not keep its contract.
    """
    if isinstance(spec, Encoder):
        return spec
    if isinstance(spec, nn.Module):
        if is_diffusers_model(spec):
            return wrap_autoencoder(spec, type(spec).__name__, device, owned=False)
        return wrap_module(spec, device)
    if isinstance(spec, str | os.PathLike):
        return _load_named(os.fspath(spec), device)
    if callable(spec):
        return wrap_callable(spec, device)
    raise ShadeFastError(
        f"an encoder is a name, a path, a model of the hub, a module or a function; got {type(spec).__name__} {spec!r}"
    )


def _load_named(name: str, device: torch.device | str) -> Encoder:
    if name == "embedded":
        return _load_embedded(device)
    if name.startswith(PREFIX):
        return _load_model(name, device)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return _load_folder(path, path.resolve().name, device)
    if path.is_file():
        if path.suffix in SUFFIXES:
            return read_taesd(path, device)
        raise ShadeFastError(f"{path} is not an encoder: a file of weights ends in {', '.join(SUFFIXES)}")
    tried = f"no encoder {name!r}: it is not 'embedded', and no file or folder is there{_near_names(name, path)}"
    if not is_identifier(name) or path.suffix in SUFFIXES:
        raise ShadeFastError(f"{tried}. Give 'embedded', a folder, a TAESD-family file, or hub:owner/name")
    try:
        return _load_model(name, device)
    except ShadeFastError as error:
        raise ShadeFastError(f"{tried}; {error}") from error


def _load_model(name: str, device: torch.device | str) -> Encoder:
    model = find_model(name, AUTOENCODER)
    return _load_folder(model.folder, model.name, device)


def _load_folder(path: Path, name: str, device: torch.device | str) -> Encoder:
    try:
        return read_autoencoder(path, name, device)
    except ShadeFastError as error:
        files = sorted(entry.name for entry in path.iterdir() if entry.suffix in SUFFIXES and "encoder" in entry.stem)
        if (path / "config.json").is_file() or not files:
            raise
        raise ShadeFastError(f"{error}. The folder holds {', '.join(files[:3])}: give that file's path") from error


def _load_embedded(device: torch.device | str) -> Encoder:
    from shade_fast.encoders.embedded import network

    folder = Path(network.__file__).parent
    module = _with_weights(network.EmbeddedEncoder(), folder / "encoder.safetensors")
    factor, channels = probe(module, "embedded")
    decoder = folder / "decoder.safetensors"
    return Encoder(
        module,
        name="embedded",
        kind="embedded",
        factor=factor,
        channels=channels,
        load_decoder=_load_embedded_decoder if decoder.is_file() else None,
        device=device,
    )


def _load_embedded_decoder() -> nn.Module:
    from shade_fast.encoders.embedded import network

    return _with_weights(network.EmbeddedDecoder(), Path(network.__file__).parent / "decoder.safetensors")


def _with_weights(module: nn.Module, path: Path) -> nn.Module:
    if not path.is_file():
        raise ShadeFastError(f"the package lacks {path}: install shade_fast again")
    try:
        module.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise ShadeFastError(f"{path} does not fit the package's network: install shade_fast again") from error
    return module.float().eval()


def _near_names(name: str, path: Path) -> str:
    beside = [str(entry) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(name, ["embedded", *beside], n=3)
    return f" (near it: {', '.join(repr(entry) for entry in near)})" if near else ""
