"""Whole networks frozen for a GPU, run through the Triton kernels, against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from shade_fast.ops import gpu
from shade_fast.runtime import freeze
from tests.perceptual.random_weights import random_perceptual
from tests.runtime.networks import gradients, made, photograph, relative, small_kl

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "kl": lambda: small_kl().eval().requires_grad_(False),
    "group norms": lambda: made("group norms"),
    "shared value": lambda: made("shared value"),
}


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    images = photograph(16, 24, 2)
    outputs, gradient = gradients(freeze(NETWORKS[name](), "cuda", accuracy="fp32"), images)
    right, right_gradient = gradients(NETWORKS[name]().double(), images.double())
    assert relative(outputs[0], right[0]) < 1e-5
    assert relative(gradient, right_gradient) < 1e-5


def test_lpips() -> None:
    network = random_perceptual("squeeze")
    frozen = network.frozen(lambda module: freeze(module, "cuda", accuracy="fp32"))
    clean, images = photograph(24, 24), (photograph(24, 24) + 0.05).requires_grad_()
    (gradient,) = torch.autograd.grad(frozen.distance(images, frozen.features(clean)).sum(), images)
    network = network.to(torch.float64)
    double = images.detach().double().requires_grad_()
    (right,) = torch.autograd.grad(network.distance(double, network.features(clean.double())).sum(), double)
    assert relative(gradient, right) < 1e-4
