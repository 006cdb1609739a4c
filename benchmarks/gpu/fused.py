"""The engine's own step on a GPU, as `shade_fast.engine` records it, counted on the meta device."""

from __future__ import annotations

import copy
import functools

import torch
from torch import nn

from benchmarks.gpu.count import Count, vgg
from benchmarks.gpu.record import recorded
from benchmarks.networks import SPECS
from shade_fast import Budget, View, load_encoder
from shade_fast.encoders import Encoder
from shade_fast.engine import Problem
from shade_fast.engine.step import Recipe, Step
from shade_fast.runtime import CudaNetwork, freeze

META = torch.device("meta")


def fused(batch: int, lpips: bool, size: int) -> Count:
    """Encoder, objective and update; with `lpips` also the distance to the clean image, its features kept."""
    networks: list[CudaNetwork] = []

    def frozen(module: nn.Module) -> nn.Module:
        network = freeze(module, "cuda")
        networks.append(network)  # type: ignore[arg-type]
        return network

    encoder = _kl().frozen(frozen)
    perceptual = copy.deepcopy(vgg()).to(META).frozen(frozen) if lpips else None
    clean = torch.zeros(batch, 3, size, size, dtype=torch.uint8, device=META)
    plan = View(None).plan(size, size, encoder.factor)
    latents = torch.empty(batch, encoder.channels, size // encoder.factor, size // encoder.factor, device=META)
    problem = Problem(clean, plan, [encoder], [latents], perceptual, "cuda")
    step = Step(problem, Recipe(Budget(16 / 255, 0.07 if lpips else None), 60))
    step()  # makes the programs
    return recorded(step, [weight for network in networks for weight in network.weights()])


@functools.cache
def _kl() -> Encoder:
    return load_encoder(SPECS["kl"]()).to(META)
