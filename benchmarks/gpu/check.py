"""Whether the engine is right on a GPU, and how fast it is there: `python -m benchmarks gpu check`.

1. Each kernel against its plain-torch body, whole networks against float64, and a recorded step against float32 eager
   torch.
2. Each kernel's time beside eager torch's for the same, and beside the least that its bytes take at the memory rate
   that a copy reaches here.
3. The recorded step's time, forward, input gradient, LPIPS and update, beside what `gpu model` predicts for this GPU,
   or for the one in its table whose name is the nearest.

Eager torch rounds the factors of float32 convolutions, as is its default. Each line is printed as soon as it is
measured. A failure does not end the others; a line that runs out of memory is reported, and is not wrong. Exits with 1
where something is wrong, not where it is slow. `--smoke` runs all of it on the CPU with tiny sizes, where its times
mean nothing.
"""

from __future__ import annotations

import copy
import difflib
import functools
import itertools
import math
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import networks
from benchmarks.gpu.model import TABLE
from benchmarks.inputs import Inputs
from benchmarks.ops import OPS, Check
from benchmarks.rows import csv_file, read_rows
from benchmarks.tables import markdown
from shade_fast import Budget, View, load_encoder, load_perceptual
from shade_fast.encoders import Encoder
from shade_fast.engine import Problem, Slots, resolve_backend
from shade_fast.engine.capture import captured, is_out_of_memory
from shade_fast.engine.step import Recipe
from shade_fast.perceptual import Perceptual
from shade_fast.runtime import CUDA_PRECISIONS, CudaNetwork, freeze
from shade_fast.terms.errors import ShadeFastError, reason

#: By which share of what float32 makes of it the fall of the objective may differ.
FALL = 0.05
#: What is allowed beyond a precision's own error: cuDNN has float32 algorithms that multiply less and round more.
ALLOWED = {"fp32": 3e-5}
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


@dataclass(frozen=True)
class Line:
    """A line of the results, and what measures it."""

    what: str
    case: str
    measure: Callable[[], Row]


