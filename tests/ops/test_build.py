"""What the build says of settings that it cannot follow; that it works is shown by the installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("setuptools", reason="setuptools is not installed")
pytest.importorskip("pybind11", reason="pybind11 is not installed")


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "build_ext", "--build-temp", str(folder), "--build-lib", str(folder)]
    inherited = {name: text for name, text in os.environ.items() if name not in ("CUDA_HOME", "CUDA_PATH", "CXX")}
    return subprocess.run(
        command, cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SHADE_FAST_CUDA": "0", "CXX": "no-such-compiler"}, "needs a C++ compiler: CXX=no-such-compiler"),
        ({"SHADE_FAST_CUDA": "0", "CXX": "false"}, "false cannot compile it, too old perhaps; install g++ 12"),
        ({"SHADE_FAST_CUDA": "maybe"}, "SHADE_FAST_CUDA=maybe: 1 requires the CUDA module"),
        ({"SHADE_FAST_CUDA": "1", "CUDA_HOME": "/nowhere"}, "SHADE_FAST_CUDA=1, but no nvcc in /nowhere/bin"),
    ],
    ids=["no compiler", "old compiler", "switch", "nvcc"],
)
def test_a_setting_that_cannot_be_followed(environment: dict[str, str], message: str, tmp_path: Path) -> None:
    done = build(tmp_path, **environment)
    assert done.returncode != 0
    assert message in done.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_without_nvcc_the_build_says_so_in_a_plain_line(tmp_path: Path) -> None:
    done = build(tmp_path, CUDA_HOME="/nowhere", CXX="no-such-compiler")
    assert "no nvcc found, so the package comes without its CUDA module" in done.stdout
