"""A network frozen for the CPU: compiled layers, in programs for each size of images."""

from __future__ import annotations

import logging
import statistics
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shade_fast.ops import native
from shade_fast.runtime.cpu.arena import BLOCKS, Block
from shade_fast.runtime.cpu.lower import Packs, lower
from shade_fast.runtime.cpu.program import Program
from shade_fast.runtime.graph import Graph
from shade_fast.terms.errors import ShadeFastError, reason

log = logging.getLogger(__name__)

#: Image sizes whose graphs and programs are kept; a program takes little memory without its block.
MOST_SIZES = 32
#: Images of a batch are run one by one where the largest value of one takes so many bytes: it fills the caches by
#: itself, and all together would be no faster and take all their memory. Smaller ones share the reading of weights.
BYTES_ALONE = 2**24


class Frozen(nn.Module):
    """A network of compiled layers; differentiable, once, in its first input alone.

    Its steps work in a block of memory that all frozen networks of the process share: a step that is finished lends it
    to the next, so that a steady loop allocates nothing but what it is given back.
    """

    def __init__(self, module: nn.Module, accuracy: str) -> None:
        super().__init__()
        self.module = module
        self.accuracy = accuracy
        #: why torch runs the whole module, for inputs of these shapes
        self.reasons: dict[Any, str] = {}
        self._lock = threading.RLock()
        self._packs: Packs = {}
        #: by the inputs' shapes, the one used last at the end
        self._sizes: dict[Any, _Size] = {}
        self._single = True

    def forward(self, *inputs: Tensor) -> Any:
        """The module's result. Raises ShadeFastError for images that are not float32 [B, C, h, w] on the CPU."""
        images, extras = inputs[0], inputs[1:]
        _check(images)
        if not images.numel():
            return self.module(*inputs)
        differentiable = torch.is_grad_enabled() and images.requires_grad
        if not differentiable and self._one_by_one(inputs):
            made = [self(*one) for one in _images_of(inputs)]
            return torch.cat(made) if self._single else tuple(torch.cat(parts) for parts in zip(*made, strict=True))
        run = self._begin(inputs, differentiable)
        if run is None:
            return self.module(*inputs)
        if differentiable:
            outputs = _Step.apply(run, images, *extras)  # type: ignore[no-untyped-call]
        else:
            with torch.no_grad():
                outputs = tuple(output.clone() for output in run.forward(images, extras))
            run.end()
        return outputs[0] if self._single else outputs

    @torch.no_grad()
    def latent_gradient(
        self, images: Tensor, anchor_latents: Tensor, out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """‖module(images) - anchor_latents‖₂ [B] and its gradient [B, 3, h, w]; None where torch runs the module, or
        it gives other tensors than such latents. With `out`, which is written over, a steady loop allocates nothing.
        Raises ShadeFastError as `forward` does.
        """
        _check(images)
        if out is None or out[1].shape != images.shape:
            out = images.new_empty(len(images)), torch.empty_like(images, memory_format=torch.contiguous_format)
        if len(anchor_latents) == len(images) and self._one_by_one((images,)):
            parts = _images_of((images, anchor_latents, *out))
            made = [self.latent_gradient(image, anchor, (at, gradient)) for image, anchor, at, gradient in parts]
            return None if None in made else out
        run = self._begin((images,), True) if images.numel() else None
        if run is None:
            return None
        try:
            distance, gradient = out
            outputs = run.forward(images, ())
            if len(outputs) > 1 or outputs[0].shape != anchor_latents.shape:
                return None
            (seed,) = run.program.seeds
            torch.sub(outputs[0], anchor_latents, out=seed)
            torch.linalg.vector_norm(seed, dim=(1, 2, 3), out=distance)
            inverse = torch.reciprocal(distance, out=run.program.scratch)
            torch.nan_to_num_(inverse, nan=torch.nan, posinf=0.0)
            seed.mul_(inverse[:, None, None, None])
            run.program.backward(gradient)
        finally:
            run.end()
        return out

    def report(self, *inputs: Tensor) -> Report:
        """Each layer, the algorithms of its forward and backward, and its share of a step's time on these inputs; on
        those of the first image where `latent_gradient` takes one after the other."""
        if not inputs:
            raise ShadeFastError("report: give it the images [B, 3, h, w] whose step is to be timed")
        if self._one_by_one(inputs):
            inputs = next(_images_of(inputs))
        images, extras = inputs[0], inputs[1:]
        run = self._begin(inputs, True)
        if run is None:
            return Report((), self.reasons[_shapes(inputs)])
        program = run.program
        try:
            times = []
            for _ in range(4):
                program.seconds = [0.0] * len(program.steps)
                with torch.no_grad():
                    run.forward(images, extras)
                    for seed in program.seeds:
                        seed.fill_(1)
                    program.backward(torch.empty_like(images))
                times.append(program.seconds)
        finally:
            program.seconds = None
            run.end()
        seconds = [statistics.median(runs) for runs in zip(*times[1:], strict=True)]
        rows: dict[str, Row] = {}
        total = sum(seconds)
        for number, (step, took) in enumerate(zip(program.steps, seconds, strict=True)):
            if not (step.layer or took > 1e-5):
                continue
            forward = number < program.forward_steps
            name = step.layer or step.kind
            row = rows.get(name, Row(name, step.kind, "", "", 0.0, 0.0, 0.0))
            rows[name] = Row(
                name,
                row.kind,
                step.algorithm if forward else row.forward,
                row.backward if forward else step.algorithm,
                row.milliseconds + 1e3 * took,
                row.share + took / total,
                row.operations + step.operations,
            )
        return Report(tuple(rows.values()), None)

    def needs(self, *shapes: tuple[int, ...], differentiable: bool = True) -> Needs | None:
        """What a run on inputs of these shapes takes, which nothing is run for; None where torch runs the module."""
        # Nobody writes to them, and so they take no memory.
        prepared = self._prepared(
            [torch.empty(shape, dtype=torch.float32, device="cpu") for shape in shapes], differentiable
        )
        if prepared is None:
            return None
        program, free = prepared
        free.append(program)
        return Needs(program.bytes + program.beside, tuple(size for size, _ in program.views))

    def _begin(self, inputs: Sequence[Tensor], differentiable: bool) -> _Run | None:
        """A program for these inputs with a block to work in; None where torch must run the module."""
        prepared = self._prepared(inputs, differentiable)
        return None if prepared is None else _Run(prepared[0], BLOCKS.borrow(prepared[0].bytes), prepared[1])

    def _prepared(self, inputs: Sequence[Tensor], differentiable: bool) -> tuple[Program, list[Program]] | None:
        """A program for these inputs, and where it goes when it is done; None where torch must run the module."""
        threads = torch.get_num_threads()
        with self._lock:
            size = self._size(inputs)
            if size is None:
                return None
            free = size.free.setdefault((differentiable, threads, native.cpu().selected_isa()), [])
            network = None if free else lower(size.graph, inputs, self._packs)
            program = free.pop() if network is None else Program(network, differentiable, threads, self.accuracy)
            for other in self._sizes.values():
                for idle in other.free.values():
                    if idle is not free:
                        for one in idle:
                            one.let_go()
        return program, free

    def _one_by_one(self, inputs: Sequence[Tensor]) -> bool:
        """Whether a batch's images are run one by one: large ones, that know neither each other nor their number."""
        if len(inputs[0]) < 2:
            return False
        with self._lock:
            size = self._size(inputs)
            if size is None or not size.separable:
                return False
            if size.one_by_one is None:
                alone = self._size(next(_images_of(inputs)))
                size.one_by_one = alone is not None and size.graph.is_of(alone.graph)
            return size.one_by_one

    def _size(self, inputs: Sequence[Tensor]) -> _Size | None:
        """What is kept of inputs of these shapes, now the ones used last; None where torch must run the module."""
        shapes = _shapes(inputs)
        if shapes in self.reasons:
            return None
        size = self._sizes.pop(shapes, None)
        try:
            if size is None:
                graph = Graph(self.module, inputs)
                network = lower(graph, inputs, self._packs)
                size = _Size(graph, network.separable and network.largest >= BYTES_ALONE)
        except ShadeFastError:
            raise
        except Exception as error:  # a module's code may do whatever Python can
            self.reasons[shapes] = f"it cannot be traced ({reason(error)})"
            log.warning("torch runs a network as it is: %s", self.reasons[shapes])
            return None
        self._single = size.graph.single
        self._sizes[shapes] = size
        while len(self._sizes) > MOST_SIZES:
            del self._sizes[next(iter(self._sizes))]
        return size


@dataclass(frozen=True)
class Needs:
    """Bytes that a network works in, and the shapes of its outputs."""

    bytes: int
    outputs: tuple[tuple[int, ...], ...]


@dataclass
class _Size:
    """What is kept of inputs of some shapes: their graph, and for each way to run it the programs not at work."""

    graph: Graph
    #: whether its images are large and no layer mixes them
    separable: bool
    free: dict[Any, list[Program]] = field(default_factory=dict)
    #: whether a batch's images are run one by one, once that has been asked
    one_by_one: bool | None = None


def _check(images: Tensor) -> None:
    if images.dtype != torch.float32 or images.ndim != 4 or images.device.type != "cpu":
        raise ShadeFastError(
            f"a network frozen for the CPU takes float32 images [B, C, h, w]; got {images.dtype} "
            f"{list(images.shape)} on {images.device}"
        )


def _images_of(inputs: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """The inputs of each image of a batch; what has not one part for each is of all."""
    batch = len(inputs[0])
    for number in range(batch):
        yield tuple(one[number : number + 1] if one.shape[:1] == (batch,) else one for one in inputs)


def _shapes(inputs: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in inputs)


@dataclass(frozen=True)
class Row:
    """One layer in a report: algorithms, milliseconds of a step, share of it, and operations of its products."""

    layer: str
    kind: str
    forward: str
    backward: str
    milliseconds: float
    share: float
    operations: float


@dataclass(frozen=True)
class Report:
    """What runs how: `rows` in the order of the forward; `reason` says why torch runs the whole module instead."""

    rows: tuple[Row, ...]
    reason: str | None

    def __str__(self) -> str:
        if self.reason is not None:
            return f"torch runs the whole network: {self.reason}"
        lines = [f"{'layer':44} {'kind':24} {'forward':12} {'backward':12} {'ms':>9} {'share':>6} {'GFLOP/s':>8}"]
        for row in self.rows:
            rate = row.operations / row.milliseconds / 1e6 if row.operations else 0.0
            lines.append(
                f"{row.layer[-44:]:44} {row.kind[:24]:24} {row.forward[:12]:12} {row.backward[:12]:12} "
                f"{row.milliseconds:9.3f} {row.share:6.1%} {f'{rate:8.0f}' if rate else '':>8}"
            )
        return "\n".join(lines)


class _Run:
    """A program at work in a block, until `end`."""

    def __init__(self, program: Program, block: Block, free: list[Program]) -> None:
        self.program = program
        self._block = block
        self._free: list[Program] | None = free

    def forward(self, images: Tensor, extras: Sequence[Tensor]) -> list[Tensor]:
        return self.program.forward(self._block, images, extras)

    @property
    def ended(self) -> bool:
        return self._free is None

    def end(self) -> None:
        if self._free is not None:
            self._free.append(self.program)
            self._free = None
            BLOCKS.give_back(self._block)

    def __del__(self) -> None:
        self.end()


class _Step(torch.autograd.Function):
    """Forward and input gradient as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, run: _Run, images: Tensor, *extras: Tensor) -> tuple[Tensor, ...]:
        ctx.run, ctx.extras, ctx.images = run, extras, images.detach()
        return tuple(output.clone() for output in run.forward(images.detach(), extras))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.run.ended:
            raise ShadeFastError("the gradient of a frozen network's step is taken once: run its forward again")
        result = torch.empty_like(ctx.images, memory_format=torch.contiguous_format)
        for seed, gradient in zip(ctx.run.program.seeds, gradients, strict=True):
            seed.copy_(gradient)
        ctx.run.program.backward(result)
        ctx.run.end()
        return None, result, *([None] * len(ctx.extras))
