"""The search for the largest scale that holds a bound, on the CPU. The CUDA kernel: tests/simt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shade_fast.ops import bisect_scale, quantize
from shade_fast.ops.bisect_scale import start
from shade_fast.terms.errors import ShadeFastError

LEVELS = 16


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (3, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return clean, torch.randn(clean.shape, generator=generator) * torch.tensor([0.001, 0.03, 0.05]).view(3, 1, 1, 1)


def network_input(pixels: Tensor) -> Tensor:
    """Images in [-1, 1]."""
    return (2 * (pixels.float() / 255) - 1).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


def distance(seen: Tensor, clean: Tensor) -> Tensor:
    """What stands for a perceptual distance: it grows with the scale, faster than in proportion."""
    return 1000 * (seen.float() - network_input(clean).float()).square().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("guess", [True, False], ids=["guess", "middle"])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_search_ends_at_the_largest_scale_that_holds_the_bound(backend: str, guess: bool) -> None:
    clean, delta = images()
    bound = 2.0
    interval = start(3)
    seen = network_input(quantize(clean, delta, interval[:, 2], levels=LEVELS))
    at_one = distance(seen, clean)
    assert (at_one > bound).tolist() == [False, True, True]
    for step in range(16):
        measured = distance(seen, clean)
        interval, seen = bisect_scale(
            clean, delta, measured, interval, bound=bound, levels=LEVELS, guess=guess and step == 0, backend=backend
        )
        assert torch.equal(seen, network_input(quantize(clean, delta, interval[:, 2], levels=LEVELS)))
    low, high, _ = interval.unbind(1)
    assert low[0] == 1

    def held(scale: Tensor) -> list[bool]:
        pixels = quantize(clean, delta, scale, levels=LEVELS)
        return (distance(network_input(pixels), clean) <= bound).tolist()

    assert held(low) == [True, True, True]
    assert held(high) == [True, False, False]
    assert ((high - low)[1:] < 1e-3).all()


def test_a_guess_is_in_proportion() -> None:
    clean, delta = images()
    measured = torch.tensor([0.14, 0.05, torch.inf])
    interval, _ = bisect_scale(clean, delta, measured, start(3), bound=0.07, levels=LEVELS, guess=True)
    torch.testing.assert_close(interval, torch.tensor([[0.0, 1.0, 0.5], [1.0, 1.0, 1.0], [0.0, 1.0, 0.5]]))


def test_opcheck() -> None:
    clean, delta = images()
    arguments = (clean, delta, torch.rand(3), start(3), 0.5, LEVELS, True, [2.0] * 3, [-1.0] * 3)
    torch.library.opcheck(torch.ops.shade_fast.bisect_scale.default, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distance": torch.zeros(2)}, r"distance is torch.float32 \[2\]"),
        ({"interval": torch.zeros(3)}, r"interval is torch.float32 \[3\]"),
        ({"bound": -1.0}, "bound=-1.0"),
        ({"levels": 0.5}, "levels=0.5"),
        ({"delta": torch.zeros(3)}, "delta is"),
    ],
)
def test_arguments_that_do_not_fit(change: dict[str, object], message: str) -> None:
    clean, delta = images()
    arguments = {"clean": clean, "delta": delta, "distance": torch.zeros(3), "interval": start(3), **change}
    with pytest.raises(ShadeFastError, match=message):
        bisect_scale(**{"bound": 0.07, "levels": LEVELS, **arguments})  # type: ignore[arg-type]


def test_the_start_does_not_depend_on_the_defaults_of_torch(other_defaults: Callable[[], Any]) -> None:
    with other_defaults():
        interval = start(3)
    assert torch.equal(interval, start(3)) and interval.dtype == torch.float32
