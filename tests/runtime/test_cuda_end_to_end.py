"""Backend `cuda` from the front door, where its plain bodies take the place of the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from shade_fast import Budget, View, poison_batch
from shade_fast.engine import Problem, project
from shade_fast.runtime import CudaNetwork, products

OPTIONS = {"view": View(size=None), "perceptual": "st-alex", "steps": 6, "target_ratio": 1.0}


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose CPU stands for a GPU: the same path, in batches, with slots. Every network has to be traced."""
    networks: list[CudaNetwork] = []

    make = CudaNetwork.__init__

    def watched(self: CudaNetwork, module: nn.Module, precision: str) -> None:
        make(self, module, precision)
        networks.append(self)

    monkeypatch.setattr(CudaNetwork, "__init__", watched)
    monkeypatch.setattr("shade_fast.api.poisoner.resolve_backend", lambda backend, device: backend)
    monkeypatch.setattr("shade_fast.runtime.exact_products", lambda device: products(tf32=False))
    yield
    assert networks
    assert [network.reasons for network in networks] == [{}] * len(networks)


def test_images_in_batches_and_alone(on_the_cpu: None, tiny_module: nn.Module, draw: Callable[..., np.ndarray]) -> None:
    images = [draw(32, 40, seed) for seed in range(3)]

    def run(which: list[np.ndarray], **more: object):  # type: ignore[no-untyped-def]
        return poison_batch(which, draw(32, 40, 9), encoder=tiny_module, backend="cuda", **OPTIONS, **more)

    together = run(images, batch_size=2, accuracy="exact", stop_ratio=0.9)
    assert [one.status for one in together] == ["ok"] * 3
    for image, one in zip(images, together, strict=True):
        (alone,) = run([image], batch_size=2, accuracy="exact", stop_ratio=0.9)
        assert alone.steps == one.steps
        # torch's convolutions round otherwise in another place of a batch, and signs of what is near 0 turn.
        assert float((alone.image != one.image).mean()) < 0.1
        assert alone.distance_after == pytest.approx(one.distance_after, rel=1e-2)
    assert together.backend == "cuda"


def test_half_precision_moves_images_as_far_and_figures_are_exact(
    on_the_cpu: None, tiny_module: nn.Module, draw: Callable[..., np.ndarray]
) -> None:
    budget = Budget(linf=16 / 255, lpips=0.02)
    found = {}
    for backend, accuracy in (("cuda", "bf16"), ("reference", "fast")):
        (found[backend],) = poison_batch(
            [draw(40, 40)],
            draw(40, 40, 9),
            encoder=tiny_module,
            backend=backend,
            accuracy=accuracy,
            budget=budget,
            **OPTIONS,
        )
    half, full = found["cuda"], found["reference"]
    assert half.distance_before == pytest.approx(full.distance_before, rel=1e-5)
    assert half.distance_after == pytest.approx(full.distance_after, rel=0.03)
    assert half.lpips <= 0.02


def test_the_scale_is_searched_by_lpips_alone_and_the_bound_held(
    on_the_cpu: None, tiny_module: nn.Module, draw: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    from shade_fast.api.poisoner import Poisoner

    poisoner = Poisoner(encoder=tiny_module, backend="cuda", **OPTIONS)
    assert all(isinstance(encoder.module, CudaNetwork) for encoder in poisoner.encoders)
    clean = torch.stack([torch.from_numpy(draw(40, 48, seed)).permute(2, 0, 1) for seed in range(3)]).contiguous()
    plan = View(None).plan(40, 48, poisoner.factor)
    latents = [torch.randn(3, 4, 5, 6)]
    problem = Problem(clean, plan, poisoner.encoders, latents, poisoner.perceptual, "cuda")
    measured = []
    measure = problem.measure
    monkeypatch.setattr(problem, "measure", lambda pixels: measured.append(1) or measure(pixels))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).sign() / 16
    delta = noise * torch.tensor([1.0, 0.6, 0.01])[:, None, None, None]
    projected = project(problem, delta, Budget(linf=16 / 255, lpips=0.02))
    assert bool(projected.held.all())
    used_up = projected.scale < 1
    assert bool(used_up[0])
    assert bool((projected.lpips[used_up] > 0.85 * 0.02).all())
    assert float(projected.scale[2]) == 1
    assert len(measured) <= 4  # every scale that is tried would be nine
