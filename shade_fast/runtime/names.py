"""The names of backends, accuracies and precisions, each spelled once, and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shade_fast.terms.errors import ShadeFastError

REFERENCE, NATIVE, CUDA = "reference", "native", "cuda"

#: Of backend `native`, and of `cuda`, which takes a precision's name as well.
ACCURACIES = ("fast", "exact")


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


#: By the names of backend `cuda`. fp16 has bf16's rate and finer steps, but ends at 65504: an encoder with larger
#: features gives latents that are not finite.
CUDA_PRECISIONS = {
    "bf16": Precision(torch.bfloat16, False, 0.15),
    "fp16": Precision(torch.float16, False, 2e-2),
    "tf32": Precision(torch.float32, True, 2e-2),
    "fp32": Precision(torch.float32, False, 1e-5),
}
#: Of backend `cuda`, which precision an accuracy is.
PRECISION_OF = {"fast": "bf16", "exact": "fp32"}

FLOAT32 = "float32"
#: Of ONNX graphs, by the names that ONNX has for them.
PRECISIONS = {
    FLOAT32: CUDA_PRECISIONS["fp32"],
    "float16": CUDA_PRECISIONS["fp16"],
    "bfloat16": CUDA_PRECISIONS["bf16"],
}

#: ONNX Runtime's providers by the names used here -> its execution providers in order of preference. TensorRT leaves to
#: CUDA what it has no kernel for.
ONNX_CPU, ONNX_CUDA, ONNX_TENSORRT = "cpu", "cuda", "tensorrt"
PROVIDERS = {
    ONNX_CPU: ("CPUExecutionProvider",),
    ONNX_CUDA: ("CUDAExecutionProvider",),
    ONNX_TENSORRT: ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}
#: Backend that is ONNX Runtime -> its provider, and the precision of a step.
ONNXRUNTIME = {f"onnxruntime:{provider}": (provider, FLOAT32) for provider in PROVIDERS} | {
    f"onnxruntime:{ONNX_CUDA}:{precision}": (ONNX_CUDA, precision) for precision in PRECISIONS if precision != FLOAT32
}

#: What networks are frozen for.
BACKENDS = (NATIVE, CUDA, *ONNXRUNTIME)


def check_backend(backend: str) -> None:
    """Raise ShadeFastError for a backend that no network is frozen for, and that is not `reference`."""
    if backend not in (REFERENCE, *BACKENDS):
        raise ShadeFastError(
            f"backend {backend!r}: networks are frozen for one of {', '.join(BACKENDS)}, or {REFERENCE!r} as they are"
        )


def check_accuracy(backend: str, accuracy: str) -> None:
    """Raise ShadeFastError for an accuracy that a backend does not know; those without any take every one that is."""
    known = ACCURACIES if backend == NATIVE else (*CUDA_PRECISIONS, *PRECISION_OF)
    if accuracy not in known:
        raise ShadeFastError(f"accuracy {accuracy!r} of backend {backend!r}: give one of {', '.join(known)}")


def check_precision(provider: str, precision: str) -> None:
    """Raise ShadeFastError for a precision that is unknown, or that a provider does not compute in."""
    if precision not in PRECISIONS:
        raise ShadeFastError(f"precision {precision!r}: give one of {', '.join(PRECISIONS)}")
    if provider == ONNX_CPU and precision != FLOAT32:
        raise ShadeFastError(
            f"backend 'onnxruntime:{ONNX_CPU}:{precision}': ONNX Runtime computes in float32 on a CPU; use "
            f"backend='onnxruntime:{ONNX_CPU}', or 'onnxruntime:cuda:{precision}'"
        )


def cuda_precision(accuracy: str) -> str:
    """The precision of backend `cuda` that an accuracy stands for, or that it names."""
    return PRECISION_OF.get(accuracy, accuracy)


def onnx_provider(backend: str) -> str | None:
    """Which of ONNX Runtime's providers a backend stands for; None where it is another."""
    return ONNXRUNTIME[backend][0] if backend in ONNXRUNTIME else None


def gradient_error(backend: str, accuracy: str) -> float:
    """The relative root-mean-square error of the input gradient that a backend's half precision says of itself, in
    smooth networks; 0 where it computes in float32."""
    if backend == CUDA:
        precision = CUDA_PRECISIONS[cuda_precision(accuracy)]
    else:
        precision = PRECISIONS[ONNXRUNTIME.get(backend, ("", FLOAT32))[1]]
    return 0.0 if precision is PRECISIONS[FLOAT32] else precision.error
