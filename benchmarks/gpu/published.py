"""The published step: the real modules in plain torch, counted op by op as it dispatches them on the meta device."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import networks
from benchmarks.gpu.count import Count, images, on_meta, vgg
from benchmarks.gpu.record import recorded


def published(batch: int, lpips: bool, size: int) -> Count:
    """The same modules in plain torch, float16, weights requiring gradients as a pipeline loads them."""
    encoder = on_meta(networks.encoder("kl")).requires_grad_()
    given = images(batch, size).to("meta", torch.float16)
    delta = torch.zeros_like(given).requires_grad_()
    modules = [encoder]
    if lpips:
        modules.append(on_meta(vgg().activations))
    weights = [tensor for module in modules for tensor in [*module.parameters(), *module.buffers()]]

    def step() -> None:
        perturbed = (given + delta).clamp(0, 1)
        latents = encoder(perturbed)
        loss = torch.linalg.vector_norm(latents - torch.zeros_like(latents))
        if lpips:
            with torch.no_grad():
                clean = [_unit(activations) for activations in modules[1](given)]
            for activations, target in zip(modules[1](perturbed), clean, strict=True):
                head = torch.empty(activations.shape[1], 1, 1, dtype=torch.float16, device="meta")
                loss = loss + ((_unit(activations) - target).square() * head).sum(1, keepdim=True).mean()
        (gradient,) = torch.autograd.grad(loss, delta)
        with torch.no_grad():
            torch.clamp(delta - 0.01 * gradient.sign(), -0.05, 0.05)

    return recorded(step, weights)


def _unit(activations: Tensor) -> Tensor:
    return activations / (activations.square().sum(1, keepdim=True).sqrt() + 1e-10)
