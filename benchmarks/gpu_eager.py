"""Every kernel of a step beside what eager torch has for it, on tensors of a step's sizes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from shade_fast.ops import bisect_scale, latent_distance, optimizer_update, quantize
from shade_fast.ops.bisect_scale import start as first_interval
from shade_fast.ops.epilogue import epilogue
from shade_fast.ops.group_norm import group_norm
from shade_fast.ops.lpips_layer import lpips_layer
from shade_fast.ops.max_pool import max_pool
from shade_fast.ops.relu_lpips_layer import relu_lpips_layer

#: Relative root-mean-square error of a kernel's result in bfloat16 and in float32, or whole uint8 values.
ROUNDING = 1e-2


@dataclass(frozen=True)
class Kernel:
    """An op on the device, what eager torch has for it, and the bytes that it has to move. error: allowed."""

    name: str
    run: Callable[[], Any]
    reference: Callable[[], Any]
    eager: Callable[[], Any]
    bytes: float
    error: float = ROUNDING


def kernels(channels: int, side: int, image: int, device: torch.device) -> Iterator[Kernel]:
    """Every kernel of a step: on feature maps [1, channels, side, side], and on 8 images of image by image pixels."""
    shape = (1, channels, side, side)
    generator = torch.Generator().manual_seed(0)

    def features() -> Tensor:
        made = torch.randn(shape, generator=generator).to(device, torch.bfloat16)
        return made.contiguous(memory_format=torch.channels_last)

    x, addend, upstream = features(), features(), features()
    gamma, beta, bias = (torch.randn(channels, generator=generator).to(device) for _ in range(3))
    size = x.numel() * x.element_size()
    norm: dict[str, Any] = {"groups": channels // 4, "epsilon": 1e-6, "activation": "silu"}

    def eager_norm(x: Tensor, *more: Tensor) -> Tensor:
        for one in more:
            x = x + (one if one.ndim == 4 else one.to(x.dtype)[:, None, None])
        weights = (one.to(x.dtype) for one in (gamma, beta))
        return functional.silu(functional.group_norm(x, norm["groups"], *weights, norm["epsilon"]))

    def exactly(function: Callable[..., Tensor], *tensors: Tensor) -> Callable[[], Tensor]:
        return lambda: function(*(one.float() for one in tensors))

    def forward_backward(function: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor) -> Callable[[], Tensor]:
        def run() -> Tensor:
            leaf = x.detach().requires_grad_(True)
            return torch.autograd.grad(function(leaf), leaf, upstream)[0]

        return run

    def fused_norm(x: Tensor) -> Tensor:
        return group_norm(x, gamma, beta, keep=False, **norm)[1]

    yield Kernel("group norm, SiLU", lambda: fused_norm(x), exactly(eager_norm, x), lambda: eager_norm(x), 3 * size)
    yield Kernel(
        "group norm, SiLU, of a sum",
        lambda: group_norm(x, gamma, beta, bias=bias, addend=addend, **norm)[1],
        exactly(eager_norm, x, addend, bias),
        lambda: eager_norm(x, addend, bias),
        5 * size,
    )
    yield Kernel(
        "group norm, SiLU, with its gradient",
        forward_backward(fused_norm, x, upstream),
        forward_backward(eager_norm, x.float(), upstream.float()),
        forward_backward(eager_norm, x, upstream),
        8 * size,
    )
    yield Kernel(
        "bias, residual, ReLU",
        lambda: epilogue(x, bias, addend, relu=True),
        lambda: torch.relu(x.float() + addend.float() + bias[:, None, None]),
        lambda: torch.relu(x + addend + bias.to(x.dtype)[:, None, None]),
        3 * size,
    )

    def eager_relu(x: Tensor) -> Tensor:
        return torch.relu(x + bias.to(x.dtype)[:, None, None])

    yield Kernel(
        "bias, ReLU, with its gradient",
        forward_backward(lambda x: epilogue(x, bias, relu=True), x, upstream),
        forward_backward(eager_relu, x.float(), upstream.float()),
        forward_backward(eager_relu, x, upstream),
        4.125 * size,
    )
    pooled = upstream[..., : side // 2, : side // 2].contiguous(memory_format=torch.channels_last)

    def eager_pool(x: Tensor) -> Tensor:
        return functional.max_pool2d(x, 2)

    yield Kernel(
        "max pool, with its gradient",
        forward_backward(lambda x: max_pool(x, 2, 2, 0, (side // 2, side // 2)), x, pooled),
        forward_backward(eager_pool, x.float(), pooled.float()),
        forward_backward(eager_pool, x, pooled),
        2.75 * size,
    )
    head = torch.rand(channels, generator=generator).to(device)
    clean = functional.normalize(addend.float(), dim=1).to(x.dtype)

    def eager_lpips(x: Tensor, clean: Tensor) -> Tensor:
        return ((functional.normalize(x, dim=1) - clean).square() * head.to(x.dtype)[:, None, None]).sum(1).mean((1, 2))

    yield Kernel(
        "LPIPS layer",
        lambda: lpips_layer(x, clean, head),
        exactly(eager_lpips, x, clean),
        lambda: eager_lpips(x, clean),
        2 * size,
    )

    def eager_relu_lpips(x: Tensor) -> Tensor:
        return eager_lpips(eager_relu(x), clean.to(x.dtype))

    ones = torch.ones(1, device=device)
    yield Kernel(
        "bias, ReLU, LPIPS layer, with their gradient",
        forward_backward(lambda x: relu_lpips_layer(x, bias, clean, head)[1], x, ones),
        forward_backward(eager_relu_lpips, x.float(), ones),
        forward_backward(eager_relu_lpips, x, ones.to(x.dtype)),
        6 * size,
    )
    latents, anchor = (one[:, :4].contiguous(memory_format=torch.channels_last) for one in (x, addend))
    yield Kernel(
        "latent distance",
        lambda: latent_distance(latents, anchor),
        lambda: (latents.float() - anchor.float()).flatten(1).norm(dim=1),
        lambda: (latents - anchor).flatten(1).norm(dim=1),
        2.0 * latents.numel() * latents.element_size(),
    )
    yield from _pixel_kernels(image, device, generator)


def _pixel_kernels(image: int, device: torch.device, generator: torch.Generator) -> Iterator[Kernel]:
    """Those on images of the file's size; each op's plain-torch body is what eager torch has, and on the CPU, where it
    divides as the kernels do, what is right."""
    shape = (8, 3, image, image)
    order = torch.channels_last
    values = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    clean = values.to(device).contiguous(memory_format=order)
    delta, gradient, momentum = (
        0.05 * torch.randn(shape, generator=generator).to(device).contiguous(memory_format=order) for _ in range(3)
    )
    ones = torch.ones(len(clean), device=device)
    count = float(clean.numel())
    interval = first_interval(len(clean), device)

    def update(backend: str, delta: Tensor, momentum: Tensor, gradient: Tensor, clean: Tensor) -> Tensor:
        moved = delta.clone()
        optimizer_update(moved, momentum.clone(), gradient, clean, step=0.01, decay=0.8, linf=16 / 255, backend=backend)
        return moved

    def bisect(backend: str, *tensors: Tensor) -> Tensor:
        return bisect_scale(*tensors, bound=0.5, levels=16, backend=backend)[1]

    def on_cpu(run: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> Tensor:
        return run("reference", *(tensor.cpu() for tensor in tensors))

    # each with its tensors, the bytes for a value, and the error that is allowed: the update's mean is of float64 sums
    ops: list[tuple[str, Callable[..., Tensor], tuple[Tensor, ...], float, float]] = [
        ("update (with copies of delta and momentum)", update, (delta, momentum, gradient, clean), 41, 1e-6),
        ("rounding", lambda backend, *of: quantize(*of, levels=16, backend=backend), (clean, delta, ones), 6, 0.0),
        ("bisection's step", bisect, (clean, delta, ones, interval), 7, 0.0),
    ]
    for name, run, tensors, moved, allowed in ops:
        native, eager = (functools.partial(run, backend, *tensors) for backend in ("native", "reference"))
        yield Kernel(name, native, functools.partial(on_cpu, run, tensors), eager, moved * count, allowed)
