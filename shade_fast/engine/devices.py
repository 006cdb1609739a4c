"""Where the engine runs: devices by name, and the backend that executes on them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from shade_fast import runtime
from shade_fast.encoders import Encoder
from shade_fast.ops import gpu, native
from shade_fast.runtime import ONNXRUNTIME, check_onnxruntime, check_precision, onnx_provider
from shade_fast.terms.errors import ShadeFastError

#: `auto` never chooses ONNX Runtime; `onnxruntime` without a provider takes that of the device.
BACKENDS = ("auto", "reference", "native", "cuda", "onnxruntime", *ONNXRUNTIME)


def resolve_devices(devices: str | Sequence[str]) -> tuple[torch.device, ...]:
    """The devices of a run; where there are several, each has a process. `auto`: every CUDA device, else the CPU.

    devices: `auto`, or names, as a sequence or with commas between them; the CPU may be named several times.

    Raises ShadeFastError for none, for an unknown or absent one, and for a CPU beside GPUs, whose results differ.
    """
    if not isinstance(devices, str | Sequence) or not all(isinstance(name, str) for name in devices):
        raise ShadeFastError(f"devices={devices!r}: give 'auto', or names such as 'cpu' or 'cuda:0'")
    names = [name.strip() for name in devices.split(",")] if isinstance(devices, str) else list(devices)
    if not any(names):
        raise ShadeFastError(f"devices={devices!r}: names no device; give 'auto', 'cpu' or 'cuda:0'")
    if names == ["auto"]:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return tuple(torch.device("cuda", index) for index in range(count)) or (torch.device("cpu"),)
    resolved = tuple(map(_device, names))
    if len({device.type for device in resolved}) > 1:
        raise ShadeFastError(
            f"devices={','.join(names)!r}: a CPU beside GPUs would make other results than they do; give one kind"
        )
    return resolved


def resolve_device(devices: str | Sequence[str]) -> torch.device:
    """The device for work on a single one: of `auto` the first. Raises ShadeFastError as above, and for several
    names."""
    resolved = resolve_devices(devices)
    if len(resolved) > 1 and devices not in ("auto", ["auto"], ("auto",)):
        raise ShadeFastError(f"devices={','.join(map(str, resolved))!r}: this runs on one; give one of them")
    return resolved[0]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ShadeFastError(f"devices={name!r}: not a device; give 'auto', 'cpu' or 'cuda:0'") from error
    if device.type not in ("cpu", "cuda"):
        raise ShadeFastError(f"devices={name!r}: give 'auto', 'cpu' or 'cuda:0'")
    if device.type == "cpu":
        return torch.device("cpu")
    missing = gpu.missing_device(device.index or 0)
    if missing is not None:
        raise ShadeFastError(f"devices={name!r}: {missing}")
    return torch.device("cuda", device.index or 0)


def resolve_backend(backend: str, device: torch.device) -> str:
    """The backend that really runs on a device. `auto` takes the compiled one where it is built, else `reference`.

    `onnxruntime` becomes `onnxruntime:cpu` or `onnxruntime:cuda`, by the device.

    Raises ShadeFastError for an unknown backend, and for one that was asked for and is not there.
    """
    if not isinstance(backend, str):
        raise ShadeFastError(f"backend={backend!r}: give one of {', '.join(BACKENDS)}")
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
            why = refusal or "the CPU is in use; give devices='cuda:0', or backend='native'"
            raise ShadeFastError(f"backend 'cuda': {why}")
        raise ShadeFastError(f"backend {backend!r}: runs on the CPU, and {device} is in use; give backend='cuda'")
    if not built:
        problem = refusal or "the compiled module is not there; reinstall shade_fast where g++ or clang++ is"
        raise ShadeFastError(f"backend {backend!r}: {problem}, or use backend='reference'")
    return backend


def run_by(backend: str, encoder: Encoder) -> Encoder:
    """An encoder, and its decoder, executed by a backend on the device that it is on; by `reference` as it is.

    Raises ShadeFastError as `resolve_backend` does.
    """
    backend = resolve_backend(backend, encoder.device)
    return encoder if backend == "reference" else encoder.frozen(functools.partial(runtime.freeze, backend=backend))


def kernels(backend: str) -> str:
    """What the ops call a backend's kernels: `reference`, or `native` for the device's compiled ones.

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
