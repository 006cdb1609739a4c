"""The ops' cases for pytest-benchmark: `python -m pytest benchmarks` from the repository's root."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.registry import Case, all_cases
from shade_fast.terms.errors import ShadeFastError

CASES = [case for case in all_cases() if case.name.startswith("ops.")]


@pytest.mark.parametrize(
    ("case", "backend"),
    [pytest.param(case, backend, id=f"{case.name}-{backend}") for case in CASES for backend in case.backends],
)
def test_op(benchmark: Any, case: Case, backend: str) -> None:
    """Time one side of an op; every result is checked."""
    try:
        side = case.prepare()(backend)
    except ShadeFastError as error:
        pytest.skip(str(error))
    results: list[Any] = []

    def run() -> None:
        results[:] = [side.run()]

    def setup() -> None:
        if results:
            assert side.check(results[0]) is None
        side.reset()

    benchmark.group = case.name
    benchmark.extra_info.update(ran=side.ran, bytes_moved=case.bytes_moved)
    benchmark.pedantic(run, setup=setup, rounds=20, warmup_rounds=2)
    assert side.check(results[0]) is None
