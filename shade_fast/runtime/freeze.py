"""A frozen network made fast: `freeze(module, backend)`."""

from __future__ import annotations

from torch import Tensor, nn

from shade_fast.ops import native
from shade_fast.runtime.cpu import ACCURACIES, Frozen
from shade_fast.runtime.cuda import PRECISIONS as CUDA_PRECISIONS
from shade_fast.runtime.cuda import CudaNetwork
from shade_fast.runtime.onnx import CUDA, FLOAT32, PRECISIONS, PROVIDERS, OnnxNetwork
from shade_fast.terms.errors import ShadeFastError

#: Of backend `cuda`, what the accuracies that backends share stand for.
PRECISION_OF = {"fast": "bf16", "exact": "fp32"}
#: Backend that is ONNX Runtime -> its provider, and the precision of a step.
ONNXRUNTIME = {f"onnxruntime:{provider}": (provider, FLOAT32) for provider in PROVIDERS} | {
    f"onnxruntime:{CUDA}:{precision}": (CUDA, precision) for precision in PRECISIONS if precision != FLOAT32
}
#: ONNX's half precisions, by the names of backend `cuda`.
_HALVES = {"float16": "fp16", "bfloat16": "bf16"}


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
    if backend not in ("reference", "native", "cuda", *ONNXRUNTIME):
        raise ShadeFastError(
            f"backend {backend!r}: networks are frozen for one of native, cuda, {', '.join(ONNXRUNTIME)}, or "
            "'reference' as they are"
        )
    check_accuracy(backend, accuracy)
    if backend == "reference" or isinstance(module, Frozen | CudaNetwork | OnnxNetwork):
        return module
    if backend in ONNXRUNTIME:
        return OnnxNetwork(module, *ONNXRUNTIME[backend])
    if backend == "cuda":
        return CudaNetwork(module, PRECISION_OF.get(accuracy, accuracy))
    native.cpu()
    return Frozen(module, accuracy)


def check_accuracy(backend: str, accuracy: str) -> None:
    """Raise ShadeFastError for an accuracy that a backend does not know; those without any take every one that is."""
    known = ACCURACIES if backend == "native" else (*CUDA_PRECISIONS, *PRECISION_OF)
    if accuracy not in known:
        raise ShadeFastError(f"accuracy {accuracy!r} of backend {backend!r}: give one of {', '.join(known)}")


def gradient_error(backend: str, accuracy: str) -> float:
    """The relative root-mean-square error of the input gradient that a backend's half precision says of itself, in
    smooth networks; 0 where it computes in float32."""
    if backend == "cuda":
        precision = PRECISION_OF.get(accuracy, accuracy)
    else:
        precision = _HALVES.get(ONNXRUNTIME.get(backend, ("", ""))[1], "fp32")
    return CUDA_PRECISIONS[precision].error if precision != "fp32" else 0.0


def onnx_provider(backend: str) -> str | None:
    """Which of ONNX Runtime's providers a backend stands for; None where it is another."""
    return ONNXRUNTIME[backend][0] if backend in ONNXRUNTIME else None


def latent_distance(network: nn.Module, images: Tensor, anchor_latents: Tensor) -> Tensor | None:
    """The latent distance [B] of images [B, 3, h, w] where a network has it and its gradient in one run, else None."""
    return network.distance(images, anchor_latents) if isinstance(network, OnnxNetwork) else None


def latent_gradient(
    network: nn.Module, images: Tensor, anchor_latents: Tensor, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor] | None:
    """The latent distance [B] and its gradient in images [B, 3, h, w], where a network has them without autograd, else
    None. out: what an earlier call for as large a batch gave, to be written over."""
    return network.latent_gradient(images, anchor_latents, out) if isinstance(network, Frozen) else None
