"""What the checks of the Triton kernels share: outputs that start as NaN, and one measure of error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every output starts as NaN, whole numbers as 85, so that a value that no program writes is seen."""
    new_empty, empty_like = Tensor.new_empty, torch.empty_like

    def poisoned(tensor: Tensor) -> Tensor:
        return tensor.fill_(torch.nan if tensor.is_floating_point() else 85)

    monkeypatch.setattr(Tensor, "new_empty", lambda *args, **named: poisoned(new_empty(*args, **named)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **named: poisoned(empty_like(*args, **named)))


@pytest.fixture
def relative_rms() -> Callable[[Tensor, Tensor], float]:
    """Root-mean-square error over the root-mean-square of what is true, float64; NaN where a value is one."""

    def measure(value: Tensor, truth: Tensor) -> float:
        scale = truth.square().mean().sqrt().clamp_min(1e-300)
        return float((value.double() - truth).square().mean().sqrt() / scale)

    return measure
