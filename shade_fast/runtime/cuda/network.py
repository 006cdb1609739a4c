"""A network frozen for a GPU, in one precision: a program for each size of images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from shade_fast.runtime.cuda import layers
from shade_fast.runtime.cuda.lower import Constants, lower
from shade_fast.runtime.graph import Graph
from shade_fast.runtime.names import CUDA_PRECISIONS
from shade_fast.runtime.network import FrozenNetwork
from shade_fast.runtime.switches import products
from shade_fast.terms.errors import ShadeFastError


@dataclass(frozen=True)
class CudaProgram:
    """A network's calls for one size, which hold no memory of their own. run: from its inputs to a tuple. single: of
    one output, which is given alone.

    factor: of gradients between the outputs and the images.
    """

    run: fx.GraphModule
    single: bool
    factor: float


class CudaNetwork(FrozenNetwork[CudaProgram]):
    """A network of fused layers; differentiable, once, in its first input alone.

    Results have the dtype that the last layer gives them, a precision's or float32, and lie channels-last. Tensors on a
    GPU run the Triton kernels; on the CPU the same program runs with the ops' plain-torch bodies, for trying it.

    module: float32, in eval mode, from images [B, 3, h, w] (and further tensors, which get no gradient) to a tensor or
        a tuple of tensors.
    precision: one of `CUDA_PRECISIONS`.
    """

    title = "a network frozen for a GPU"
    takes = "float"

    def __init__(self, module: nn.Module, precision: str) -> None:
        """Raises ShadeFastError for an unknown precision."""
        super().__init__(module)
        if precision not in CUDA_PRECISIONS:
            raise ShadeFastError(f"precision {precision!r}: give one of {', '.join(CUDA_PRECISIONS)}")
        self.precision = CUDA_PRECISIONS[precision]
        self._constants: Constants = {}

    def accepts(self, images: Tensor) -> bool:
        return images.is_floating_point()

    def plain(self, *inputs: Tensor) -> Any:
        with products(self.precision.tf32):
            return self.module(*inputs)

    def prepare(self, inputs: Sequence[Tensor]) -> CudaProgram:
        # The values are of no interest, but the module's code may insist on its own dtype.
        graph = Graph(self.module, [torch.zeros_like(tensor, dtype=torch.float32) for tensor in inputs])
        run = lower(graph, self.precision.dtype, self.precision.tf32, self._constants)
        return CudaProgram(run, graph.single, self._factor(graph, inputs[0]))

    def execute(self, program: CudaProgram, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        images, *extras = inputs
        outputs = program.run(layers.scaled(images.float(), 1 / program.factor), *extras)
        return [layers.scaled(output, program.factor) for output in outputs]

    def kinds(self, *inputs: Tensor) -> Counter[str]:
        """How many layers of which kind the program for these inputs has. Raises ShadeFastError where there is none."""
        program = self.program(inputs)
        if program is None:
            raise ShadeFastError("; ".join(self.reasons.values()))
        calls = [node for node in program.run.graph.nodes if node.op == "call_function"]
        return Counter(getattr(node.target, "__name__", str(node.target)) for node in calls)

    def weights(self) -> list[Tensor]:
        """All weights of the programs so far, as they take them; shared ones once."""
        buffers = (tensor for program in self._programs.values() for tensor in program.run.buffers())
        held = [*self._constants.values(), *buffers]
        return list({id(tensor): tensor for tensor in held}.values())

    def _factor(self, graph: Graph, images: Tensor) -> float:
        """What gradients are multiplied by on their way through float16, which has nothing below 6e-8.

        The gradient of a mean over the pixels is of order one then; a power of two changes no other bit.
        """
        if self.precision.dtype != torch.float16:
            return 1.0
        (outputs,) = graph.nodes[-1].args
        values = max(output.meta["val"][0].numel() for output in outputs)  # type: ignore[union-attr]
        return 2.0 ** round(math.log2(max(images.shape[2] * images.shape[3] / values, 1)))
