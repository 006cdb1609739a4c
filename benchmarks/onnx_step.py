"""A step through ONNX Runtime: forward and input gradient as one ONNX graph, for one shape.

Autograd's backward is traced to operators with the forward; what has no ONNX form (a convolution's backward, fused
attention) is traced as what it consists of. Needs onnx, onnxscript and onnxruntime (`.[bench]`).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

Step = Callable[[Tensor], list[Tensor]]


def onnx_model(step: Step, images: Tensor) -> bytes:
    """The graph of `step` at the shape of `images`, serialised."""
    decompositions = {**core_aten_decompositions(), torch.ops.aten.convolution_backward.default: _convolution_backward}
    with sdpa_kernel(SDPBackend.MATH):
        graph = make_fx(lambda values: step(values), decomposition_table=decompositions)(images).eval()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(graph, (images,), dynamo=True, verbose=False)
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    model: bytes = program.model_proto.SerializeToString()
    return model


class Session:
    """One ONNX graph on the CPU, with as many threads as torch has."""

    def __init__(self, model: bytes) -> None:
        onnxruntime = importlib.import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that spin on between runs would take the cores from the side whose turn is next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._shrink = onnxruntime.RunOptions()
        self._shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._name = self._session.get_inputs()[0].name

    def run(self, images: Tensor, options: Any = None) -> list[Tensor]:
        """The step's results."""
        return [torch.from_numpy(result) for result in self._session.run(None, {self._name: images.numpy()}, options)]

    def shrink(self, images: Tensor) -> None:
        """Run once, and give back what the runs' memory pool has grown to."""
        self.run(images, self._shrink)


def version() -> str:
    """Raises ImportError where a package is missing."""
    for name in ("onnx", "onnxscript"):
        importlib.import_module(name)
    return str(importlib.import_module("onnxruntime").__version__)


def _convolution_backward(
    gradient: Tensor,
    inputs: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    output_mask: list[bool],
) -> tuple[Tensor, None, None]:
    """The input gradient of a convolution as a transposed convolution; frozen weights need no other."""
    if transposed or output_mask[1] or output_mask[2]:
        raise NotImplementedError("the backward of a transposed convolution, or of trained weights")
    reached = [
        (gradient.shape[2 + axis] - 1) * stride[axis]
        - 2 * padding[axis]
        + dilation[axis] * (weight.shape[2 + axis] - 1)
        + 1
        for axis in range(2)
    ]
    missing = [inputs.shape[2 + axis] - reached[axis] for axis in range(2)]
    return (
        torch.ops.aten.convolution(gradient, weight, None, stride, padding, dilation, True, missing, groups),
        None,
        None,
    )
