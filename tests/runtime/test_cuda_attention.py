"""Attention as products of matrices against torch's own, in float64; here on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from shade_fast.runtime.cuda import attention as module
from shade_fast.runtime.cuda.attention import attention
from tests.runtime.networks import relative

TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def parts(shape: tuple[int, ...], keys: int, values: int) -> list[Tensor]:
    """Query, key and value, as an autoencoder has them: parts of one tensor, or its heads' transposes."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((shape[-2], shape[-1]), (keys, shape[-1]), (keys, values))
    made = [torch.randn(*shape[:-2], size[1], size[0], generator=generator).mT for size in sizes]
    return [part.detach().requires_grad_(True) for part in made]


def run(function: Any, given: list[Tensor]) -> list[Tensor]:
    """The result, and the gradients of a random sum of it."""
    made = function(*given)
    upstream = torch.randn(made.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [made.detach(), *torch.autograd.grad(made, given, upstream.to(made.dtype))]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("most", [module.MOST_SCORES, 200, 1])
@pytest.mark.parametrize(
    ("shape", "keys", "values"),
    [((2, 1, 35, 64), 35, 64), ((1, 4, 17, 8), 17, 8), ((3, 20, 16), 9, 5), ((1, 2, 1, 8), 1, 8)],
    ids=str,
)
def test_it_is_torchs(
    shape: tuple[int, ...], keys: int, values: int, most: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_SCORES", most)
    given = parts(shape, keys, values)
    made = run(lambda *of: attention(*of, dtype, False), given)
    exact = [part.detach().to(dtype).double().requires_grad_(True) for part in given]
    right = run(functional.scaled_dot_product_attention, exact)
    for one, other in zip(made, right, strict=True):
        assert one.shape == other.shape
        # Of a single key the gradient in queries and keys is 0, and what is made is rounding.
        assert relative(one, other) < TOLERANCE[dtype] or float(other.abs().max()) < 1e-6
    scaled = attention(*given, dtype, False, scale=0.3).detach()
    assert relative(scaled, functional.scaled_dot_product_attention(*exact, scale=0.3)) < TOLERANCE[dtype]


def test_what_it_does_not_know_runs_in_torch() -> None:
    given = parts((2, 2, 9, 8), 9, 8)
    mask = torch.ones(9, 9).tril().bool()
    for options in ({"mask": mask}, {"causal": True}):
        right = functional.scaled_dot_product_attention(*given, attn_mask=mask)
        assert relative(attention(*given, torch.float32, False, **options), right) < 1e-6
    few = [given[0], *(part[:, :1] for part in given[1:])]
    right = functional.scaled_dot_product_attention(*few, enable_gqa=True)
    assert relative(attention(*few, torch.float32, False, enable_gqa=True), right) < 1e-6


def test_an_image_is_cut_into_the_same_turns_in_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SCORES", 100)
    given = parts((3, 2, 20, 8), 20, 8)
    turns = [list(module._turns(part.flatten(0, 1), part.flatten(0, 1), 2)) for part in (given[0], given[0][:1])]
    assert turns[0] == turns[1]
    assert len(turns[0]) == 10
