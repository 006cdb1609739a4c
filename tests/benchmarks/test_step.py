"""The step cases on a tiny encoder: every side does the same work, and a wrong kernel or side has no time."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from benchmarks import networks, photographs
from benchmarks.cases import step
from benchmarks.registry import Case
from benchmarks.runner import Row, measure
from shade_fast import runtime
from shade_fast.ops import convolution, native
from shade_fast.perceptual import Perceptual
from shade_fast.terms.errors import ShadeFastError

SIZE, BATCH = 32, 2


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smooth encoder `kl`, an LPIPS network of random weights, noise for photographs."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 4, 3, 2, padding=1))
    encoder.requires_grad_(False)
    stages = [
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()),
    ]
    network = Perceptual("tiny", nn.ModuleList(stages), [torch.rand(8), torch.rand(16)], minimum_side=2)
    clean = torch.rand(max(step.BATCHES), 3, SIZE, SIZE)
    monkeypatch.setattr(networks, "encoder", lambda name: encoder)
    monkeypatch.setattr(networks, "perceptual", lambda: network)
    monkeypatch.setattr(photographs, "batch", lambda side, count: clean[:count])
    monkeypatch.setenv("SHADE_FAST_PLAN", "fixed")
    step.right.cache_clear()
    step.anchors.cache_clear()


class Branching(nn.Module):
    """A network whose code looks at values."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if images.mean() > 0 else -images


def rows(*backends: str, lpips: bool = False) -> dict[str, Row]:
    case = Case(
        name="step.kl.tiny",
        purpose="",
        shape="",
        backends=tuple(step.SIDES),
        prepare=functools.partial(step.prepare, "kl", SIZE, BATCH, lpips),
        operations=functools.partial(step.operations, "kl", SIZE, BATCH, lpips),
    )
    return {row.backend: row for row in measure(case, backends, repeats=1, warmup=1)}


def test_the_plain_sides_agree_with_float64() -> None:
    results = rows("eager", "channels-last", lpips=True)
    assert [row.status for row in results.values()] == ["ok", "ok"], results
    assert [row.ran for row in results.values()] == ["torch", "torch channels-last"]
    assert all(row.p50_ms and row.error is not None for row in results.values())
    latent = 2 * BATCH * SIZE * SIZE * 3 * 16 * 9 + 2 * BATCH * (SIZE // 2) ** 2 * 16 * 4 * 9
    assert results["eager"].gigaflops == pytest.approx(
        step.operations("kl", SIZE, BATCH, True) / results["eager"].p50_ms / 1e6
    )
    assert step.operations("kl", SIZE, BATCH, False) == 2 * latent


@pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")
def test_the_native_sides_agree_with_float64() -> None:
    results = rows("native", "exact", lpips=True)
    assert [row.status for row in results.values()] == ["ok", "ok"], results
    assert results["exact"].ran.startswith("native") and results["exact"].ran.endswith("exact")


@pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")
def test_an_error_planted_in_a_kernel_leaves_it_without_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = convolution.pack
    monkeypatch.setattr(convolution, "pack", lambda *arguments, **named: honest(*arguments, **named) * 1.001)
    results = rows("eager", "native")
    assert results["eager"].status == "ok"
    assert (results["native"].status, results["native"].p50_ms, results["native"].peak_megabytes) == (
        "wrong",
        None,
        None,
    )
    assert "latent" in results["native"].detail


@pytest.mark.parametrize("number", range(4))
def test_an_error_in_any_result_of_one_image_is_found(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def planted(images: torch.Tensor, parts: step.Parts) -> step.Made:
        ran, run, release = step.eager(images, parts)

        def spoiled() -> list[torch.Tensor]:
            results = run()
            results[number][BATCH - 1] *= 1.02
            return results

        return ran, spoiled, release

    monkeypatch.setitem(step.SIDES, "native", planted)
    row = rows("native", lpips=True)["native"]
    assert (row.status, row.p50_ms) == ("wrong", None)
    assert row.detail.startswith(f"the {('latent', 'lpips')[number // 2]} {('distance', 'gradient')[number % 2]}")
    assert f"image {BATCH - 1}" in row.detail


def test_what_cannot_be_compiled_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(step, "_compile", refuse)
    row = rows("compile")["compile"]
    assert (row.status, row.detail) == ("missing", "torch.compile failed: RuntimeError: no compiler here")


def test_onnx_runtime_agrees_with_float64() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    results = rows("onnxruntime", lpips=True)["onnxruntime"]
    assert results.status == "ok" and results.p50_ms, results
    assert results.ran.startswith("onnxruntime ")


def test_what_onnx_cannot_express_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(networks, "encoder", lambda name: Branching())
    row = rows("onnxruntime")["onnxruntime"]
    assert row.status == "missing"
    assert "the network LatentDistance cannot be traced" in row.detail


def test_weights_that_are_not_there_make_the_case_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> nn.Module:
        raise ShadeFastError(f"no weights of {name}")

    monkeypatch.setattr(networks, "encoder", absent)
    assert [(row.status, row.detail) for row in rows("eager", "native").values()] == [
        ("missing", "no weights of kl")
    ] * 2


def test_a_network_that_torch_would_run_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(nn.Module):
        def __init__(self, module: nn.Module, *_: object, **__: object) -> None:
            super().__init__()
            self.module, self.reasons = module, {"any": "it branches"}

        def forward(self, *inputs: torch.Tensor) -> object:
            return self.module(*inputs)

    monkeypatch.setattr(runtime, "freeze", Refused)
    row = rows("native")["native"]
    assert (row.status, row.detail) == ("missing", "torch would run a network: it branches")
