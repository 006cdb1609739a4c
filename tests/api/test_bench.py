"""`shade-fast bench`: the caller's encoder in plain torch and through the backend."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from shade_fast import Budget, ShadeFastError, cli
from shade_fast.api import bench
from shade_fast.ops import native

BACKENDS = ["reference", "native"] if native.cpu_available() else ["reference"]


def test_the_command_times_both_sides(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "--devices", "cpu", "--size", "64", "--repeats", "2", "--steps", "10"]
    assert cli.main([*arguments, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in measured["backends"]] == BACKENDS
    assert measured["size"] == 64 and measured["perceptual"]
    for row in measured["backends"]:
        assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        assert row["images_per_hour"] == pytest.approx(3.6e6 / (10 * row["p50_ms"]))
        assert 0 <= row["error"] <= bench.WORST_ERROR
    assert cli.main([*arguments, "--lpips", "none"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in BACKENDS) and "LPIPS" not in shown


def test_a_wrong_result_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = bench._step

    def planted(poisoner: bench.Poisoner, size: int) -> object:
        run = honest(poisoner, size)
        return (lambda: 1.1 * run()) if poisoner.backend == "native" else run

    monkeypatch.setattr(bench, "_step", planted)
    if "native" in BACKENDS:
        with pytest.raises(ShadeFastError, match="gets no time"):
            bench.bench_step(budget=Budget(lpips=None), size=32, backend="native", devices="cpu", repeats=1)


@pytest.mark.parametrize(("accuracy", "half"), [("fast", True), ("fp16", True), ("exact", False)])
def test_half_precision_on_a_gpu_is_no_wrong_result(accuracy: str, half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose CPU stands for a GPU."""
    for module in ("bench", "poisoner"):
        monkeypatch.setattr(f"shade_fast.api.{module}.resolve_backend", lambda backend, device: backend)
    budget = Budget(lpips=None)
    measured = bench.bench_step(budget=budget, size=64, backend="cuda", accuracy=accuracy, devices="cpu", repeats=1)
    (error,) = (row["error"] for row in measured["backends"] if row["name"] == "cuda")
    assert (error > 1e-3) is half


def test_any_encoder_of_the_callers() -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 4, 4))
    measured = bench.bench_step(encoder=encoder, budget=Budget(lpips=None), size=30, devices="cpu", repeats=1)
    assert measured["perceptual"] is None and len(measured["backends"]) == len(BACKENDS)
    assert measured["threads"] == torch.get_num_threads()


@pytest.mark.parametrize("option", ["--size", "--repeats", "--steps"])
def test_numbers_below_one_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", option, "0"]) == 2
    assert f"{option[2:]}=0" in capsys.readouterr().err
