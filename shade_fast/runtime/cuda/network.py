"""A network frozen for a GPU, in one precision: a program for each size of images."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from shade_fast.runtime.cuda import layers
from shade_fast.runtime.cuda.lower import Constants, lower
from shade_fast.runtime.graph import Graph
from shade_fast.runtime.switches import products
from shade_fast.terms.errors import ShadeFastError, reason

log = logging.getLogger(__name__)

#: Image sizes whose programs are kept; a program holds no memory of its own, its weights are the network's.
MOST_PROGRAMS = 32


@dataclass(frozen=True)
class Precision:
    """What features and products are computed in; sums, statistics and gradients in images are float32.

    dtype: of weights and features. tf32: whether float32 products round their factors to 10 bits of mantissa.
    error: relative root-mean-square of the input gradient against float64 in smooth networks, as the tests hold it (of
        tf32, which has fp16's mantissa, it is fp16's); a network with ReLUs has a gradient that jumps where a unit is
        within rounding of 0, and its error is larger.
    """

    dtype: torch.dtype
    tf32: bool
    error: float


#: fp16 has bf16's rate and finer steps, but ends at 65504: an encoder with larger features gives latents that are not
#: finite.
PRECISIONS = {
    "bf16": Precision(torch.bfloat16, False, 0.15),
    "fp16": Precision(torch.float16, False, 2e-2),
    "tf32": Precision(torch.float32, True, 2e-2),
    "fp32": Precision(torch.float32, False, 1e-5),
}


@dataclass(frozen=True)
class Program:
    """A network's calls for one size. run: from its inputs to a tuple. single: of one output, which is given alone.

    factor: of gradients between the outputs and the images.
    """

    run: fx.GraphModule
    single: bool
    factor: float


class CudaNetwork(nn.Module):
    """A network of fused layers; differentiable, once, in its first input alone.

    Results have the dtype that the last layer gives them, a precision's or float32, and lie channels-last. Tensors on a
    GPU run the Triton kernels; on the CPU the same program runs with the ops' plain-torch bodies, for trying it.

    module: float32, in eval mode, from images [B, 3, h, w] (and further tensors, which get no gradient) to a tensor or
        a tuple of tensors.
    precision: one of `PRECISIONS`.
    """

    def __init__(self, module: nn.Module, precision: str) -> None:
        """Raises ShadeFastError for an unknown precision."""
        super().__init__()
        if precision not in PRECISIONS:
            raise ShadeFastError(f"precision {precision!r}: give one of {', '.join(PRECISIONS)}")
        self.module = module
        self.precision = PRECISIONS[precision]
        #: why torch runs the whole module, for inputs of these shapes
        self.reasons: dict[Any, str] = {}
        self._constants: Constants = {}
        self._programs: OrderedDict[Any, Program] = OrderedDict()
        self._lock = threading.Lock()

    def forward(self, *inputs: Tensor) -> Any:
        """The module's result. Raises ShadeFastError for images that are not floating point [B, C, h, w]."""
        images, extras = inputs[0], inputs[1:]
        if images.ndim != 4 or not images.is_floating_point():
            raise ShadeFastError(
                f"a network frozen for a GPU takes float images [B, C, h, w]; got {images.dtype} {list(images.shape)}"
            )
        program = self.program(inputs) if images.numel() else None
        if program is None:
            with products(self.precision.tf32):
                return self.module(*inputs)
        outputs = program.run(layers.scaled(images.float(), 1 / program.factor), *extras)
        outputs = tuple(layers.scaled(output, program.factor) for output in outputs)
        return outputs[0] if program.single else outputs

    def program(self, inputs: Sequence[Tensor]) -> Program | None:
        """The program for inputs of these shapes; None where torch runs the module."""
        key = (tuple(tuple(one.shape) for one in inputs), inputs[0].device)
        with self._lock:
            if key in self.reasons:
                return None
            if key in self._programs:
                self._programs.move_to_end(key)
                return self._programs[key]
            try:
                # The values are of no interest, but the module's code may insist on its own dtype.
                graph = Graph(self.module, [torch.zeros_like(one, dtype=torch.float32) for one in inputs])
                run = lower(graph, self.precision.dtype, self.precision.tf32, self._constants)
            except ShadeFastError:
                raise
            except Exception as error:  # a module's code may do whatever Python can
                self.reasons[key] = f"it cannot be traced ({reason(error)})"
                log.warning("torch runs a network as it is, in float32: %s", self.reasons[key])
                return None
            self._programs[key] = Program(run, graph.single, self._factor(graph, inputs[0]))
            while len(self._programs) > MOST_PROGRAMS:
                self._programs.popitem(last=False)
            return self._programs[key]

    def kinds(self, *inputs: Tensor) -> Counter[str]:
        """How many layers of which kind the program for these inputs has. Raises ShadeFastError where there is none."""
        program = self.program(inputs)
        if program is None:
            raise ShadeFastError("; ".join(self.reasons.values()))
        calls = [node for node in program.run.graph.nodes if node.op == "call_function"]
        return Counter(getattr(node.target, "__name__", str(node.target)) for node in calls)

    def weights(self) -> list[Tensor]:
        """All weights of the programs so far, as they take them; shared ones once."""
        held = [*self._constants.values(), *(one for made in self._programs.values() for one in made.run.buffers())]
        return list({id(tensor): tensor for tensor in held}.values())

    def _factor(self, graph: Graph, images: Tensor) -> float:
        """What gradients are multiplied by on their way through float16, which has nothing below 6e-8.

        The gradient of a mean over the pixels is of order one then; a power of two changes no other bit.
        """
        if self.precision.dtype != torch.float16:
            return 1.0
        (outputs,) = graph.nodes[-1].args
        values = max(one.meta["val"][0].numel() for one in outputs)  # type: ignore[union-attr]
        return 2.0 ** round(math.log2(max(images.shape[2] * images.shape[3] / values, 1)))
