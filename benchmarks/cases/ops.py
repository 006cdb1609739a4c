"""The ops, each against its plain-torch body: at 512 × 512, and at 12 megapixels."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.registry import Case, Side, register
from shade_fast.ops import native, optimizer_update, quantize

BACKENDS = ("reference", "native")
SIZES = {"512": (512, 512), "12mp": (3000, 4000)}
LINF = 16 / 255
# Of all values; the mean is summed in another order, so a momentum within one rounding of 0 may change its sign.
MOST_OTHER_SIGNS = 1e-6


def ran(backend: str) -> str:
    """What executes an op on the CPU, and with which instruction set; an error where it is not built."""
    return f"native {native.cpu().selected_isa()}" if backend == "native" else "torch"


def random_images(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Clean uint8 values, and a delta inside the bound."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (1, 3, height, width), generator=generator, dtype=torch.uint8)
    return clean, (torch.rand(clean.shape, generator=generator) * 2 - 1) * LINF


def prepare_optimizer_update(height: int, width: int) -> Callable[[str], Side]:
    """Sides of one update, from one delta, momentum and gradient."""
    clean, first_delta = random_images(height, width)
    generator = torch.Generator().manual_seed(1)
    first_momentum = torch.randn(clean.shape, generator=generator)
    gradient = torch.randn(clean.shape, generator=generator) * 1e-4
    delta, momentum = first_delta.clone(), first_momentum.clone()

    def update(backend: str) -> None:
        optimizer_update(delta, momentum, gradient, clean, step=0.3 * LINF, decay=0.8, linf=LINF, backend=backend)

    def reset() -> None:
        delta.copy_(first_delta)
        momentum.copy_(first_momentum)

    update("reference")
    right_delta, right_momentum = delta.clone(), momentum.clone()

    def check(_: None) -> str | None:
        if not torch.allclose(momentum, right_momentum, rtol=1e-6, atol=1e-6):
            return "the momentum differs from the reference"
        others = int(torch.count_nonzero((delta - right_delta).abs() > 1e-6))
        return f"{others} values of delta differ" if others > MOST_OTHER_SIGNS * delta.numel() else None

    return lambda backend: Side(ran(backend), lambda: update(backend), check, reset)


def prepare_quantize(height: int, width: int) -> Callable[[str], Side]:
    """Sides of one rounding."""
    clean, delta = random_images(height, width)
    scale = torch.tensor([0.9])

    def round_values(backend: str) -> Tensor:
        return quantize(clean, delta, scale, levels=16, backend=backend)

    right = round_values("reference")

    def check(result: Tensor) -> str | None:
        others = int(torch.count_nonzero(result != right))
        return f"{others} values differ from the reference" if others else None

    return lambda backend: Side(ran(backend), lambda: round_values(backend), check)


def _register(
    name: str, purpose: str, bytes_per_value: int, prepare: Callable[[int, int], Callable[[str], Side]]
) -> None:
    for size, (height, width) in SIZES.items():
        register(
            Case(
                name=f"ops.{name}.{size}",
                purpose=purpose,
                shape=f"1x3x{height}x{width}",
                backends=BACKENDS,
                prepare=functools.partial(prepare, height, width),
                bytes_moved=bytes_per_value * 3 * height * width,
            )
        )


_register("optimizer_update", "momentum, step and projection", 25, prepare_optimizer_update)
_register("quantize", "rounding to uint8 in the box", 6, prepare_quantize)
