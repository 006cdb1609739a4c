"""The networks' part of one optimiser step: encoder forward, latent distance, gradient in the image; and LPIPS' own.

Images are photographs with noise inside the bound on them; an anchor latent is noise as large as the latents are.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import networks, photographs
from benchmarks.registry import Case, Side, register
from shade_fast import runtime
from shade_fast.ops import native
from shade_fast.perceptual import Perceptual
from shade_fast.terms.errors import ShadeFastError

SIZES, BATCHES = (256, 512), (1, 2, 4)
#: Name, size, batch and LPIPS of the one larger batch among the standard cases, which `make bench` runs.
BATCHED = ("taef2", 256, 4, False)
LINF = 16 / 255

#: What a distance's relative error, and a gradient's relative root-mean-square error, may be against float64.
TOLERANCES, TOLERANCE = {"exact": 1e-5}, 1e-4
#: With ReLUs or max pooling the gradient jumps where a value passes 0 or another, and a few of the millions of values
#: are so near that rounding decides: float64's own gradient at images changed by a millionth differs by 1e-3 to 3e-3.
SMOOTH, TOLERANCE_OF_JUMPS = {"kl"}, 1e-2
#: At these sizes float64 takes minutes and gigabytes; right is channels-last float32, whose own error counts as well.
WITHOUT_FLOAT64, TOLERANCE_TO_FLOAT32 = {("kl", 512)}, 2e-4

CHANNELS_LAST: dict[str, Any] = {"memory_format": torch.channels_last}
Freeze = Callable[[nn.Module], nn.Module]


class Part:
    """One network of a step: what it gives is distances [B] of images [B, 3, h, w], and `step` their gradients too."""

    def distance(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def step(self, images: Tensor) -> list[Tensor]:
        """Distances [B] and their gradients [B, 3, h, w]."""
        images = images.detach().requires_grad_(True)
        distance = self.distance(images)
        return [distance.detach(), *torch.autograd.grad(distance.sum(), images)]


class LatentPart(Part):
    """An encoder, and its latents' distance to anchors' latents [B, C, h, w]."""

    def __init__(self, module: nn.Module, anchors: Tensor) -> None:
        self.module = module
        self.anchors = anchors
        self._out: tuple[Tensor, Tensor] | None = None

    def step(self, images: Tensor) -> list[Tensor]:
        self._out = runtime.latent_gradient(self.module, images, self.anchors, self._out)
        return super().step(images) if self._out is None else list(self._out)

    def distance(self, images: Tensor) -> Tensor:
        joint = runtime.latent_distance(self.module, images, self.anchors)
        if joint is not None:
            return joint
        latents: Tensor = self.module(images)
        distance: Tensor = (latents - self.anchors).flatten(1).norm(dim=1)
        return distance

    def to(self, **kind: Any) -> LatentPart:
        return LatentPart(copy.deepcopy(self.module).to(**kind), self.anchors.to(**kind))

    def compiled(self) -> LatentPart:
        return LatentPart(_compile(self.module), self.anchors)

    def frozen(self, freeze: Freeze) -> LatentPart:
        return LatentPart(freeze(self.module), self.anchors)


class LpipsPart(Part):
    """An LPIPS network with the features of clean images [B, 3, h, w]."""

    def __init__(self, network: Perceptual, clean: Tensor) -> None:
        self.network = network
        self.clean = clean
        self.features = network.features(clean)
        self._distance = network.distance

    def distance(self, images: Tensor) -> Tensor:
        distance: Tensor = self._distance(images, self.features)
        return distance

    def to(self, **kind: Any) -> LpipsPart:
        return LpipsPart(copy.deepcopy(self.network).to(**kind), self.clean.to(**kind))

    def compiled(self) -> LpipsPart:
        part = copy.copy(self)
        part._distance = _compile(self._distance)
        return part

    def frozen(self, freeze: Freeze) -> LpipsPart:
        return LpipsPart(self.network.frozen(freeze), self.clean)


def prepare(name: str, size: int, batch: int, lpips: bool) -> Callable[[str], Side]:
    """Sides of one step of `batch` images; a step gives what its parts give, one after the other."""
    images = perturbed(size, slice(batch))
    parts = [make(name, size, slice(batch)) for make in makers(lpips)]

    def side(backend: str) -> Side:
        ran, run, release = SIDES[backend](images, parts)

        def worst(results: list[Tensor]) -> float:
            return max(error for _, error in errors(name, size, lpips, results))

        def check(results: list[Tensor]) -> str | None:
            allowed = tolerance(name, size, backend)
            for what, error in errors(name, size, lpips, results):
                limit = allowed if what.startswith("latent") else max(allowed, TOLERANCE_OF_JUMPS)
                if not error <= limit:
                    return f"the {what} is off by {error:.2g}, more than {limit:g}"
            return None

        return Side(ran, run, check, release=release, error=worst)

    return side


def latent_part(name: str, size: int, chosen: slice) -> LatentPart:
    return LatentPart(networks.encoder(name), anchors(name, size)[chosen])


def lpips_part(_: str, size: int, chosen: slice) -> LpipsPart:
    return LpipsPart(networks.perceptual(), photographs.batch(size, max(BATCHES))[chosen])


def makers(lpips: bool) -> list[Callable[[str, int, slice], LatentPart | LpipsPart]]:
    return [latent_part, lpips_part] if lpips else [latent_part]


def perturbed(size: int, chosen: slice) -> Tensor:
    """Photographs with noise on them, float32 [B, 3, size, size] in [0, 1]."""
    clean = photographs.batch(size, max(BATCHES))
    noise = torch.rand(clean.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return (clean + LINF * noise).clamp(0, 1)[chosen]


@functools.lru_cache(maxsize=8)
@torch.no_grad()
def anchors(name: str, size: int) -> Tensor:
    """An anchor latent for each photograph, [B, C, h, w]: noise with the root-mean-square of the first one's latents.

    Latents of other images would do for a trained encoder; those that an untrained one gives are nearly alike, and the
    rounding errors of their difference would be measured.
    """
    latents = networks.encoder(name)(photographs.batch(size, 1))
    noise = torch.randn(max(BATCHES), *latents.shape[1:], generator=torch.Generator().manual_seed(1))
    size_of_latents: Tensor = latents.square().mean().sqrt()
    return noise * size_of_latents


def tolerance(name: str, size: int, backend: str) -> float:
    """What errors of the encoder's part may be."""
    if (name, size) in WITHOUT_FLOAT64:
        return TOLERANCE_TO_FLOAT32
    return TOLERANCES.get(backend, TOLERANCE) if name in SMOOTH else TOLERANCE_OF_JUMPS


