"""Find, check and load the weights of the LPIPS networks."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shade_fast.perceptual.lpips import Perceptual
from shade_fast.perceptual.trunks import TRUNKS
from shade_fast.terms.errors import ShadeFastError

WEIGHTS_VARIABLE = "SHADE_FAST_WEIGHTS"


class Availability(NamedTuple):
    """Whether a network's weight files are on this machine; `detail` is the trunk's path, or the missing files."""

    name: str
    found: bool
    detail: str


def load_perceptual(name: str = "auto", device: str | torch.device = "cpu") -> Perceptual:
    """Load a perceptual distance by name: `vgg`, `st-vgg`, `alex`, `st-alex`, `squeeze`, or `auto`.

    vgg, alex and squeeze are LPIPS 0.1: the `lpips` package's heads on torchvision's trunks; st-vgg and st-alex are
    the shift-tolerant networks of the `stlpips-pytorch` package. Files are read as data: no package is imported and
    no pickle is run. Each is looked for in the folder that the environment variable SHADE_FAST_WEIGHTS names, then in
    the installed package (heads, shift-tolerant networks) or in torch.hub's checkpoints (trunks).

    `auto` loads the first that is there of vgg, st-vgg, alex, st-alex, squeeze; the result's `name` says which. VGG
    trunks come first because they are stricter to optimise against: of the same ±8/255 sign noise on three photographs
    at 256x256, st-vgg measures 1.9 to 2.6 times what st-alex measures, so a bound leaves less room.

    Raises ShadeFastError for an unknown name, a missing file (with every place that was searched, and how to get it)
    and a file that cannot be read or holds other weights; `auto` does not pass over such a file either.
    """
    if name == "auto":
        name = _strongest()
    if name not in _NETWORKS:
        nearest = difflib.get_close_matches(name.lower(), [*_NETWORKS, "auto"], n=1, cutoff=0.0)[0]
        raise ShadeFastError(
            f"unknown perceptual network {name!r}: did you mean {nearest!r}? There are auto, {', '.join(_NETWORKS)}"
        )
    network = _NETWORKS[name]
    if missing := network.missing():
        raise ShadeFastError(f"the weights of the perceptual network {name!r} are missing.\n{_how_to_get(missing)}")
    return _build(name, network.trunk.path(), network.heads.path()).to(device)


def available() -> list[Availability]:
    """Which networks' files are on this machine, the strongest network first; the files are not opened."""
    rows = []
    for name, network in _NETWORKS.items():
        missing = [file.name for file in network.missing()]
        detail = f"missing {', '.join(missing)}" if missing else str(network.trunk.path())
        rows.append(Availability(name, not missing, detail))
    return rows


@dataclass(frozen=True)
class _WeightFile:
    """A published file: its name below the folders that are searched, the package that carries it, how to get it."""

    name: str
    package: str | None
    fix: str

    def folders(self) -> list[Path]:
        named = os.environ.get(WEIGHTS_VARIABLE)
        carried = _package_weights(self.package) if self.package else [Path(torch.hub.get_dir()) / "checkpoints"]
        return [*([Path(named).expanduser()] if named else []), *carried]

    def is_there(self) -> bool:
        return any((folder / self.name).is_file() for folder in self.folders())

    def path(self) -> Path:
        return next(folder / self.name for folder in self.folders() if (folder / self.name).is_file())

    def searched(self) -> str:
        places = [str(folder) for folder in self.folders()]
        if not os.environ.get(WEIGHTS_VARIABLE):
            places.append(f"the folder that ${WEIGHTS_VARIABLE} names (not set)")
        if self.package and not _package_weights(self.package):
            places.append(f"the package {self.package} (not installed)")
        return ", ".join(places)


def _package_weights(package: str) -> list[Path]:
    # find_spec of a top-level name finds its folder and runs none of its code.
    spec = importlib.util.find_spec(package)
    return [Path(folder) / "weights" for folder in (spec.submodule_search_locations or [])] if spec else []


