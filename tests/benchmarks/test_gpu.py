"""The command for a machine with a GPU, tried on the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import ops
from benchmarks.gpu import check
from benchmarks.inputs import Inputs
from benchmarks.rows import read_rows
from shade_fast.engine import step
from shade_fast.engine.capture import complaints
from shade_fast.runtime.cuda import network

SMOKE = ["gpu", "check", "--smoke"]


def test_it_runs_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*SMOKE, "--csv", str(tmp_path / "gpu.csv")]) == 0
    assert "all results are right" in capsys.readouterr().out
    rows = read_rows(tmp_path / "gpu.csv")
    kinds = [row["what"] for row in rows]
    assert {kind: kinds.count(kind) for kind in kinds} == {"kernel": 12, "encoder's gradient": 4, "step": 2}
    assert all(float(row["ms"]) > 0 and float(row["eager_ms"]) > 0 for row in rows)


def test_a_wrong_kernel_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = ops.epilogue
    monkeypatch.setattr(ops, "epilogue", lambda *args, **named: right(*args, **named) * 1.1)
    monkeypatch.setattr(check, "network_lines", lambda *_: [])
    monkeypatch.setattr(check, "step_lines", lambda *_: [])
    assert command.main(SMOKE) == 1
    assert "kernel, bias, residual, ReLU: error 0.1, allowed 0.01" in capsys.readouterr().err


def test_what_is_timed_can_be_recorded_on_a_gpu() -> None:
    meta = torch.device("meta")
    inputs = Inputs(32, 16, 24, meta)
    for op_check in itertools.chain.from_iterable(op.checks(inputs) for op in ops.OPS):
        for run in (op_check.run, op_check.eager):

            def several(run: Callable[[], Any] = run) -> None:
                for _ in range(check.RECORDED):
                    run()

            assert complaints(several, meta) == [], op_check.name


def test_what_fails_or_has_no_memory_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(error: Exception) -> Callable[..., Any]:
        def fail(*_: Any, **__: Any) -> Any:
            raise error

        return fail

    monkeypatch.setattr(ops, "lpips_layer", failing(torch.cuda.OutOfMemoryError("CUDA out of memory")))
    monkeypatch.setattr(ops, "latent_distance", failing(RuntimeError("CUDA error: invalid argument")))
    monkeypatch.setattr(check, "network_lines", lambda *_: [])
    monkeypatch.setattr(check, "step_lines", lambda *_: [])
    assert command.main(SMOKE) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "kernel, LPIPS layer: OutOfMemoryError: CUDA out of memory; not measured",
        "kernel, latent distance: RuntimeError: CUDA error: invalid argument",
    ]
    assert "| kernel | rounding |" in printed.out


def test_a_network_that_torch_runs_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("no graph today")

    monkeypatch.setattr(network, "Graph", refuse)
    monkeypatch.setattr(check, "kernel_lines", lambda *_: [])
    assert command.main(SMOKE) == 1
    problems = capsys.readouterr().err.splitlines()
    assert len(problems) == 6
    assert all(
        "torch runs the network: it cannot be traced (RuntimeError: no graph today)" in line for line in problems
    )


@pytest.mark.parametrize(("stuck", "error"), [(("native",), "1"), (("native", "reference"), "inf")])
def test_an_update_that_moves_nothing_is_seen(
    stuck: tuple[str, ...], error: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = step.optimizer_update

    def update(*tensors: torch.Tensor, backend: str, **options: Any) -> None:
        if backend not in stuck:
            right(*tensors, backend=backend, **options)

    monkeypatch.setattr(step, "optimizer_update", update)
    monkeypatch.setattr(check, "kernel_lines", lambda *_: [])
    monkeypatch.setattr(check, "network_lines", lambda *_: [])
    assert command.main(SMOKE) == 1
    problems = capsys.readouterr().err.splitlines()
    assert problems == [f"step, kl.24{case}, batch 1: error {error}, allowed 0.05" for case in ("", ".lpips st-alex")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["gpu", "check"]) == 1
    assert "`--smoke` tries the command without a GPU" in capsys.readouterr().err