def errors(name: str, size: int, lpips: bool, results: list[Tensor]) -> list[tuple[str, float]]:
    """Names and relative errors of a step's results."""
    rows = []
    for number, (make, kind) in enumerate(zip(makers(lpips), ("latent", "lpips"), strict=False)):
        for index in range(len(results[0])):
            for what, offset, wanted in zip(
                ("distance", "gradient"), (0, 1), right(make, name, size, index), strict=True
            ):
                result = results[2 * number + offset][index]
                rows.append((f"{kind} {what} of image {index}", float((result - wanted).norm() / wanted.norm())))
    return rows


@functools.lru_cache(maxsize=64)
def right(make: Callable[[str, int, slice], Any], name: str, size: int, index: int) -> list[Tensor]:
    """One image's distance and gradient in float64, or where that is too long in channels-last float32."""
    chosen = slice(index, index + 1)
    kind = CHANNELS_LAST if (name, size) in WITHOUT_FLOAT64 else {"dtype": torch.float64}
    return [
        result[0].double() for result in make(name, size, chosen).to(**kind).step(perturbed(size, chosen).to(**kind))
    ]


#: What runs a side, one step of it, and what gives back the memory that it keeps.
Made = tuple[str, Callable[[], list[Tensor]], Callable[[], None]]
Parts = list[LatentPart | LpipsPart]


def eager(images: Tensor, parts: Parts) -> Made:
    """The modules as they are loaded."""
    return "torch", _run(images, parts), _nothing


def channels_last(images: Tensor, parts: Parts) -> Made:
    """The modules, their inputs and kept features in torch's channels-last memory format."""
    parts = [part.to(**CHANNELS_LAST) for part in parts]
    return "torch channels-last", _run(images.to(**CHANNELS_LAST), parts), _nothing


