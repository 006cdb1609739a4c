"""What a recorded step may not do, on tensors without values: each planted, and seen."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shade_fast import Budget
from shade_fast.encoders import Encoder
from shade_fast.engine import Problem, Stopping
from shade_fast.engine.capture import captured, complaints
from shade_fast.engine.step import Recipe, Step
from shade_fast.perceptual import Perceptual
from shade_fast.runtime import freeze
from shade_fast.view import View

META = torch.device("meta")


def make_step(encoder: Encoder, perceptual: Perceptual, plant: Callable[[Tensor, Tensor], Any] | None = None) -> Step:
    """The whole step of two images at half their size, on the meta device, with something planted in its middle."""

    def freeze_for_gpu(module: torch.nn.Module) -> torch.nn.Module:
        return freeze(module, "cuda")

    encoders = [encoder.to(META).frozen(freeze_for_gpu)] * 2
    lpips = copy.deepcopy(perceptual).to(META).frozen(freeze_for_gpu)
    clean = torch.zeros(2, 3, 96, 80, dtype=torch.uint8, device=META)
    plan = View(40).plan(96, 80, encoder.factor)
    latents = [torch.empty(2, encoder.channels, plan.crop[0] // 8, plan.crop[1] // 8, device=META)] * 2
    problem = Problem(clean, plan, encoders, latents, lpips, "cuda")
    if plant is not None:
        gradient = problem.gradient

        def planted(*arguments: Any) -> tuple[Tensor, Tensor]:
            made = gradient(*arguments)
            plant(*made)
            return made

        problem.gradient = planted  # type: ignore[method-assign]
    return Step(problem, Recipe(Budget(), 10, Stopping(ratio=0.5, patience=3)))


def test_the_step_can_be_recorded(encoder: Encoder, perceptual: Perceptual) -> None:
    assert complaints(make_step(encoder, perceptual), META) == []


kept: list[Tensor] = []
calls: list[int] = []


def every_other_time(gradient: Tensor, _: Tensor) -> None:
    calls.append(1)
    if len(calls) % 2:
        gradient.neg()


PLANTS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    ".item()": (lambda gradient, distance: distance.sum().item(), "_local_scalar_dense makes the host wait"),
    "a branch": (lambda gradient, distance: gradient if distance.max() > 1 else distance, "makes the host wait"),
    ".tolist()": (lambda gradient, distance: distance.tolist(), "to cpu|makes the host wait|fails"),
    "a boolean index": (lambda gradient, distance: gradient[distance > 1], "index by a mask"),
    "an assignment by a mask": (
        lambda gradient, distance: gradient.__setitem__(distance > 1, distance.sum()),
        "index_put_ by a mask",
    ),
    "nonzero": (lambda gradient, distance: torch.nonzero(distance), "nonzero gives a tensor whose size depends"),
    ".cpu()": (lambda gradient, distance: gradient.cpu(), "_to_copy moves a tensor from meta to cpu"),
    "a copy from the host": (
        lambda gradient, distance: distance.copy_(torch.zeros(2)),
        "copy_ moves a tensor from cpu to meta",
    ),
    "a tensor of the host's numbers": (
        lambda gradient, distance: distance + torch.tensor([1.0, 2.0], device=META),
        "tensor makes a tensor of the host's values",
    ),
    "a tensor that stays": (lambda gradient, distance: kept.append(gradient * 2), "mul leaves a new tensor behind"),
    "something else each time": (every_other_time, "a second run does something else than the first"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_what_cannot_be_recorded_is_seen(name: str, encoder: Encoder, perceptual: Perceptual) -> None:
    plant, message = PLANTS[name]
    kept.clear()
    found = complaints(make_step(encoder, perceptual, plant), META)
    assert found
    assert re.search(message, "; ".join(found)), found


def test_on_the_cpu_a_step_is_called(encoder: Encoder) -> None:
    def run() -> None:
        pass

    assert captured(run, torch.device("cpu")) is run


@pytest.mark.parametrize("times", [0, 1])
def test_out_of_memory_stays_what_it_is(times: int) -> None:
    calls: list[int] = []

    def run() -> None:
        calls.append(0)
        if len(calls) > times:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        complaints(run, META)
