"""A network frozen for the CPU: compiled layers, in programs for each size of images."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shade_fast.ops import native
from shade_fast.runtime.autograd import differentiable
from shade_fast.runtime.cpu.arena import BLOCKS, Block
from shade_fast.runtime.cpu.lower import Packs, lower
from shade_fast.runtime.cpu.program import Program
from shade_fast.runtime.graph import Graph
from shade_fast.runtime.network import FrozenNetwork, LayerReport, wants_gradient
from shade_fast.terms.errors import ShadeFastError

#: Images of a batch are run one by one where the largest value of one takes so many bytes: it fills the caches by
#: itself, and all together would be no faster and take all their memory. Smaller ones share the reading of weights.
BYTES_ALONE = 2**24


@dataclass(frozen=True)
class Needs:
    """Bytes that a network works in, and the shapes of its outputs."""

    bytes: int
    outputs: tuple[tuple[int, ...], ...]


@dataclass
class SizedPrograms:
    """What is kept of inputs of some shapes: their graph, and for each way to run it the programs not at work.

    A program takes little memory without its block.
    """

    graph: Graph
    #: whether its images are large and no layer mixes them
    separable: bool
    free: dict[Any, list[Program]] = field(default_factory=dict)
    #: whether a batch's images are run one by one, once that has been asked
    one_by_one: bool | None = None

    @property
    def single(self) -> bool:
        return self.graph.single


class Frozen(FrozenNetwork[SizedPrograms]):
    """A network of compiled layers; differentiable, once, in its first input alone.

    Its steps work in a block of memory that all frozen networks of the process share: a step that is finished lends it
    to the next, so that a steady loop allocates nothing but what it is given back.
    """

    title = "a network frozen for the CPU"

    def __init__(self, module: nn.Module, accuracy: str) -> None:
        """Raises ShadeFastError where the compiled layers are not there."""
        super().__init__(module)
        native.cpu()
        self.accuracy = accuracy
        self._packs: Packs = {}

    def accepts(self, images: Tensor) -> bool:
        return images.dtype == torch.float32 and images.device.type == "cpu"

    def prepare(self, inputs: Sequence[Tensor]) -> SizedPrograms:
        graph = Graph(self.module, inputs)
        network = lower(graph, inputs, self._packs)
        return SizedPrograms(graph, network.separable and network.largest >= BYTES_ALONE)

    def execute(self, program: SizedPrograms, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        if wants_gradient(inputs[0]):
            return differentiable(self._begin(program, inputs, True), inputs)
        if self._one_by_one(inputs):
            results = [self(*image) for image in _images_of(inputs)]
            if program.single:
                return [torch.cat(results)]
            return [torch.cat(parts) for parts in zip(*results, strict=True)]
        run = self._begin(program, inputs, False)
        with torch.no_grad():
            outputs = run.forward(inputs)
        run.end()
        return outputs

    @torch.no_grad()
    def latent_gradient(
        self, images: Tensor, anchor_latents: Tensor, out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """‖module(images) - anchor_latents‖₂ [B] and its gradient [B, 3, h, w]; None where torch runs the module, or
        it gives other tensors than such latents. With `out`, which is written over, a steady loop allocates nothing.
        Raises ShadeFastError as `forward` does.
        """
        self.check(images)
        if out is None or out[1].shape != images.shape:
            out = images.new_empty(len(images)), torch.empty_like(images, memory_format=torch.contiguous_format)
        if len(anchor_latents) == len(images) and self._one_by_one((images,)):
            parts = _images_of((images, anchor_latents, *out))
            results = [self.latent_gradient(image, anchor, (at, gradient)) for image, anchor, at, gradient in parts]
            return None if None in results else out
        programs = self.program((images,)) if images.numel() else None
        if programs is None:
            return None
        run = self._begin(programs, (images,), True)
        try:
            distance, gradient = out
            outputs = run.views((images,))
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

    def layer_reports(self, program: SizedPrograms, inputs: Sequence[Tensor]) -> list[LayerReport]:
        """Each layer, the algorithms of its forward and backward, and its share of a step's time on these inputs; on
        those of the first image where `latent_gradient` takes one after the other."""
        if self._one_by_one(inputs):
            inputs = next(_images_of(inputs))
            program = self.program(inputs) or program
        run = self._begin(program, inputs, True)
        try:
            times = [run.seconds(inputs) for _ in range(4)]
        finally:
            run.end()
        seconds = [statistics.median(runs) for runs in zip(*times[1:], strict=True)]
        return _reports(run.program, seconds)

    def needs(self, *shapes: tuple[int, ...], differentiable: bool = True) -> Needs | None:
        """What a run on inputs of these shapes takes, which nothing is run for; None where torch runs the module."""
        # Nobody writes to them, and so they take no memory.
        inputs = [torch.empty(shape, dtype=torch.float32, device="cpu") for shape in shapes]
        programs = self.program(inputs)
        if programs is None:
            return None
        program, free = self._prepared(programs, inputs, differentiable)
        free.append(program)
        return Needs(program.bytes + program.beside, tuple(size for size, _ in program.views))

    def _begin(self, programs: SizedPrograms, inputs: Sequence[Tensor], differentiable: bool) -> ProgramRun:
        """A program for these inputs with a block to work in."""
        program, free = self._prepared(programs, inputs, differentiable)
        return ProgramRun(program, BLOCKS.borrow(program.bytes), free)

    def _prepared(
        self, programs: SizedPrograms, inputs: Sequence[Tensor], differentiable: bool
    ) -> tuple[Program, list[Program]]:
        """A program for these inputs, and where it goes when it is done."""
        threads = torch.get_num_threads()
        with self._lock:
            free = programs.free.setdefault((differentiable, threads, native.cpu().selected_isa()), [])
            network = None if free else lower(programs.graph, inputs, self._packs)
            program = free.pop() if network is None else Program(network, differentiable, threads, self.accuracy)
            for other in self._programs.values():
                for idle in other.free.values():
                    if idle is not free:
                        for waiting in idle:
                            waiting.let_go()
        return program, free

    def _one_by_one(self, inputs: Sequence[Tensor]) -> bool:
        """Whether a batch's images are run one by one: large ones, that know neither each other nor their number."""
        if len(inputs[0]) < 2:
            return False
        with self._lock:
            size = self.program(inputs)
            if size is None or not size.separable:
                return False
            if size.one_by_one is None:
                alone = self.program(next(_images_of(inputs)))
                size.one_by_one = alone is not None and size.graph.is_of(alone.graph)
            return size.one_by_one