class _Network(NamedTuple):
    trunk: _WeightFile
    heads: _WeightFile

    def missing(self) -> list[_WeightFile]:
        return [file for file in dict.fromkeys(self) if not file.is_there()]


def _published_lpips(trunk: str, heads: str) -> _Network:
    url = f"https://download.pytorch.org/models/{trunk}"
    download = (
        f"python -c \"import torch; torch.hub.load_state_dict_from_url('{url}', check_hash=True, weights_only=True)\"\n"
        f"      or put {url} into one of these folders"
    )
    return _Network(
        _WeightFile(trunk, package=None, fix=download),
        _WeightFile(f"v0.1/{heads}", package="lpips", fix="pip install --no-deps lpips"),
    )


def _shift_tolerant(name: str) -> _Network:
    file = _WeightFile(f"vST0.0/{name}", package="stlpips_pytorch", fix="pip install stlpips-pytorch")
    return _Network(trunk=file, heads=file)


# The strongest first.
_NETWORKS = {
    "vgg": _published_lpips("vgg16-397923af.pth", "vgg.pth"),
    "st-vgg": _shift_tolerant("vgg_shift_tolerant.pth"),
    "alex": _published_lpips("alexnet-owt-7be5be79.pth", "alex.pth"),
    "st-alex": _shift_tolerant("alex_shift_tolerant.pth"),
    "squeeze": _published_lpips("squeezenet1_1-b8a52dc0.pth", "squeeze.pth"),
}


def _strongest() -> str:
    for row in available():
        if row.found:
            return row.name
    files = dict.fromkeys(file for network in _NETWORKS.values() for file in network.missing())
    raise ShadeFastError(
        f"no perceptual network has its weights on this machine; st-vgg is the easiest to get.\n{_how_to_get(files)}"
    )


def _how_to_get(files: Iterable[_WeightFile]) -> str:
    return "\n".join(f"  {file.name}: looked in {file.searched()}\n    get it: {file.fix}" for file in files)


def _build(name: str, trunk_path: Path, heads_path: Path) -> Perceptual:
    trunk = TRUNKS[name]
    stages = trunk.build()
    convolutions = [module for module in stages.modules() if isinstance(module, nn.Conv2d)]
    parameters = {
        f"{key}.{part}": parameter
        for key, convolution in zip(trunk.weight_keys, convolutions, strict=True)
        for part, parameter in convolution.named_parameters()
    }
    heads = {f"lin{layer}.model.1.weight": torch.empty(1, size, 1, 1) for layer, size in enumerate(trunk.channels)}
    _fill(parameters, trunk_path)
    _fill(heads, heads_path)
    return Perceptual(
        name,
        stages,
        [head.flatten() for head in heads.values()],
        minimum_side=trunk.minimum_side,
        source=trunk_path,
        sha256=_digest(parameters | heads),
    )


@torch.no_grad()
def _fill(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy the tensors of these names from the file at `path`, checking each."""
    state = _read(path)
    for key, tensor in tensors.items():
        value = state.get(key)
        if not isinstance(value, Tensor) or value.shape != tensor.shape:
            actual = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "missing"
            raise ShadeFastError(
                f"{path} holds other weights than expected: {key} is {actual}, not of shape {tuple(tensor.shape)}; "
                f"fetch the file again"
            )
        tensor.copy_(value)
        if not tensor.isfinite().all():
            raise ShadeFastError(f"{path} is damaged: {key} holds values that are not finite; fetch the file again")


def _read(path: Path) -> Mapping[str, object]:
    try:
        # Mapped, the classifier's weights in a trunk's file (most of it) are never read.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # the reader of a damaged file fails in many ways
        raise ShadeFastError(
            f"{path} is not a readable file of PyTorch tensors ({type(error).__name__}); fetch the file again"
        ) from error
    if not isinstance(state, Mapping):
        raise ShadeFastError(f"{path} holds a {type(state).__name__}, not named tensors; fetch the file again")
    return state


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].detach().numpy().tobytes())
    return digest.hexdigest()
