"""What a GPU makes of the engine: `python -m benchmarks.gpu`, in one command, on the machine that has it.

1. Each kernel against its plain-torch body, and whole networks and a recorded step against float32 eager torch.
2. Each kernel's time beside eager torch's for the same, and beside the least that its bytes take at the memory rate
   that a copy reaches here.
3. The recorded step's time, forward, input gradient, LPIPS and update, beside what `benchmarks.gpu_model` predicts for
   this GPU, or for the one in its table whose name is the nearest.

Exits with 1 where something is wrong, not where it is slow. `--smoke` runs all of it on the CPU with tiny sizes, where
its times mean nothing.
"""

from __future__ import annotations

import argparse
import difflib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import networks
from benchmarks.gpu_model import TABLE
from benchmarks.rows import csv_file, read_rows
from benchmarks.tables import markdown
from shade_fast import Budget, View, load_encoder, load_perceptual
from shade_fast.encoders import Encoder
from shade_fast.engine import Problem, Slots, resolve_backend
from shade_fast.engine.capture import captured
from shade_fast.engine.step import Recipe
from shade_fast.errors import ShadeFastError
from shade_fast.ops import bisect_scale, denormalize, latent_distance, normalize, optimizer_update, quantize
from shade_fast.ops.bisect_scale import start as first_interval
from shade_fast.ops.epilogue import epilogue
from shade_fast.ops.lpips_layer import lpips_layer
from shade_fast.ops.residual_group_norm import residual_group_norm
from shade_fast.runtime import CUDA_PRECISIONS, freeze

#: Relative root-mean-square error of a kernel's result in bfloat16 and in float32, or whole uint8 values.
ROUNDING = 1e-2
#: By which share of what float32 makes of it the fall of the objective may differ.
FALL = 0.05
#: Runs in one recording.
RECORDED = 5


@dataclass(frozen=True)
class Sizes:
    """What is run: channels and side of a feature map, side of an image, batches, repetitions, steps, LPIPS network."""

    channels: int
    side: int
    image: int
    batches: tuple[int, ...]
    repeats: int
    steps: int
    perceptual: str


FULL = Sizes(channels=128, side=512, image=512, batches=(1, 8), repeats=30, steps=20, perceptual="auto")
SMOKE = Sizes(channels=32, side=16, image=24, batches=(1,), repeats=1, steps=4, perceptual="st-alex")


@dataclass(frozen=True)
class Kernel:
    """An op on the device, what eager torch has for it, and the bytes that it has to move. error: allowed."""

    name: str
    run: Callable[[], Any]
    reference: Callable[[], Any]
    eager: Callable[[], Any]
    bytes: float
    error: float = ROUNDING


@dataclass(frozen=True)
class Row:
    """One line of the results."""

    what: str
    case: str
    error: float
    allowed: float
    ms: float
    eager_ms: float
    least_ms: float
    predicted_ms: float

    @property
    def right(self) -> bool:
        return self.error <= self.allowed


