"""The door: `freeze(module, backend)`."""

from __future__ import annotations

from torch import nn

from shade_fast.runtime.cpu import Frozen
from shade_fast.runtime.cuda import CudaNetwork
from shade_fast.runtime.names import CUDA, ONNXRUNTIME, REFERENCE, check_accuracy, check_backend, cuda_precision
from shade_fast.runtime.network import FrozenNetwork
from shade_fast.runtime.onnx import OnnxNetwork


def freeze(module: nn.Module, backend: str = "native", *, accuracy: str = "fast") -> nn.Module:
    """A module with the same results whose weights never change again, executed by a backend.

    module: from images float32 [B, 3, h, w] (and further tensors, which get no gradient) to a tensor or a tuple of
        tensors; in eval mode, on the CPU for `native`. Its weights are read, not copied, while it is frozen: those of
        convolutions are packed anew at the first use.
    backend: `reference` gives the module itself; `native` a `Frozen`; `cuda` a `CudaNetwork`; those in `ONNXRUNTIME` an
        `OnnxNetwork`. A module that is frozen already stays as it is.
    accuracy: of `native`. `fast`: the input gradient within 1e-4 relative root-mean-square of float64 arithmetic, with
        Winograd's algorithms and AMX's tiles. `exact`: within 1e-5, direct sums in float32 alone. Of `cuda`: one of
        `CUDA_PRECISIONS`, each with its own error; `fast` is bf16, `exact` fp32.

    Raises ShadeFastError for an unknown backend or accuracy, and where what executes it is not there.
    """
    check_backend(backend)
    check_accuracy(backend, accuracy)
    if backend == REFERENCE or isinstance(module, FrozenNetwork):
        return module
    if backend in ONNXRUNTIME:
        return OnnxNetwork(module, *ONNXRUNTIME[backend])
    if backend == CUDA:
        return CudaNetwork(module, cuda_precision(accuracy))
    return Frozen(module, accuracy)
