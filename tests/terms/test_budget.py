from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from shade_fast import Budget, ShadeFastError


@pytest.mark.parametrize(
    ("linf", "levels"), [(16 / 255, 16), (8 / 255, 8), (0.05, 12), (1 / 255, 1), (1.0, 255), (None, 255), (0.3, 76)]
)
def test_levels_are_whole_uint8_values_inside_the_bound(linf: float | None, levels: int) -> None:
    assert Budget(linf=linf).levels == levels


def test_bounds_are_numbers_of_any_kind() -> None:
    budget = Budget(np.float32(0.0625), Fraction(7, 100))  # type: ignore[arg-type]
    assert (budget.linf, budget.lpips) == (0.0625, 0.07)
    assert type(budget.linf) is type(budget.lpips) is float


@pytest.mark.parametrize(
    ("bounds", "named"),
    [
        ({"linf": None, "lpips": None}, "None for both"),
        ({"linf": 0.0}, "linf=0.0"),
        ({"linf": -0.1}, "linf=-0.1"),
        ({"lpips": 0}, "lpips=0"),
        ({"lpips": -1.0}, "lpips=-1.0"),
        ({"linf": float("nan")}, "linf=nan"),
        ({"lpips": float("inf")}, "lpips=inf"),
        ({"linf": 16}, "16/255"),
        ({"linf": 0.5 / 255}, "1/255"),
        ({"linf": "16/255"}, "linf='16/255'"),
        ({"linf": True}, "linf=True"),
    ],
)
def test_a_bound_that_is_none_is_named_with_its_fix(bounds: dict[str, object], named: str) -> None:
    with pytest.raises(ShadeFastError, match=named):
        Budget(**bounds)  # type: ignore[arg-type]