def kernels(sizes: Sizes, device: torch.device) -> Iterator[Kernel]:
    """Every kernel of a step, on tensors as large as the encoder's first ones."""
    shape = (1, sizes.channels, sizes.side, sizes.side)
    generator = torch.Generator().manual_seed(0)

    def features() -> Tensor:
        made = torch.randn(shape, generator=generator).to(device, torch.bfloat16)
        return made.contiguous(memory_format=torch.channels_last)

    x, addend, upstream = features(), features(), features()
    gamma, beta, bias = (torch.randn(sizes.channels, generator=generator).to(device) for _ in range(3))
    size = x.numel() * x.element_size()
    norm: dict[str, Any] = {"groups": sizes.channels // 4, "epsilon": 1e-6, "activation": "silu"}

    def eager_norm(x: Tensor, *more: Tensor) -> Tensor:
        for one in more:
            x = x + (one if one.ndim == 4 else one.to(x.dtype)[:, None, None])
        weights = (one.to(x.dtype) for one in (gamma, beta))
        return functional.silu(functional.group_norm(x, norm["groups"], *weights, norm["epsilon"]))

    def exactly(function: Callable[..., Tensor], *tensors: Tensor) -> Callable[[], Tensor]:
        return lambda: function(*(one.float() for one in tensors))

    def forward_backward(function: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor) -> Callable[[], Tensor]:
        def run() -> Tensor:
            leaf = x.detach().requires_grad_(True)
            return torch.autograd.grad(function(leaf), leaf, upstream)[0]

        return run

    def fused_norm(x: Tensor) -> Tensor:
        return residual_group_norm(x, gamma, beta, keep=False, **norm)[1]

    yield Kernel("group norm, SiLU", lambda: fused_norm(x), exactly(eager_norm, x), lambda: eager_norm(x), 3 * size)
    yield Kernel(
        "group norm, SiLU, of a sum",
        lambda: residual_group_norm(x, gamma, beta, bias=bias, addend=addend, **norm)[1],
        exactly(eager_norm, x, addend, bias),
        lambda: eager_norm(x, addend, bias),
        5 * size,
    )
    yield Kernel(
        "group norm, SiLU, with its gradient",
        forward_backward(fused_norm, x, upstream),
        forward_backward(eager_norm, x.float(), upstream.float()),
        forward_backward(eager_norm, x, upstream),
        8 * size,
    )
    yield Kernel(
        "bias, residual, ReLU",
        lambda: epilogue(x, bias, addend, relu=True),
        lambda: torch.relu(x.float() + addend.float() + bias[:, None, None]),
        lambda: torch.relu(x + addend + bias.to(x.dtype)[:, None, None]),
        3 * size,
    )
    head = torch.rand(sizes.channels, generator=generator).to(device)
    clean = functional.normalize(addend.float(), dim=1).to(x.dtype)

    def eager_lpips(x: Tensor, clean: Tensor) -> Tensor:
        return ((functional.normalize(x, dim=1) - clean).square() * head.to(x.dtype)[:, None, None]).sum(1).mean((1, 2))

    yield Kernel(
        "LPIPS layer",
        lambda: lpips_layer(x, clean, head),
        exactly(eager_lpips, x, clean),
        lambda: eager_lpips(x, clean),
        2 * size,
    )
    latents, anchor = x[:, :4], addend[:, :4]
    yield Kernel(
        "latent distance",
        lambda: latent_distance(latents, anchor),
        lambda: (latents.float() - anchor.float()).flatten(1).norm(dim=1),
        lambda: (latents - anchor).flatten(1).norm(dim=1),
        2.0 * latents.numel() * latents.element_size(),
    )
    yield from pixel_kernels(sizes, device, generator)


def pixel_kernels(sizes: Sizes, device: torch.device, generator: torch.Generator) -> Iterator[Kernel]:
    """Those on images of the file's size; each op's plain-torch body is what eager torch has."""
    shape = (8, 3, sizes.image, sizes.image)
    clean = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(device)
    delta, gradient, momentum = (0.05 * torch.randn(shape, generator=generator).to(device) for _ in range(3))
    ones = torch.ones(len(clean), device=device)
    values = float(clean.numel())
    seen = normalize(clean, delta, backend="reference")
    parts = (clean, delta, ones, first_interval(len(clean), device))

    def update(backend: str) -> Callable[[], Tensor]:
        def run() -> Tensor:
            moved = delta.clone()
            optimizer_update(
                moved, momentum.clone(), gradient, clean, step=0.01, decay=0.8, linf=16 / 255, backend=backend
            )
            return moved

        return run

    ops: list[tuple[str, Callable[[str], Any], float]] = [
        ("update (with copies of delta and momentum)", lambda backend: update(backend)(), 41 * values),
        ("uint8 to bfloat16", lambda backend: normalize(clean, delta, backend=backend), 7 * values),
        ("bfloat16 to uint8", lambda backend: denormalize(seen, clean, levels=16, backend=backend), 4 * values),
        ("rounding", lambda backend: quantize(clean, delta, ones, levels=16, backend=backend), 6 * values),
        (
            "bisection's step",
            lambda backend: bisect_scale(*parts, bound=0.5, levels=16, backend=backend)[1],
            7 * values,
        ),
    ]
    for name, run, moved in ops:

        def with_backend(backend: str, run: Callable[[str], Any] = run) -> Callable[[], Any]:
            return lambda: run(backend)

        yield Kernel(name, with_backend("native"), with_backend("reference"), with_backend("reference"), moved, 1e-6)


def kernel_rows(sizes: Sizes, device: torch.device) -> Iterator[Row]:
    """Each kernel's error and times."""
    rate = copy_rate(sizes, device)
    for one in kernels(sizes, device):
        error = relative(one.run(), one.reference())
        times = [seconds(run, device, sizes.repeats) for run in (one.run, one.eager)]
        yield Row("kernel", one.name, error, one.error, 1e3 * times[0], 1e3 * times[1], 1e3 * one.bytes / rate, 0.0)


def network_rows(sizes: Sizes, encoder: Encoder, device: torch.device) -> Iterator[Row]:
    """The encoder's input gradient in each precision, against eager float32."""
    images = torch.rand(1, 3, sizes.image, sizes.image, generator=torch.Generator().manual_seed(0)).to(device)

    def gradient(module: nn.Module) -> Callable[[], Tensor]:
        def run() -> Tensor:
            leaf = images.detach().requires_grad_(True)
            return torch.autograd.grad(module(leaf).float().square().sum(), leaf)[0]

        return run

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        right = gradient(encoder.module)()
    eager_ms = 1e3 * seconds(gradient(encoder.module), device, sizes.repeats)
    for name, precision in CUDA_PRECISIONS.items():
        run = gradient(freeze(encoder.module, "cuda", accuracy=name))
        error = relative(run(), right)
        ms = 1e3 * seconds(run, device, sizes.repeats)
        yield Row("encoder's gradient", name, error, precision.error, ms, eager_ms, 0.0, 0.0)


def step_rows(sizes: Sizes, encoder: Encoder, device: torch.device) -> Iterator[Row]:
    """The recorded step, with and without LPIPS, and the same recipe with the plain modules and backend `reference`.

    The error is of the fall of the objective, as a share of the reference's; infinite where that does not fall.
    """
    for lpips in (False, True):
        for batch in sizes.batches:
            recipe = Recipe(Budget(16 / 255, 0.07 if lpips else None), sizes.steps)
            fallen, fast = steps_of(step_problem(sizes, encoder, device, batch, lpips, "cuda"), recipe, Slots(batch))
            right, eager = steps_of(step_problem(sizes, encoder, device, batch, lpips, "reference"), recipe, Slots())
            error = abs(fallen - right) / right if right > 0 else math.inf
            case = f"kl.{sizes.image}" + (".lpips" if lpips else "")
            predicted = predicted_ms(case, batch, device)
            yield Row("step", f"{case}, batch {batch}", error, FALL, 1e3 * fast, 1e3 * eager, 0.0, predicted)


def steps_of(problem: Problem, recipe: Recipe, slots: Slots) -> tuple[float, float]:
    """By which share the objective falls until the last step, in the images' mean, and a step's seconds."""
    slots.run(problem, recipe)  # recorded, where it is
    device = problem.clean.device
    wait(device)
    started = time.perf_counter()
    made = slots.run(problem, recipe)
    wait(device)
    taken = time.perf_counter() - started
    return float((1 - made.history[-1] / made.history[0]).mean()), taken / recipe.steps


def step_problem(
    sizes: Sizes, encoder: Encoder, device: torch.device, batch: int, lpips: bool, backend: str
) -> Problem:
    """Random images and anchors' latents under the networks as a backend has them."""

    def frozen(module: nn.Module) -> nn.Module:
        return freeze(module, backend)

    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (batch, 3, sizes.image, sizes.image), generator=generator, dtype=torch.uint8)
    plan = View(None).plan(sizes.image, sizes.image, encoder.factor)
    side = sizes.image // encoder.factor
    latents = torch.randn(batch, encoder.channels, side, side, generator=generator).to(device)
    perceptual = load_perceptual(sizes.perceptual, device).frozen(frozen) if lpips else None
    return Problem(clean.to(device), plan, [encoder.frozen(frozen)], [latents], perceptual, backend)