def compiled(images: Tensor, parts: Parts) -> Made:
    """The channels-last modules through torch.compile: whole graphs for this one size, their backward by autograd."""
    torch._dynamo.reset()  # or the cases before count against the limit of what is compiled anew
    parts = [part.to(**CHANNELS_LAST) for part in parts]
    try:
        run = _run(images.to(**CHANNELS_LAST), [part.compiled() for part in parts])
        run()
    except Exception as error:  # a compiler's errors are of many kinds
        raise ShadeFastError(f"torch.compile failed: {_first_line(error)}") from error
    return "torch.compile inductor channels-last", run, _nothing


def onnxruntime(images: Tensor, parts: Parts) -> Made:
    """Each part's step as one ONNX graph, anchors and kept features its inputs."""
    frozen_networks, run = _frozen(images, parts, "onnxruntime:cpu")

    def release() -> None:
        for network in frozen_networks:
            network.shrink = True
        run()
        for network in frozen_networks:
            network.shrink = False

    return f"onnxruntime {version('onnxruntime')} CPUExecutionProvider", run, release


def frozen(accuracy: str, images: Tensor, parts: Parts) -> Made:
    """The modules frozen for the CPU. Raises ShadeFastError where torch would run one of them instead."""
    frozen_networks, run = _frozen(images, parts, "native", accuracy)
    for network in frozen_networks:
        for reason in network.reasons.values():
            raise ShadeFastError(f"torch would run a network: {reason}")
    return f"native {native.cpu().selected_isa()} {accuracy}", run, runtime.BLOCKS.release


def _frozen(images: Tensor, parts: Parts, *how: str) -> tuple[list[Any], Callable[[], list[Tensor]]]:
    """The networks of the parts, frozen so, and their step, which has run once."""
    frozen_networks: list[Any] = []

    def remember(module: nn.Module) -> nn.Module:
        network = runtime.freeze(module, how[0], accuracy=how[1] if len(how) > 1 else "fast")
        frozen_networks.append(network)
        return network

    run = _run(images, [part.frozen(remember) for part in parts])
    run()
    return frozen_networks, run


def _run(images: Tensor, parts: Parts) -> Callable[[], list[Tensor]]:
    return lambda: [result for part in parts for result in part.step(images)]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _compile(function: Any) -> Any:
    return torch.compile(function, fullgraph=True, dynamic=False)


def _nothing() -> None:
    """Torch keeps no buffers of its own."""


SIDES: dict[str, Callable[[Tensor, Parts], Made]] = {
    "eager": eager,
    "channels-last": channels_last,
    "compile": compiled,
    "onnxruntime": onnxruntime,
    "native": functools.partial(frozen, "fast"),
    "exact": functools.partial(frozen, "exact"),
}


def operations(name: str, size: int, batch: int, lpips: bool) -> int:
    """Floating-point operations of a step's products as direct sums, forward and input gradient."""
    images = torch.empty(1, 3, size, size, device="meta", requires_grad=True)
    parts = [make(name, size, slice(1)).to(device="meta") for make in makers(lpips)]
    with FlopCounterMode(display=False) as counter:
        for part in parts:
            part.distance(images).sum().backward()  # type: ignore[no-untyped-call]
    return batch * int(counter.get_total_flops())


def _register(name: str, size: int, batch: int, lpips: bool) -> None:
    suffix = (f".b{batch}" if batch > 1 else "") + (".lpips" if lpips else "")
    register(
        Case(
            name=f"step.{name}.{size}{suffix}",
            purpose="the networks of one optimiser step" + (", with LPIPS" if lpips else ""),
            shape=f"{batch}x3x{size}x{size}",
            backends=tuple(SIDES),
            prepare=functools.partial(prepare, name, size, batch, lpips),
            images=batch,
            operations=functools.partial(operations, name, size, batch, lpips),
            standard=(batch == 1 and not (lpips and size == 512)) or (name, size, batch, lpips) == BATCHED,
        )
    )


for _name in networks.SPECS:
    for _size in SIZES:
        for _batch in BATCHES:
            if _name != "kl" or _size == 256 or _batch == 1:
                for _lpips in (False, True):
                    _register(_name, _size, _batch, _lpips)
