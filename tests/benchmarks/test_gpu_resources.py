"""The table of what the GPU kernels take: it is complete, a spill is seen, and so is what became worse."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from benchmarks import __main__ as command
from benchmarks.gpu import resources
from benchmarks.gpu.kernels import DTYPES, configurations
from benchmarks.gpu.resources import Row, complaints, usages
from benchmarks.rows import read_rows

CSRC = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc")

ROW = Row("update<true>", "cuda", "", "sm_90", 40, 64, 0, 0, 20, 16, 12, 8, "0.900", "nvcc 13.0")


def compiled(source: Path, folder: Path) -> list[resources.Usage]:
    cubin = folder / "kernel.cubin"
    command = [str(NVCC), "-cubin", "-std=c++17", "-arch=sm_90", "--expt-relaxed-constexpr"]
    subprocess.run([*command, "-o", str(cubin), str(source)], check=True, capture_output=True)
    return usages(cubin)


def as_text(row: Row) -> dict[str, str]:
    return {name: str(value) for name, value in dataclasses.asdict(row).items()}


@needs_nvcc
def test_figures_are_read_from_the_code(tmp_path: Path) -> None:
    functions = {resources.plain_name(usage.function): usage for usage in compiled(CSRC / "quantize.cu", tmp_path)}
    assert set(functions) == {"round_values<true>", "round_values<false>"}
    wide, narrow = functions["round_values<true>"], functions["round_values<false>"]
    assert wide.architecture == 90
    assert wide.count("load", 128) >= 5  # the clean values, and four times as many bytes of the perturbation
    assert wide.count("store", 128) >= 1
    assert wide.wide_share > 0.5
    assert narrow.count("load", 128) == 0 == narrow.wide_share
    assert 0 < narrow.registers <= wide.registers
    assert wide.count("spill") == wide.stack_bytes == 0


@needs_nvcc
def test_a_spill_is_seen(tmp_path: Path) -> None:
    """The optimizer update with 32 registers for a thread, half of what it wants."""
    source = tmp_path / "optimizer_update.cu"
    text = (CSRC / source.name).read_text().replace('#include "', f'#include "{CSRC}/')
    source.write_text(text.replace("__launch_bounds__(kThreads)", "__launch_bounds__(kThreads, 8)"))
    usage = max(compiled(source, tmp_path), key=lambda usage: usage.count("spill"))
    assert usage.count("spill") > 0
    row = resources.row_of("update<true>", "cuda", "", usage, "nvcc 13.0", usage.shared_bytes)
    assert "spilling instructions" in complaints([row], [as_text(row)])[0]


def test_what_became_worse_is_reported() -> None:
    assert complaints([ROW], [as_text(ROW)]) == []
    worse = dataclasses.replace(ROW, registers=41, shared_bytes=128, wide_share="0.850")
    problems = complaints([worse], [as_text(ROW)])
    assert [line.split(": ")[1] for line in problems] == [
        "registers 40 -> 41",
        "shared_bytes 64 -> 128",
        "wide_share 0.900 -> 0.850",
    ]
    assert complaints([dataclasses.replace(worse, compiler="nvcc 14.0")], [as_text(ROW)]) == []
    assert complaints([ROW], []) == ["update<true> cuda sm_90 is not in the table"]
    assert complaints([], [as_text(ROW)]) == ["update<true> cuda sm_90 is in the table alone"]


def test_the_committed_table_has_every_kernel() -> None:
    rows = read_rows(resources.TABLE)
    triton_kernels = {(kernel.name, kernel.dtype) for dtype in DTYPES for kernel in configurations(dtype)}
    for architecture in resources.ARCHITECTURES:
        of = [row for row in rows if row["architecture"] == f"sm_{architecture}"]
        assert {(row["kernel"], row["dtype"]) for row in of if row["language"] == "triton"} == triton_kernels
        kernels = Counter(row["kernel"].split("<")[0] for row in of if row["language"] == "cuda")
        assert kernels == {
            "sum_absolute": 2,
            "update": 2,
            "round_values": 2,
            "try_scale": 2,
        }
    assert not [row for row in rows if int(row["spills"]) or int(row["stack_bytes"])]


def test_the_page_shows_the_committed_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["gpu", "resources", "--show"]) == 0
    shown = capsys.readouterr().out.strip()
    assert len(shown.splitlines()) > 20
    page = (Path(__file__).resolve().parents[2] / "docs" / "lab" / "gpu.md").read_text()
    assert shown in page
    assert f"None of the table's {len(read_rows(resources.TABLE))} compiled kernels spills." in page
