"""How fast a step is on this machine: the caller's encoder through the compiled backend beside plain torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from shade_fast.api.poisoner import Poisoner
from shade_fast.encoders import Encoder, load_encoder
from shade_fast.engine import Problem, played, resolve_backend, resolve_device
from shade_fast.protect.options import Options
from shade_fast.runtime import gradient_error
from shade_fast.terms.checks import at_least
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.version import __version__
from shade_fast.views import View

#: Relative root-mean-square error against plain torch above which a backend's result counts as wrong. Networks with
#: ReLUs have gradients that jump where rounding decides, so this is far above what arithmetic alone makes.
WORST_ERROR = 0.02
WARMUP = 2


def bench_step(
    options: Options | None = None, *, size: int = 512, steps: int = 60, repeats: int = 10, **given: Any
) -> dict[str, Any]:
    """Time one optimiser step of one image, size x size, in plain torch and through a backend, taking turns.

    A step is the encoders' forward and input gradient, with LPIPS' where the budget bounds it; backend `cuda` plays it
    as it is recorded. options, or by name: encoder, budget, backend, accuracy and devices as for `poison_batch`, but
    one device, of `auto` the first; the others are not read. steps: how many one image takes, for the images an hour,
    which follow from the median. The image and its perturbation are noise from a fixed seed.

    Returns JSON types: `version`, `torch`, `device`, `threads`, `size`, `encoder`, `perceptual`, and `backends`: for
    each its `name`, `p20_ms`, `p50_ms`, `p80_ms`, `images_per_hour`, and `error` of its result against plain torch.
    Raises ShadeFastError for what `poison_batch` refuses, for repeats below 1, and for a wrong result: off by more than
    `WORST_ERROR`, or in half precision by more than twice its stated error.
    """
    size, steps, repeats = at_least("size", size), at_least("steps", steps), at_least("repeats", repeats)
    options = Options(**given) if options is None else options
    device = resolve_device(options.devices)
    chosen = resolve_backend(options.backend, device)
    encoders = [load_encoder(spec, device) for spec in options.encoders]  # every backend has the same
    poisoners = {
        name: Poisoner(
            encoder=encoders,
            budget=options.budget,
            view=View(size=None),
            perceptual="auto" if options.budget.lpips is not None else None,
            backend=name,
            accuracy=options.accuracy,
            devices=str(device),
        )
        for name in dict.fromkeys(("reference", chosen))
    }
    runs = {name: _step(poisoner, size) for name, poisoner in poisoners.items()}
    allowed = {name: max(WORST_ERROR, 2 * gradient_error(name, options.accuracy)) for name in runs}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    errors = dict.fromkeys(runs, 0.0)
    for turn in range(WARMUP + repeats):
        results = {}
        for name in list(runs) if turn % 2 == 0 else reversed(runs):
            _wait(device)
            started = time.perf_counter()
            results[name] = runs[name]()
            _wait(device)
            seconds[name].append(time.perf_counter() - started)
        right = results["reference"]
        for name, result in results.items():
            error = float((result - right).norm() / right.norm())
            errors[name] = max(errors[name], error)
            if not error <= allowed[name]:
                raise ShadeFastError(
                    f"backend {name!r}: its gradient is {error:.2g} from plain torch's, more than {allowed[name]:g}: "
                    "it gets no time; give accuracy='exact', or backend='reference'"
                )
    poisoner = poisoners[chosen]
    return {
        "version": __version__,
        "torch": torch.__version__,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "size": size,
        "steps": steps,
        "encoder": poisoner.encoder_name,
        "perceptual": None if poisoner.perceptual is None else poisoner.perceptual.name,
        "backends": [_times(name, seconds[name][WARMUP:], errors[name], steps) for name in runs],
    }


def bench_lines(measured: dict[str, Any]) -> list[str]:
    """`bench_step`'s result for reading."""
    lpips = f", LPIPS {measured['perceptual']}" if measured["perceptual"] else ""
    lines = [
        f"one step of one image, {measured['size']}x{measured['size']}, encoder {measured['encoder']}{lpips}, "
        f"{measured['device']}, {measured['threads']} threads, torch {measured['torch']}",
        f"{'backend':<12}{'median':>12}{'p20 to p80':>22}{'images an hour':>16}{'error':>10}",
    ]
    for row in measured["backends"]:
        spread = f"{row['p20_ms']:.1f} to {row['p80_ms']:.1f} ms"
        lines.append(
            f"{row['name']:<12}{row['p50_ms']:>9.1f} ms{spread:>22}{row['images_per_hour']:>16.0f}{row['error']:>10.1e}"
        )
    first, last = measured["backends"][0], measured["backends"][-1]
    if first is not last:
        lines.append(f"{last['name']} takes {last['p50_ms'] / first['p50_ms']:.2f} of plain torch's time")
    return [*lines, f"images an hour: {measured['steps']} steps each, without decoding, projection and encoding"]


def _step(poisoner: Poisoner, size: int) -> Callable[[], torch.Tensor]:
    plan = poisoner.view.plan(size, size, poisoner.factor)
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (1, 3, size, size), generator=generator, dtype=torch.uint8).to(poisoner.device)
    delta = ((torch.rand(clean.shape, generator=generator) * 2 - 1) / 64).to(poisoner.device)
    latents = [_noise(encoder, clean, plan.crop) for encoder in poisoner.encoders]
    encoders, perceptual = poisoner.protector.moving
    problem = Problem(clean, plan, encoders, latents, perceptual, poisoner.backend)
    result = torch.empty_like(delta)

    def step() -> None:
        result.copy_(problem.gradient(delta, None if perceptual is None else torch.ones_like)[0])

    play = played(step, poisoner.device) if poisoner.backend == "cuda" else step

    def run() -> torch.Tensor:
        play()
        return result

    return run


def _noise(encoder: Encoder, clean: torch.Tensor, crop: tuple[int, int]) -> torch.Tensor:
    """An anchor latent: noise, so that no anchor of the caller's is needed."""
    shape = (1, encoder.channels, crop[0] // encoder.factor, crop[1] // encoder.factor)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(clean.device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _times(name: str, seconds: Sequence[float], error: float, steps: int) -> dict[str, Any]:
    p20, p50, p80 = (float(np.percentile(seconds, quantile)) for quantile in (20, 50, 80))
    return {
        "name": name,
        "p20_ms": 1e3 * p20,
        "p50_ms": 1e3 * p50,
        "p80_ms": 1e3 * p80,
        "images_per_hour": 3600 / (steps * p50),
        "error": error,
    }
