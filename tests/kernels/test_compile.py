"""Every Triton kernel compiles ahead of time, without a GPU, for the architectures that the project names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu.kernels import DTYPES, configurations
from benchmarks.gpu.resources import ARCHITECTURES, usages


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda number: f"sm_{number}")
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_compiles(dtype: str, architecture: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the encoders and VGG take them; `make gpu-aot` compiles the rest, and compares what they take."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    cubin = tmp_path / "kernel.cubin"
    for kernel in (kernel for kernel in configurations(dtype, complete=False) if kernel.dtype == dtype):
        compiled = kernel.compile(architecture)
        cubin.write_bytes(compiled.asm["cubin"])
        (usage,) = usages(cubin)
        assert usage.architecture == architecture
        assert usage.count("spill") == usage.stack_bytes == 0, kernel.name
        assert usage.count("load") > 0, kernel.name