class ProgramRun:
    """A program at work in a block, until `end`."""

    def __init__(self, program: Program, block: Block, free: list[Program]) -> None:
        self.program = program
        self._block = block
        self._free: list[Program] | None = free
        #: the backward reads the further inputs where they lie
        self._inputs: Sequence[Tensor] = ()

    def views(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs, views of the block."""
        self._inputs = inputs
        return self.program.forward(self._block, inputs[0], inputs[1:])

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [output.clone() for output in self.views(inputs)]

    def backward(self, upstream: Sequence[Tensor]) -> Tensor:
        if self._free is None:
            raise ShadeFastError("the gradient of a frozen network's step is taken once: run its forward again")
        result = torch.empty_like(self._inputs[0], memory_format=torch.contiguous_format)
        for seed, gradient in zip(self.program.seeds, upstream, strict=True):
            seed.copy_(gradient)
        self.program.backward(result)
        self.end()
        return result

    @torch.no_grad()
    def seconds(self, inputs: Sequence[Tensor]) -> list[float]:
        """Seconds of each of the program's steps, forward and backward."""
        program = self.program
        program.seconds = seconds = [0.0] * len(program.steps)
        try:
            self.views(inputs)
            for seed in program.seeds:
                seed.fill_(1)
            program.backward(torch.empty_like(inputs[0]))
        finally:
            program.seconds = None
        return seconds

    def end(self) -> None:
        if self._free is not None:
            self._free.append(self.program)
            self._free = None
            BLOCKS.give_back(self._block)

    def __del__(self) -> None:
        self.end()


def _images_of(inputs: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """The inputs of each image of a batch; what has not one part for each is of all."""
    batch = len(inputs[0])
    for number in range(batch):
        yield tuple(part[number : number + 1] if part.shape[:1] == (batch,) else part for part in inputs)


def _reports(program: Program, seconds: Sequence[float]) -> list[LayerReport]:
    """The layers of a program whose steps took so many seconds."""
    rows: dict[str, LayerReport] = {}
    total = sum(seconds)
    for number, (step, took) in enumerate(zip(program.steps, seconds, strict=True)):
        if not (step.layer or took > 1e-5):
            continue
        forward = number < program.forward_steps
        name = step.layer or step.kind
        row = rows.get(name, LayerReport(name, step.kind, "", "", 0.0, 0.0, 0.0))
        rows[name] = LayerReport(
            name,
            row.kind,
            step.algorithm if forward else row.forward,
            row.backward if forward else step.algorithm,
            row.milliseconds + 1e3 * took,
            row.share + took / total,
            row.operations + step.operations,
        )
    return list(rows.values())
