"""Builds the CUDA kernels' own sources for the host, under the emulation in `cuda_runtime.h`."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
KERNELS = sorted((CSRC / "cuda").glob("*.cu"))
# As the extension is compiled: without contraction. Kernels read floats as 128 bits, which nvcc takes as it is meant.
FLAGS = ("-std=c++17", "-O1", "-g", "-ffp-contract=off", "-fno-strict-aliasing", "-pthread", f"-I{HERE}")

Build = Callable[..., Path]


def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "c++"))
    if not found:
        pytest.skip("no C++ compiler")
    return found


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """`build(name, sources, *flags)`: the program or module of these sources, kernels among them."""
    folder = tmp_path_factory.mktemp("simt")

    def run(name: str, sources: Sequence[Path], *flags: str) -> Path:
        result = folder / name
        languages = [text for source in sources for text in ("-x", "c++", str(source))]
        command = [compiler(), *FLAGS, *flags, *languages, "-o", str(result)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return result

    return run


@pytest.fixture(scope="session")
def module(build: Build) -> ModuleType:
    """`shade_fast._cuda` as it is bound to Python, its kernels on the host and on host memory."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")
    folders = (pybind11.get_include(), sysconfig.get_path("include"))
    path = build(
        "_cuda.so",
        [CSRC / "bindings" / "cuda.cpp", *KERNELS],
        *("-shared", "-fPIC", "-fvisibility=hidden", *(f"-isystem{folder}" for folder in folders)),
        *('-DSHADE_FAST_NVCC="none"', '-DSHADE_FAST_CUDA_ARCHITECTURES="none"'),
    )
    loader = importlib.machinery.ExtensionFileLoader("_cuda", str(path))
    spec = importlib.util.spec_from_loader("_cuda", loader)
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    loader.exec_module(made)
    return made