def predicted_ms(case: str, batch: int, device: torch.device) -> float:
    """What the model's table says of the GPU whose name is the nearest; 0 where it says nothing."""
    rows = {
        row["gpu"]: float(row["step_ms"])
        for row in read_rows(TABLE)
        if (row["path"], row["case"], row["batch"]) == ("fused", case, str(batch))
    }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    near = difflib.get_close_matches(name.removeprefix("NVIDIA "), rows, n=1, cutoff=0.3)
    return rows[near[0]] if near else 0.0


def copy_rate(sizes: Sizes, device: torch.device) -> float:
    """Bytes a second that a copy of a large tensor reads and writes."""
    source = torch.empty(64 * sizes.channels * sizes.side * sizes.side, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source), device, sizes.repeats)


def seconds(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """The median of a few runs, after some that are not counted; on a GPU of recorded ones, without the host's part."""

    def several() -> None:
        for _ in range(RECORDED):
            run()

    run()
    play, count = (captured(several, device), RECORDED) if device.type == "cuda" else (run, 1)
    times = []
    for _ in range(repeats):
        wait(device)
        started = time.perf_counter()
        play()
        wait(device)
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2] / count


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def relative(made: Tensor, right: Tensor) -> float:
    """Relative root-mean-square error."""
    right = right.double()
    return float((made.double() - right).norm() / right.norm().clamp_min(1e-30))


def small_encoder() -> nn.Module:
    """The layers of Stable Diffusion's autoencoder, with few channels."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = AutoencoderKL(
            **{**networks.KL, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
        )
        return network


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="on the CPU, with tiny sizes: does it run through?")
    parser.add_argument("--device", default="cuda:0", help="the GPU (default: %(default)s)")
    parser.add_argument("--csv", type=Path, help="a file for the rows")
    options = parser.parse_args(arguments)
    device = torch.device("cpu" if options.smoke else options.device)
    sizes = SMOKE if options.smoke else FULL
    if not options.smoke:
        try:
            resolve_backend("cuda", device)
        except ShadeFastError as error:
            print(f"{error}; `--smoke` tries the command without a GPU", file=sys.stderr)
            return 1
    encoder = load_encoder(small_encoder() if options.smoke else networks.SPECS["kl"](), device)
    rows = [*kernel_rows(sizes, device), *network_rows(sizes, encoder, device), *step_rows(sizes, encoder, device)]
    if options.csv is not None:
        with csv_file(options.csv) as write:
            write(rows)
    heads = ("", "case", "error", "allowed", "ms", "eager ms", "least ms", "predicted ms")
    print(markdown(heads, [[_shown(value) for value in vars(row).values()] for row in rows]))
    wrong = [f"{row.what}, {row.case}: error {row.error:.2g}, allowed {row.allowed:g}" for row in rows if not row.right]
    print("\n".join(wrong) or "all results are right", file=sys.stderr if wrong else sys.stdout)
    return int(bool(wrong))


def _shown(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.3g}" if value else ""


if __name__ == "__main__":
    sys.exit(main())
