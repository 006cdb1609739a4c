"""Trunk weights made at random, and the published packages that the distances are compared with."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from shade_fast.perceptual.lpips import Perceptual
from tests.perceptual.random_weights import random_perceptual, randomise

HUB_FILES = {
    "vgg": "vgg16-397923af.pth",
    "alex": "alexnet-owt-7be5be79.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}


class _Fire(nn.Module):
    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        squeezed = self.squeeze(features).relu()
        return torch.cat([self.expand1x1(squeezed).relu(), self.expand3x3(squeezed).relu()], 1)


def _torchvision_vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for filters in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU()] if filters else [nn.MaxPool2d(2, 2)]
        channels = filters or channels
    return nn.Sequential(*layers)


def _torchvision_alex() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )


def _torchvision_squeeze() -> nn.Sequential:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool(), _Fire(64, 16, 64), _Fire(128, 16, 64)),
        *(pool(), _Fire(128, 32, 128), _Fire(256, 32, 128), pool(), _Fire(256, 48, 192), _Fire(384, 48, 192)),
        *(_Fire(384, 64, 256), _Fire(512, 64, 256)),
    )


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def torchvision_features() -> dict[str, nn.Sequential]:
    """The `.features` of torchvision's vgg16, alexnet and squeezenet1_1, with random weights."""
    features = {"vgg": _torchvision_vgg(), "alex": _torchvision_alex(), "squeeze": _torchvision_squeeze()}
    for module in features.values():
        randomise(module)
    return features


@pytest.fixture(scope="session")
def hub_folder(torchvision_features: dict[str, nn.Sequential], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoint files of those weights, under torchvision's names."""
    folder = tmp_path_factory.mktemp("weights")
    for name, module in torchvision_features.items():
        state = {f"features.{key}": value for key, value in module.state_dict().items()}
        torch.save(state | {"classifier.1.weight": torch.zeros(10, 10)}, folder / HUB_FILES[name])
    return folder


def _import_published(package: str, module: str, torchvision: ModuleType) -> ModuleType:
    """Import a package of the published code, with stand-ins for what it imports and does not use here."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the {package} package is not installed: pip install --no-deps {package}")
    stand_ins = {
        "torchvision": torchvision,
        "torchvision.models": torchvision.models,
        "scipy": ModuleType("scipy"),
        "scipy.ndimage": SimpleNamespace(zoom=None),
        "IPython": SimpleNamespace(embed=None),
        "torchsummary": SimpleNamespace(summary=None),
    }
    with mock.patch.dict(sys.modules, stand_ins):  # type: ignore[arg-type]
        return importlib.import_module(module)


@pytest.fixture(scope="session")
def published_lpips(torchvision_features: dict[str, nn.Sequential]) -> Callable[[str], nn.Module]:
    """`published_lpips(net)`: the lpips package's network with its heads on the random trunk."""
    torchvision = ModuleType("torchvision")
    torchvision.models = SimpleNamespace(  # type: ignore[attr-defined]
        vgg16=lambda **_: SimpleNamespace(features=torchvision_features["vgg"]),
        alexnet=lambda **_: SimpleNamespace(features=torchvision_features["alex"]),
        squeezenet1_1=lambda **_: SimpleNamespace(features=torchvision_features["squeeze"]),
    )
    module = _import_published("lpips", "lpips", torchvision)
    return lambda net: module.LPIPS(net=net, verbose=False).requires_grad_(False)


@pytest.fixture(scope="session")
def published_shift_tolerant() -> Callable[[str], nn.Module]:
    """`published_shift_tolerant(net)`: the stlpips-pytorch package's network with its own weights."""
    torchvision = ModuleType("torchvision")
    torchvision.models = SimpleNamespace()  # type: ignore[attr-defined]
    module = _import_published("stlpips_pytorch", "stlpips_pytorch.stlpips", torchvision)
    with mock.patch.object(torch.nn.init, "normal_", lambda tensor, *_: tensor):
        networks = {
            net: module.LPIPS(net=net, variant="shift_tolerant", verbose=False).requires_grad_(False)
            for net in ("vgg", "alex")
        }
    return networks.__getitem__


@pytest.fixture(scope="session", name="random_perceptual")
def _random_perceptual() -> Callable[[str], Perceptual]:
    """`random_perceptual(name)`: a network of that architecture with random weights and heads, from no file."""
    return random_perceptual


@pytest.fixture(scope="session")
def image_pair() -> Callable[..., tuple[Tensor, Tensor]]:
    """`image_pair(height, width, count=1)`: smooth clean images in [0,1], and perturbed ones."""

    def build(height: int, width: int, count: int = 1) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(height * 1000 + width)
        coarse = torch.rand(count, 3, max(height // 8, 1), max(width // 8, 1), generator=generator)
        clean = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
        noise = torch.rand(clean.shape, generator=generator) - 0.5
        return clean, (clean + 0.1 * noise).clamp(0.0, 1.0)

    return build
