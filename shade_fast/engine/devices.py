"""Where the engine runs: devices by name, and the backend that executes on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shade_fast.errors import ShadeFastError
from shade_fast.ops import gpu, native
from shade_fast.runtime import ONNXRUNTIME, check_onnxruntime, check_precision, onnx_provider

#: `auto`, and what there is; it never chooses ONNX Runtime, which stands for the provider of the device where none is
#: named.
BACKENDS = ("auto", "reference", "native", "cuda", "onnxruntime", *ONNXRUNTIME)


def resolve_device(devices: str | Sequence[str]) -> torch.device:
    """The device of a run. `auto` is the first CUDA device where there is one, else the CPU.

    Raises ShadeFastError for an unknown or absent device, and for more than one.
    """
    names = [devices] if isinstance(devices, str) else list(devices)
    if len(names) != 1:
        raise ShadeFastError(f"devices={names}: give one device; several are used by one process each")
    if names[0] == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(names[0])
    except RuntimeError as error:
        raise ShadeFastError(f"devices={names[0]!r}: not a device; give 'auto', 'cpu' or 'cuda:0'") from error
    if device.type not in ("cpu", "cuda"):
        raise ShadeFastError(f"devices={names[0]!r}: give 'auto', 'cpu' or 'cuda:0'")
    missing = gpu.missing_device(device.index or 0) if device.type == "cuda" else None
    if missing is not None:
        raise ShadeFastError(f"devices={names[0]!r}: {missing}")
    return device


def resolve_backend(backend: str, device: torch.device) -> str:
    """The backend that really runs on a device. `auto` takes the compiled one where it is built, else `reference`.

    `onnxruntime` becomes `onnxruntime:cpu` or `onnxruntime:cuda`, by the device.

    Raises ShadeFastError for an unknown backend, and for one that was asked for and is not there.
    """
    provider, _, precision = backend.removeprefix("onnxruntime:").partition(":")
    if backend.startswith("onnxruntime:") and precision:
        check_precision(provider, precision)
    if backend not in BACKENDS:
        raise ShadeFastError(f"backend {backend!r}: give one of {', '.join(BACKENDS)}")
    if backend.startswith("onnxruntime"):
        return _onnxruntime(backend, device)
    compiled = "cuda" if device.type == "cuda" else "native"
    refusal = gpu.refusal(device.index or 0) if device.type == "cuda" or backend == "cuda" else None
    built = refusal is None if device.type == "cuda" else native.cpu_available()
    if backend == "auto":
        return compiled if built else "reference"
    if backend == "reference":
        return backend
    if backend != compiled:
        if backend == "cuda":
            mend = refusal or "the CPU is in use; give devices='cuda:0', or backend='native'"
            raise ShadeFastError(f"backend 'cuda': {mend}")
        raise ShadeFastError(f"backend {backend!r}: runs on the CPU, and {device} is in use; give backend='cuda'")
    if not built:
        problem = refusal or "the compiled module is not there; reinstall shade_fast where g++ or clang++ is"
        raise ShadeFastError(f"backend {backend!r}: {problem}, or use backend='reference'")
    return backend


def kernels(backend: str) -> str:
    """The ops' own name for what a backend runs: `reference`, or `native`, the compiled kernels of the device.

    ONNX Runtime executes networks alone: the rest takes the compiled kernels where they are built.
    """
    provider = onnx_provider(backend)
    if provider is not None:
        on_cpu = provider == "cpu" or not torch.cuda.is_available()
        built = native.cpu_available() if on_cpu else gpu.refusal(0) is None
        return "native" if built else "reference"
    return "reference" if backend == "reference" else "native"


def _onnxruntime(backend: str, device: torch.device) -> str:
    """The backend with its provider, which is there."""
    if backend == "onnxruntime":
        backend = f"onnxruntime:{device.type}"
    provider, _ = ONNXRUNTIME[backend]
    if provider == "cpu" and device.type != "cpu":
        raise ShadeFastError(f"backend {backend!r}: runs on the CPU, and {device} is in use; give devices='cpu'")
    check_onnxruntime(provider)
    return backend
