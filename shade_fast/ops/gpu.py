"""What ops share whose kernels run on a GPU: launches on the tensors' device, and why there may be none."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from shade_fast.ops import native
from shade_fast.ops.native import Call
from shade_fast.terms.errors import ShadeFastError

#: What the Triton kernels take; sums are float32 in all of them.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: bfloat16 in hardware.
LEAST_CAPABILITY = (8, 0)


def on_gpu(tensor: Tensor) -> bool:
    """Whether a tensor's kernels are those of a GPU."""
    return tensor.device.type == "cuda"


def has_kernels(tensor: Tensor) -> bool:
    """Whether the Triton kernels take a tensor."""
    return on_gpu(tensor) and tensor.dtype in DTYPES


def triton(name: str) -> ModuleType:
    """A module of Triton kernels. Raises ShadeFastError where Triton is missing."""
    try:
        return importlib.import_module(f"shade_fast.kernels.{name}")
    except ImportError as error:
        raise ShadeFastError(f"the Triton kernels cannot be loaded ({error}): pip install triton") from error


def selected(on: Tensor) -> contextlib.AbstractContextManager[None]:
    """The tensor's GPU is torch's current one meanwhile."""
    device: contextlib.AbstractContextManager[None] = torch.cuda.device_of(on)  # type: ignore[no-untyped-call]
    return device


def launched(launcher: Callable[..., None], on: Tensor, *arguments: Any) -> Call:
    """The call of a Triton launcher on the device of a tensor, in its current stream; a failed launch raises."""

    def call() -> int:
        with selected(on):
            launcher(*arguments)
        return 0

    return call


@contextlib.contextmanager
def stream(on: Tensor) -> Iterator[int]:
    """The current stream of a tensor's device, as the compiled module takes it; the device is selected meanwhile."""
    with selected(on):
        yield torch.cuda.current_stream(on.device).cuda_stream


def refusal(index: int = 0) -> str | None:
    """Why backend `cuda` cannot run here on a device, and the fix; None where it can."""
    missing = missing_device(index)
    if missing is not None:
        return missing
    if not native.cuda_available():
        try:
            native.cuda()
        except ShadeFastError as error:
            return str(error)
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed, which half of the kernels need: pip install triton"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler for what launches its kernels: install gcc or clang, or set CC to one"
    module = native.cuda()
    return _of_driver(module.runtime_version, module.driver_version()) or _of_architecture(
        torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index), module.architectures
    )


def missing_device(index: int = 0) -> str | None:
    """Why torch has no such CUDA device here, and the fix; None where it has."""
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return (
            f"torch {torch.__version__} is built without CUDA: install a CUDA build of it "
            "(https://pytorch.org/get-started), or use devices='cpu'"
        )
    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} finds no GPU: see that `nvidia-smi` lists one, that its driver is new enough "
            f"for CUDA {torch.version.cuda}, and that CUDA_VISIBLE_DEVICES does not hide it; or use devices='cpu'"
        )
    if index >= torch.cuda.device_count():
        return f"the last CUDA device is cuda:{torch.cuda.device_count() - 1}: give that one or one before"
    return None


def _of_driver(built: int, known: int) -> str | None:
    """Why a driver cannot run what a CUDA compiled; versions are 1000 times the major and 10 times the minor one.

    A driver runs all of its own major version and of those before.
    """
    if known // 1000 >= built // 1000:
        return None
    compiled, newest = (f"{version // 1000}.{version % 1000 // 10}" for version in (built, known))
    return (
        f"shade_fast._cuda is built with CUDA {compiled}, and the driver knows CUDA up to {newest}: update the driver, "
        f"or build it with an nvcc of CUDA {known // 1000} (CUDA_HOME=... SHADE_FAST_CUDA=1 pip install .)"
    )


def _of_architecture(name: str, capability: tuple[int, int], built: str) -> str | None:
    """Why a device of this compute capability cannot run what was built, such as "sm_80 sm_90"."""
    major, minor = capability
    if capability < LEAST_CAPABILITY:
        return (
            f"{name} has compute capability {major}.{minor}, and bfloat16 needs 8.0 or later (Ampere, 2020): "
            "use devices='cpu', or another GPU"
        )
    numbers = [int(number) for number in re.findall(r"sm_(\d+)", built)]
    # A binary runs on its own major version from its own minor one on; the last is there as PTX too, for what is newer.
    if any(number // 10 == major and number % 10 <= minor for number in numbers):
        return None
    if numbers and numbers[-1] <= 10 * major + minor:
        return None
    return (
        f"{name} has compute capability {major}.{minor}, and shade_fast._cuda is built for {built}: build it with "
        f'`SHADE_FAST_CUDA=1 SHADE_FAST_CUDA_ARCHS="{major}{minor}" pip install .` in the source folder'
    )
