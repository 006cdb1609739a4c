"""What a step costs besides its networks: a whole step of the problem, and the networks' part of the same step alone.

Between the two lie the view of a file that is larger than it, the normalisation of gradients, and the update.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import photographs
from benchmarks.networks import SPECS
from benchmarks.registry import Case, Side, register
from shade_fast import Budget, View, runtime
from shade_fast.api.poisoner import Poisoner
from shade_fast.engine import Problem, kernels
from shade_fast.ops import optimizer_update

BACKENDS = ("reference", "reference networks", "native", "native networks")
#: Label -> side of the file in pixels, and of the view.
SIZES = {"256": (256, 256), "512": (512, 512), "12mp": (3464, 512)}
LINF = 16 / 255
# Two backends sum in different orders: where a gradient is within rounding of 0, or a ReLU's input is, signs differ.
MOST_OTHER_SIGNS = 0.01
WORST_ERROR = 0.02


def prepare(name: str, size: str, lpips: bool) -> Callable[[str], Side]:
    """Sides of one step of one photograph, from the same noise inside the bound."""
    file, view = SIZES[size]
    clean = (photographs.batch(file, 1) * 255).round().to(torch.uint8)
    start = (torch.rand(clean.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1) * LINF / 4
    weigh = torch.ones_like if lpips else None

    @functools.cache
    def problem_of(backend: str) -> Problem:
        poisoner = Poisoner(
            encoder=SPECS[name](),
            budget=Budget(linf=LINF, lpips=0.07 if lpips else None),
            perceptual="auto" if lpips else None,
            backend=backend,
            devices="cpu",
        )
        plan = View(view).plan(file, file, poisoner.factor)
        anchors = [poisoner.anchor("cat").latents(encoder, plan.crop)[:1] for encoder in poisoner.encoders]
        return Problem(clean, plan, poisoner.encoders, anchors, poisoner.perceptual, poisoner.backend)

    def whole(backend: str) -> Side:
        problem = problem_of(backend)
        delta, momentum = start.clone(), torch.zeros_like(start)

        def reset() -> None:
            delta.copy_(start)
            momentum.zero_()

        def step() -> Tensor:
            gradient, _ = problem.gradient(delta, weigh)
            optimizer_update(
                delta, momentum, gradient, clean, step=LINF, decay=0.8, linf=LINF, backend=kernels(problem.backend)
            )
            return delta

        def check(result: Tensor) -> str | None:
            others = float(((result - right_delta).abs() > 1e-4).float().mean())
            return f"{others:.2%} of the values differ from the reference" if others > MOST_OTHER_SIGNS else None

        return Side(f"{problem.backend}, whole step", step, check, reset, _release(backend))

    def part(backend: str) -> Side:
        problem = problem_of(backend)
        with torch.no_grad():
            seen = problem.see(clean / 255 + start)

        def step() -> Tensor:
            images = seen.detach().requires_grad_(True)
            gradients = list(torch.autograd.grad(problem.distance(images).sum(), images))
            distance = problem.lpips(images) if lpips else None
            if distance is not None:
                gradients += torch.autograd.grad(distance.sum(), images)
            return torch.stack([gradient / gradient.norm() for gradient in gradients])

        def check(result: Tensor) -> str | None:
            error = float((result - right_gradients).norm() / right_gradients.norm())
            return None if error <= WORST_ERROR else f"gradients are off by {error:.2g} from the reference"

        return Side(f"{problem.backend}, networks alone", step, check, release=_release(backend))

    reference = whole("reference")
    reference.reset()
    right_delta = reference.run().clone()
    right_gradients = part("reference").run()

    def side(backend: str) -> Side:
        engine, _, networks_alone = backend.partition(" ")
        return part(engine) if networks_alone else whole(engine)

    return side


def _release(backend: str) -> Callable[[], None]:
    return runtime.BLOCKS.release if backend == "native" else lambda: None


for _name, _size, _lpips in (
    ("embedded", "256", False),
    ("embedded", "512", False),
    ("embedded", "512", True),
    ("embedded", "12mp", False),
    ("taef2", "512", False),
):
    register(
        Case(
            name=f"pipeline.{_name}.{_size}{'.lpips' if _lpips else ''}",
            purpose="a whole step, and its networks alone" + (", with LPIPS" if _lpips else ""),
            shape="1x3x{0}x{0} seen at {1}".format(*SIZES[_size]),
            backends=BACKENDS,
            prepare=functools.partial(prepare, _name, _size, _lpips),
        )
    )
