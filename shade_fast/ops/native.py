"""The compiled modules: loaded once, asked for by name, and described for `shade-fast info`."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from types import ModuleType

import torch

from shade_fast.terms.errors import ShadeFastError

#: Where ops run; `meta` has shapes alone, for what is counted and checked without values.
DEVICES = ("cpu", "cuda", "meta")
#: Runs an op on the buffers that it was bound to; a status, for `check`.
Call = Callable[[], int]
BUILD_HINT = "build it with `pip install .` (or `pip install -e .`) in the source folder"


def cpu() -> ModuleType:
    """The compiled CPU module, with the instruction set that SHADE_FAST_ISA asks for, else the widest one.

    Raises:
        ShadeFastError: the module is not built, or SHADE_FAST_ISA names an instruction set that cannot run here.
    """
    module = _load("_cpu")
    if isinstance(module, ImportError):
        raise ShadeFastError(f"shade_fast._cpu cannot be loaded ({module}); {BUILD_HINT}, which needs g++ or clang++")
    _select_asked_isa(module)
    return module


def cuda() -> ModuleType:
    """The compiled CUDA module; it loads without a GPU, but its kernels need one.

    Raises:
        ShadeFastError: the module is not built.
    """
    module = _load("_cuda")
    if isinstance(module, ImportError):
        raise ShadeFastError(
            f"shade_fast._cuda cannot be loaded ({module}); with the CUDA toolkit's nvcc on PATH, "
            "build it with `SHADE_FAST_CUDA=1 pip install .` in the source folder"
        )
    return module


def cpu_available() -> bool:
    """Whether the CPU module is built and loads."""
    return isinstance(_load("_cpu"), ModuleType)


def cuda_available() -> bool:
    """Whether the CUDA module is built and loads; it says nothing of a GPU, which torch.cuda.is_available() tells."""
    return isinstance(_load("_cuda"), ModuleType)


def describe() -> dict[str, dict[str, str]]:
    """Facts of the compiled modules: under "cpu" and "cuda", each fact's name and text, "built" the first of them."""
    facts: dict[str, dict[str, str]] = {"cpu": {"built": "no"}, "cuda": {"built": "no"}}
    if cpu_available():
        module = cpu()
        facts["cpu"] = {
            "built": "yes",
            "instruction set": module.selected_isa(),
            "instruction sets built": " ".join(module.isas),
            "compiler": module.compiler,
            "threads": str(torch.get_num_threads()),
        }
    if cuda_available():
        module = cuda()
        facts["cuda"] = {"built": "yes", "architectures": module.architectures, "compiler": module.compiler}
    return facts


def check(module: ModuleType, status: int) -> None:
    """Raise the error that a kernel's status stands for; status 0 is none."""
    if status:
        raise RuntimeError(f"{module.__name__}: {module.status_message(status)}")


def missing_backend(backend: str, device: torch.device) -> ShadeFastError:
    """The error for a backend name, or a device, that an op has no implementation for."""
    if backend not in ("native", "reference"):
        return ShadeFastError(f"backend={backend!r}: an op's backend is 'native' or 'reference'")
    return ShadeFastError(f"backend='native' has no kernels for {device}: use a cpu or cuda tensor, or 'reference'")


@functools.cache
def _load(name: str) -> ModuleType | ImportError:
    try:
        return importlib.import_module(f"shade_fast.{name}")
    except ImportError as error:
        return error


@functools.cache
def _select_asked_isa(module: ModuleType) -> None:
    asked = os.environ.get("SHADE_FAST_ISA", "")
    if not asked:
        return
    status = module.select_isa(asked)
    if status:
        raise ShadeFastError(
            f"SHADE_FAST_ISA={asked}: {module.status_message(status)}; "
            f"this build has {', '.join(module.isas)}, and unset it takes the widest that the machine runs"
        )
