"""Loading of the compiled modules, the choice of the instruction set, and what csrc may include."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shade_fast.ops import native, quantize
from shade_fast.terms.errors import ShadeFastError

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SOURCES = sorted(path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".cu"))

needs_module = pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")
needs_cuda_module = pytest.mark.skipif(not native.cuda_available(), reason="shade_fast._cuda is not built")


def run_with_isa(isa: str) -> subprocess.CompletedProcess[str]:
    code = "from shade_fast.ops import native; print(native.cpu().selected_isa())"
    environment = {**os.environ, "SHADE_FAST_ISA": isa}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@needs_module
def test_environment_forces_the_isa() -> None:
    assert run_with_isa("portable").stdout.split() == ["portable"]


@needs_module
def test_an_unknown_isa_is_an_error_that_names_the_known_ones() -> None:
    done = run_with_isa("avx9000")
    assert done.returncode != 0
    assert "SHADE_FAST_ISA=avx9000: no such instruction set in this build" in done.stderr
    assert "portable" in done.stderr


@needs_module
def test_a_kernel_status_becomes_an_error() -> None:
    module = native.cpu()
    status = module.quantize(0, 0, 0, 0, 1, 0, 999, 1)
    with pytest.raises(RuntimeError, match="out of range"):
        native.check(module, status)


@needs_module
def test_description_of_the_cpu_module() -> None:
    facts = native.describe()["cpu"]
    assert facts["instruction set"] in facts["instruction sets built"].split()
    assert facts["compiler"]


@needs_cuda_module
def test_the_cuda_module_loads_without_a_gpu() -> None:
    facts = native.describe()["cuda"]
    assert re.fullmatch(r"sm_\d+( sm_\d+)*", facts["architectures"])
    module = native.cuda()
    assert module.optimizer_update_scratch(2, 3 * 512 * 512) > 0
    assert module.quantize(0, 0, 0, 0, -1, 1, 1, 0) != 0


def test_a_missing_module_is_an_error_that_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda name: ModuleNotFoundError(f"No module named 'shade_fast.{name}'"))
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    with pytest.raises(ShadeFastError, match=r"shade_fast\._cpu cannot be loaded .*pip install"):
        quantize(image, torch.zeros(1, 3, 2, 2), torch.ones(1), levels=1)
    with pytest.raises(ShadeFastError, match="SHADE_FAST_CUDA=1"):
        native.cuda()
    assert native.describe() == {"cpu": {"built": "no"}, "cuda": {"built": "no"}}


def test_a_device_without_kernels_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8, device="meta")
    delta, scale = torch.zeros(1, 3, 2, 2, device="meta"), torch.ones(1, device="meta")
    shapes = quantize(image, delta, scale, levels=1)  # nothing is computed there, what is made is known
    assert (shapes.shape, shapes.dtype, shapes.device.type) == (image.shape, torch.uint8, "meta")
    monkeypatch.setattr(native, "DEVICES", ("cpu", "cuda"))
    with pytest.raises(ShadeFastError, match="no kernels for meta"):
        quantize(image, delta, scale, levels=1)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(CSRC).as_posix())
def test_csrc_includes_nothing_of_torch(source: Path) -> None:
    included = re.findall(r'#include\s*[<"]([^>"]+)[>"]', source.read_text())
    assert not [name for name in included if re.match(r"(torch|ATen|c10)\b", name)]
    if source.parent.name == "cpu":
        assert not [name for name in included if re.match(r"(cuda|pybind11|Python)", name)]


def test_kernels_is_no_top_level_package() -> None:
    assert not (CSRC.parent / "kernels" / "__init__.py").exists()