def kernel_lines(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """Each kernel's error and times."""

    @functools.cache
    def rate() -> float:
        return copy_rate(sizes, device)

    inputs = Inputs(sizes.channels, sizes.side, sizes.image, device)
    for check in itertools.chain.from_iterable(op.checks(inputs) for op in OPS):

        def measure(check: Check = check) -> Row:
            error = relative(check.run(), check.reference())
            ms, eager_ms = (1e3 * seconds(run, device, sizes.repeats) for run in (check.run, check.eager))
            return Row("kernel", check.name, error, check.error, ms, eager_ms, 1e3 * check.bytes / rate(), 0.0)

        yield Line("kernel", check.name, measure)


def network_lines(sizes: Sizes, encoder: Encoder, device: torch.device) -> Iterator[Line]:
    """The encoder's input gradient in each precision, against float64; times beside eager float32."""
    images = torch.rand(1, 3, sizes.image, sizes.image, generator=torch.Generator().manual_seed(0)).to(device)

    def gradient(module: nn.Module, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
        def run() -> Tensor:
            leaf = images.to(dtype).detach().requires_grad_(True)
            return torch.autograd.grad(module(leaf).to(dtype).square().sum(), leaf)[0]

        return run

    @functools.cache
    def right() -> Tensor:
        return gradient(copy.deepcopy(encoder.module).double(), torch.float64)()

    @functools.cache
    def eager_ms() -> float:
        return 1e3 * seconds(gradient(encoder.module), device, sizes.repeats)

    for name, precision in CUDA_PRECISIONS.items():

        def measure(name: str = name, allowed: float = ALLOWED.get(name, precision.error)) -> Row:
            network = freeze(encoder.module, "cuda", accuracy=name)
            run = gradient(network)
            error = relative(run(), right())
            check_traced([network])
            ms = 1e3 * seconds(run, device, sizes.repeats)
            return Row("encoder's gradient", name, error, allowed, ms, eager_ms(), 0.0, 0.0)

        yield Line("encoder's gradient", name, measure)


def step_lines(sizes: Sizes, encoder: Encoder, device: torch.device) -> Iterator[Line]:
    """The recorded step, with and without LPIPS, and the same recipe with the plain modules and backend `reference`.

    The error is of the fall of the objective, as a share of the reference's; infinite where that does not fall.
    """

    @functools.cache
    def perceptual() -> Perceptual:
        return load_perceptual(sizes.perceptual, device)

    for lpips, batch in itertools.product((False, True), sizes.batches):
        case = f"kl.{sizes.image}" + (".lpips" if lpips else "")

        def measure(lpips: bool = lpips, batch: int = batch, case: str = case) -> Row:
            recipe = Recipe(Budget(16 / 255, 0.07 if lpips else None), sizes.steps)
            compared = perceptual() if lpips else None
            slots, networks = Slots(batch), list[nn.Module]()
            problem = step_problem(sizes, encoder, compared, device, batch, "cuda", networks)
            fallen, fast = steps_of(problem, recipe, slots)
            check_traced(networks)
            if device.type == "cuda" and not slots.all_recorded:
                raise ShadeFastError("the step was not recorded: see the log")
            problem = step_problem(sizes, encoder, compared, device, batch, "reference", [])
            right, eager = steps_of(problem, recipe, Slots())
            error = abs(fallen - right) / right if right > 0 else math.inf
            name, predicted = case, predicted_ms(case, batch, device)
            if compared is not None:
                name = f"{case} {compared.name}"
                predicted = predicted if compared.name == "vgg" else 0.0  # of LPIPS' networks the model knows one
            return Row("step", f"{name}, batch {batch}", error, FALL, 1e3 * fast, 1e3 * eager, 0.0, predicted)

        yield Line("step", f"{case}, batch {batch}", measure)


def steps_of(problem: Problem, recipe: Recipe, slots: Slots) -> tuple[float, float]:
    """By which share the objective falls until the last step, in the images' mean, and a step's seconds."""
    slots.run(problem, recipe)  # recorded, where it is
    device = problem.clean.device
    wait(device)
    started = time.perf_counter()
    result = slots.run(problem, recipe)
    wait(device)
    elapsed = time.perf_counter() - started
    return float((1 - result.history[-1] / result.history[0]).mean()), elapsed / recipe.steps


def step_problem(
    sizes: Sizes,
    encoder: Encoder,
    perceptual: Perceptual | None,
    device: torch.device,
    batch: int,
    backend: str,
    networks: list[nn.Module],
) -> Problem:
    """Random images and anchors' latents under the networks as a backend has them, which are put into `networks`."""

    def frozen(module: nn.Module) -> nn.Module:
        networks.append(freeze(module, backend))
        return networks[-1]

    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (batch, 3, sizes.image, sizes.image), generator=generator, dtype=torch.uint8)
    plan = View(None).plan(sizes.image, sizes.image, encoder.factor)
    side = sizes.image // encoder.factor
    latents = torch.randn(batch, encoder.channels, side, side, generator=generator).to(device)
    compared = None if perceptual is None else perceptual.frozen(frozen)
    return Problem(clean.to(device), plan, [encoder.frozen(frozen)], [latents], compared, backend)


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


def check_traced(networks: Iterable[nn.Module]) -> None:
    """Raise ShadeFastError where torch runs a network that is said to be frozen."""
    for network in networks:
        if isinstance(network, CudaNetwork) and network.reasons:
            raise ShadeFastError(f"torch runs the network: {next(iter(network.reasons.values()))}")


def wait(device: torch.device) -> None:
    """Until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def relative(result: Tensor, right: Tensor) -> float:
    """Relative root-mean-square error."""
    right = right.to(result.device, torch.float64)
    return float((result.double() - right).norm() / right.norm().clamp_min(1e-30))


def small_encoder() -> nn.Module:
    """The layers of Stable Diffusion's autoencoder, with few channels."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = AutoencoderKL(
            **{**networks.KL, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
        )
        return network


def arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--smoke", action="store_true", help="on the CPU, with tiny sizes: does it run through?")
    parser.add_argument("--device", default="cuda:0", help="the GPU (default: %(default)s)")
    parser.add_argument("--csv", type=Path, help="a file for the rows")


def run(options: Namespace) -> int:
    """The command; see the module's docstring."""
    device = torch.device("cpu" if options.smoke else options.device)
    sizes = SMOKE if options.smoke else FULL
    if not options.smoke:
        try:
            resolve_backend("cuda", device)
        except ShadeFastError as error:
            print(f"{error}; `--smoke` tries the command without a GPU", file=sys.stderr)
            return 1
    encoder = load_encoder(small_encoder() if options.smoke else networks.SPECS["kl"](), device)
    heads = ("", "case", "error", "allowed", "ms", "eager ms", "least ms", "predicted ms")
    rows: list[Row] = []
    wrong: list[str] = []
    parts = (kernel_lines(sizes, device), network_lines(sizes, encoder, device), step_lines(sizes, encoder, device))
    for line in itertools.chain.from_iterable(parts):
        try:
            row = line.measure()
        except Exception as error:  # whatever a GPU's libraries raise, the other lines are of use
            problem = f"{line.what}, {line.case}: {reason(error)}"
            if is_out_of_memory(error):
                print(f"{problem}; not measured", file=sys.stderr)
            else:
                wrong.append(problem)
            continue
        text = markdown(heads, [[_shown(value) for value in vars(row).values()]]).splitlines()
        print("\n".join(text[-1:] if rows else text), flush=True)
        rows.append(row)
        if not row.right:
            wrong.append(f"{row.what}, {row.case}: error {row.error:.2g}, allowed {row.allowed:g}")
    if options.csv is not None:
        with csv_file(options.csv) as write:
            write(rows)
    print("\n".join(wrong) or "all results are right", file=sys.stderr if wrong else sys.stdout)
    return int(bool(wrong))


def _shown(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.3g}" if value else ""
