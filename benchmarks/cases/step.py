"""One optimiser step: view, encoder forward and input gradient, with and without LPIPS, and the update."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from benchmarks.registry import Case, Side, register
from shade_fast import AnchorLibrary, View, load_encoder, load_perceptual
from shade_fast.engine import Problem, resolve_backend
from shade_fast.ops import optimizer_update

BACKENDS = ("reference", "native")
#: File size (height, width) and the view's size, of each case.
SIZES = {"256": ((256, 256), 256), "512": ((512, 512), 512), "12mp": ((3000, 4000), 512)}
LINF = 16 / 255
# Two backends sum in different orders: signs of gradients within rounding of 0 may differ, and no others.
MOST_OTHER_VALUES = 1e-3


def prepare(size: tuple[int, int], view: int, lpips: bool) -> Callable[[str], Side]:
    """Sides of one step at the clean image of noise, with the embedded encoder and its first anchor."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (1, 3, *size), generator=generator, dtype=torch.uint8)
    encoder, perceptual = load_encoder("embedded"), load_perceptual("st-alex") if lpips else None
    plan = View(view).plan(*size, encoder.factor)
    anchor = AnchorLibrary.embedded()["cat"].latents(encoder, plan.crop)[:1]
    weigh = torch.ones_like if lpips else None
    start = (torch.rand(clean.shape, generator=generator) * 2 - 1) * LINF / 4

    def side(backend: str) -> Side:
        ran = resolve_backend(backend, clean.device)
        problem = Problem(clean, plan, [encoder], [anchor], perceptual, ran)
        delta, momentum = start.clone(), torch.zeros_like(start)

        def reset() -> None:
            delta.copy_(start)
            momentum.zero_()

        def step() -> torch.Tensor:
            gradient, _ = problem.gradient(delta, weigh)
            optimizer_update(delta, momentum, gradient, clean, step=0.3 * LINF, decay=0.8, linf=LINF, backend=ran)
            return delta

        def check(result: torch.Tensor) -> str | None:
            others = int(((result - right).abs() > 1e-4).sum())
            return f"{others} values differ from the reference" if others > MOST_OTHER_VALUES * right.numel() else None

        return Side(ran, step, check, reset)

    reference = side("reference")
    reference.reset()
    right = torch.empty_like(start)
    right.copy_(reference.run())
    return side


for label, (size, view) in SIZES.items():
    for lpips in (False, True):
        register(
            Case(
                name=f"step.embedded.{label}{'.lpips' if lpips else ''}",
                purpose="one optimiser step" + (" with st-alex LPIPS" if lpips else ""),
                shape=f"1x3x{size[0]}x{size[1]} seen at {view}",
                backends=BACKENDS,
                prepare=functools.partial(prepare, size, view, lpips),
            )
        )
