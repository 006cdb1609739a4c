"""The choice of convolutions' algorithms: by rules, or measured once and remembered."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shade_fast.ops import convolution as conv
from shade_fast.ops import native
from shade_fast.ops.convolution import Convolution
from shade_fast.runtime.cpu import plan
from shade_fast.terms.errors import ShadeFastError

pytestmark = pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")

PLAIN = Convolution(32, 32, (3, 3), padding=(1, 1))
SHAPES = ((1, 32, 40, 40), (1, 32, 40, 40))


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("SHADE_FAST_CACHE", str(tmp_path))
    monkeypatch.setenv("SHADE_FAST_PLAN", "measured")
    plan._known.cache_clear()
    yield
    plan._known.cache_clear()


def test_exact_takes_direct_sums_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHADE_FAST_PLAN", "fixed")
    tiles = native.cpu().selected_isa() == "amx"
    assert plan.choose("exact", PLAIN, *SHAPES, 1) == plan.choose_product("exact", 64) == "direct"
    assert plan.choose("fast", PLAIN, *SHAPES, 1) == ("tiles" if tiles else "winograd4")
    assert plan.choose_product("fast", 64) == ("tiles" if tiles else "direct")
    assert plan.choose("careful", PLAIN, *SHAPES, 1) == "winograd4"
    assert plan.choose_product("careful", 64) == plan.choose_product("fast", 16) == "direct"


def test_fixed_rules_leave_few_channels_to_direct_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHADE_FAST_PLAN", "fixed")
    few = Convolution(3, 32, (3, 3), padding=(1, 1))
    assert plan.choose("fast", few, (1, 3, 40, 40), SHAPES[1], 1) == "direct"
    assert plan.choose("fast", few.gradient(), SHAPES[1], (1, 3, 40, 40), 1) == "narrow"


def test_a_measurement_is_made_once_and_kept_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measured = []
    times = {"tiles": 4.0, "winograd4": 2.0, "winograd6": 3.0, "direct": 1.0}

    def take(candidates: list[str], *_: object) -> dict[str, float]:
        measured.extend(candidates)
        return {name: times[name] for name in candidates}

    monkeypatch.setattr(plan, "_times", take)
    assert plan.choose("fast", PLAIN, *SHAPES, 2) == "direct"
    count = len(measured)
    assert count >= 2
    assert plan.choose("fast", PLAIN, (1, 32, 41, 39), (1, 32, 41, 39), 2) == "direct"  # of about the same size
    assert len(measured) == count
    plan._known.cache_clear()
    assert plan.choose("fast", PLAIN, *SHAPES, 2) == "direct"
    assert len(measured) == count
    plan.choose("fast", PLAIN, *SHAPES, 1)
    assert len(measured) == 2 * count
    (file,) = tmp_path.iterdir()
    assert set(json.loads(file.read_text()).values()) == {"direct"}


def test_what_others_have_measured_meanwhile_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def take(candidates: list[str], *_: object) -> dict[str, float]:
        for file in tmp_path.iterdir():  # as if another process had measured at the same time
            file.write_text(json.dumps(json.loads(file.read_text()) | {"another convolution": "direct"}))
        return dict.fromkeys(candidates, 2.0) | {"direct": 1.0}

    monkeypatch.setattr(plan, "_times", take)
    for threads in (1, 2):
        plan.choose("fast", PLAIN, *SHAPES, threads)
    (file,) = tmp_path.iterdir()
    kept = json.loads(file.read_text())
    assert "another convolution" in kept and len(kept) == 3


@pytest.mark.parametrize("folder", ["kept", ""])
def test_each_instruction_set_has_its_own_measurements(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str
) -> None:
    monkeypatch.setenv("SHADE_FAST_CACHE", str(tmp_path / folder) if folder else "")
    fastest = {"avx2": "direct", "generic": "winograd4"}
    for isa in ("avx2", "generic", "avx2"):
        others = {name: 1.0 if name == fastest[isa] else 2.0 for name in ("winograd4", "winograd6", "direct")}
        module = SimpleNamespace(selected_isa=lambda isa=isa: isa, __file__=native.cpu().__file__)
        monkeypatch.setattr(plan, "native", SimpleNamespace(cpu=lambda module=module: module))
        monkeypatch.setattr(plan, "_times", lambda *_, others=others: others)
        assert plan.choose("careful", PLAIN, *SHAPES, 1) == fastest[isa]


def test_the_home_folder_is_asked_for_only_where_no_other_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(plan, "_times", lambda candidates, *_: dict.fromkeys(candidates, 2.0) | {"direct": 1.0})
    assert plan.choose("fast", PLAIN, *SHAPES, 1) == "direct"
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.delenv("SHADE_FAST_CACHE")
    assert plan.choose("fast", PLAIN, *SHAPES, 2) == "direct"


def test_other_kernels_are_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"tiles": 4.0, "winograd4": 2.0, "winograd6": 3.0, "direct": 1.0}
    monkeypatch.setattr(plan, "_times", lambda candidates, *_: {name: times[name] for name in candidates})
    assert plan.choose("fast", PLAIN, *SHAPES, 1) == "direct"
    times["winograd4"] = 0.5
    plan._known.cache_clear()
    assert plan.choose("fast", PLAIN, *SHAPES, 1) == "direct"
    monkeypatch.setattr(plan, "_build", lambda: "another")
    plan._known.cache_clear()
    assert plan.choose("fast", PLAIN, *SHAPES, 1) == "winograd4"


def test_a_damaged_file_is_measured_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plan, "_times", lambda candidates, *_: dict.fromkeys(candidates, 2.0) | {"direct": 1.0})
    plan.choose("fast", PLAIN, *SHAPES, 1)
    (file,) = tmp_path.iterdir()
    file.write_text("{")
    plan._known.cache_clear()
    assert plan.choose("fast", PLAIN, *SHAPES, 1) == "direct"
    assert json.loads(file.read_text())


@pytest.mark.parametrize("convolution", [PLAIN, PLAIN.gradient(), Convolution(8, 12, (3, 3), 2, 1, (0, 0)).gradient()])
def test_what_is_measured_is_small_and_runs(convolution: Convolution) -> None:
    source = (4, convolution.channels, 700, 900)
    result = (4, convolution.filters, 700 * convolution.up, 900 * convolution.up)
    small_source, small_result = plan._bounded(convolution, source, result)
    assert small_result[2] * small_result[3] <= plan.MOST_PIXELS
    supported = [name for name in conv.ALGORITHMS if conv.supports(name, convolution)]
    times = plan._times(supported, convolution, small_source, small_result, 1)
    assert list(times) == supported and all(0 < seconds < math.inf for seconds in times.values())


def test_measurements_do_not_depend_on_the_defaults_of_torch(other_defaults: Callable[[], Any]) -> None:
    with other_defaults():
        times = plan._times(["direct", "winograd4"], PLAIN, *SHAPES, 1)
    assert all(0 < seconds < math.inf for seconds in times.values())


def test_an_unknown_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHADE_FAST_PLAN", "guess")
    with pytest.raises(ShadeFastError, match="SHADE_FAST_PLAN=guess: give measured or fixed"):
        plan.choose("fast", PLAIN, *SHAPES, 1)


def test_larger_errors_are_taken_for_a_clear_gain_alone() -> None:
    assert plan._best({"winograd4": 1.0, "winograd6": 0.97, "direct": 3.0}) == "winograd4"
    assert plan._best({"winograd4": 1.0, "winograd6": 0.9, "direct": 3.0}) == "winograd6"
    assert plan._best({"tiles": 0.97, "winograd4": 1.0}) == "winograd4"
    assert plan._best({"narrow": 1.0, "direct": 0.99}) == "narrow"
