"""What the GPU kernels take, read from their machine code: `python -m benchmarks gpu resources`, or `make gpu-aot`.

Compiles every Triton kernel for every dtype and architecture, and takes the CUDA extension as it was built here.
Registers, shared memory, spills, and how many global loads and stores there are and how many of them move 128 bits or
more: instructions in the code, not executed ones; `wide_share` weighs them by their bytes. Needs no GPU; needs nvcc for
the extension, and Triton, which brings the disassembler.

Exits with 1 where a kernel spills, and where one takes more registers or shared memory, or a smaller share of wide
accesses, than in the committed table, which `--write` writes anew. Other compilers' figures are not compared.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import csv_file, read_rows
from benchmarks.tables import markdown

TABLE = Path(__file__).parents[1] / "results" / "gpu_resources.csv"
ARCHITECTURES = (80, 90, 100)
WIDE = 128


@dataclass(frozen=True)
class Usage:
    """One function of machine code: registers of a thread, bytes, and its accesses as kind and bits."""

    function: str
    architecture: int
    registers: int
    shared_bytes: int
    stack_bytes: int
    accesses: Counter[tuple[str, int]]

    def count(self, kind: str, least: int = 0) -> int:
        """Loads, stores or spills of `least` bits or more."""
        return sum(count for (other, bits), count in self.accesses.items() if other == kind and bits >= least)

    @property
    def wide_share(self) -> float:
        """Of the bits that global accesses move, those that move in 128 or more; 1 where there are none."""
        moved = [(bits, bits * count) for (kind, bits), count in self.accesses.items() if kind in ("load", "store")]
        total = sum(amount for _, amount in moved)
        return sum(amount for bits, amount in moved if bits >= WIDE) / total if total else 1.0


@dataclass(frozen=True)
class Row:
    """A kernel's line in the table."""

    kernel: str
    language: str
    dtype: str
    architecture: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spills: int
    loads: int
    wide_loads: int
    stores: int
    wide_stores: int
    wide_share: str
    compiler: str

    @property
    def key(self) -> tuple[str, ...]:
        return (self.kernel, self.language, self.dtype, self.architecture)


def usages(binary: Path) -> list[Usage]:
    """Every function in a cubin, or in a library's embedded ones."""
    resources = _of_functions(_disassembler("-res-usage", binary))
    code = _of_functions(_disassembler("-sass", binary))
    # A cubin's usage does not say for which architecture it is, its code does.
    (of_cubin, *_) = (architecture for _, architecture in code)
    functions = []
    for (function, stated), lines in resources.items():
        amounts = dict(re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", " ".join(lines)))
        registers, shared, stack, local = (int(amounts[name]) for name in ("REG", "SHARED", "STACK", "LOCAL"))
        architecture = stated or of_cubin
        accesses = Counter(_accesses(code[function, architecture]))
        functions.append(Usage(function, architecture, registers, shared, stack + local, accesses))
    return functions


def triton_rows(dtypes: Sequence[str] | None = None, architectures: Sequence[int] = ARCHITECTURES) -> Iterator[Row]:
    """Every Triton kernel, compiled anew."""
    import triton

    from benchmarks.gpu.kernels import DTYPES, configurations

    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        done = set()
        for dtype in dtypes or DTYPES:
            for kernel in configurations(dtype):
                if (kernel.name, kernel.dtype) in done:
                    continue
                done.add((kernel.name, kernel.dtype))
                for architecture in architectures:
                    compiled = kernel.compile(architecture)
                    cubin = Path(folder) / "kernel.cubin"
                    cubin.write_bytes(compiled.asm["cubin"])
                    (usage,) = usages(cubin)
                    # Shared memory is asked for at the launch.
                    shared = max(usage.shared_bytes, compiled.metadata.shared)
                    yield row_of(kernel.name, "triton", kernel.dtype, usage, f"triton {triton.__version__}", shared)


def cuda_rows() -> Iterator[Row]:
    """Every CUDA kernel of the extension that is built here. Raises ShadeFastError without one."""
    from shade_fast.ops import native

    module = native.cuda()
    for usage in usages(Path(str(module.__file__))):
        release = re.search(r"release (\S+?),", module.compiler)
        compiler = f"nvcc {release[1] if release else module.compiler}"
        yield row_of(plain_name(usage.function), "cuda", "", usage, compiler, usage.shared_bytes)


def row_of(kernel: str, language: str, dtype: str, usage: Usage, compiler: str, shared: int) -> Row:
    """A kernel's line from its machine code, and what it was compiled by."""
    return Row(
        kernel,
        language,
        dtype,
        f"sm_{usage.architecture}",
        usage.registers,
        shared,
        usage.stack_bytes,
        usage.count("spill"),
        usage.count("load"),
        usage.count("load", WIDE),
        usage.count("store"),
        usage.count("store", WIDE),
        f"{usage.wide_share:.3f}",
        compiler,
    )


def complaints(rows: Iterable[Row], before: Iterable[dict[str, str]]) -> list[str]:
    """What is wrong with the rows: spills, and what is worse than in those of the table."""
    problems = []
    table = {tuple(row[name] for name in ("kernel", "language", "dtype", "architecture")): row for row in before}
    rows = list(rows)
    for row in rows:
        name = " ".join(part for part in row.key if part)
        if row.spills or row.stack_bytes:
            problems.append(f"{name}: {row.spills} spilling instructions, {row.stack_bytes} bytes of stack")
        had = table.get(row.key)
        if had is None:
            problems.append(f"{name} is not in the table")
        elif had["compiler"] == row.compiler:
            for column in ("registers", "shared_bytes"):
                if getattr(row, column) > int(had[column]):
                    problems.append(f"{name}: {column} {had[column]} -> {getattr(row, column)}")
            if float(row.wide_share) < float(had["wide_share"]):
                problems.append(f"{name}: wide_share {had['wide_share']} -> {row.wide_share}")
    gone = table.keys() - {row.key for row in rows}
    return problems + [f"{' '.join(part for part in key if part)} is in the table alone" for key in sorted(gone)]


def table(rows: Iterable[dict[str, str]]) -> str:
    """For reading: the kernels of a step, on features in bfloat16, and on images that lie on the 16-byte grid."""
    from benchmarks.gpu.kernels import configurations

    step = {(kernel.name, kernel.dtype) for kernel in configurations("bf16", complete=False)}
    of = {(row["kernel"], row["dtype"], row["architecture"]): row for row in rows}
    lines = []
    for kernel, dtype, architecture in of:
        row = of[kernel, dtype, "sm_90"]
        if architecture != "sm_90" or (
            (kernel, dtype) not in step and (row["language"] != "cuda" or "false" in kernel)
        ):
            continue
        registers = [of[kernel, dtype, f"sm_{number}"]["registers"] for number in ARCHITECTURES]
        accesses = [f"{row[name]}, {row[f'wide_{name}']}" for name in ("loads", "stores")]
        features = dtype or "uint8, float32"
        lines.append((f"`{kernel}`", features, ", ".join(registers), row["shared_bytes"], *accesses, row["wide_share"]))
    heads = ("kernel", "features", f"registers sm_{', '.join(map(str, ARCHITECTURES))}", "shared bytes sm_90")
    return markdown((*heads, "global loads, of 128 bits", "stores, of 128 bits", "wide_share"), lines)


def _of_functions(text: str) -> dict[tuple[str, int], list[str]]:
    """The lines of a dump by function and architecture."""
    functions: dict[tuple[str, int], list[str]] = {}
    architecture, function = 0, ""
    for line in text.splitlines():
        if named := re.search(r"arch = sm_(\d+)|code for sm_(\d+)|EF_CUDA_SM(\d+)", line):
            architecture = int(next(number for number in named.groups() if number))
        elif named := re.match(r"\s*Function\s*:?\s*([^\s:]+):?\s*$", line):
            function = named[1]
        if function:
            functions.setdefault((function, architecture), []).append(line)
    return functions


_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
_KINDS = {"LDG": "load", "LD": "load", "LDGSTS": "load", "STG": "store", "ST": "store", "LDL": "spill", "STL": "spill"}


def _accesses(lines: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Kind and bits of each access to global memory, and of each to local memory, which is a spill."""
    for line in lines:
        named = _INSTRUCTION.search(line)
        if not named:
            continue
        operation, *modifiers = named[1].split(".")
        kind = _KINDS.get(operation)
        if kind:
            widths = [int(bits[1]) for part in modifiers if (bits := re.fullmatch(r"[US]?(8|16|64|128|256)", part))]
            yield kind, widths[-1] if widths else 32


def _disassembler(option: str, binary: Path) -> str:
    import triton

    tools = triton.knobs.nvidia
    # cuobjdump looks for nvdisasm on PATH.
    path = f"{Path(tools.nvdisasm.path).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [tools.cuobjdump.path, option, str(binary)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})
    if done.returncode:
        raise ValueError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def plain_name(function: str) -> str:
    """A function's name with its template arguments, without namespaces and parameters."""
    tool = shutil.which("c++filt")
    if tool:
        function = subprocess.run([tool, function], capture_output=True, text=True, check=True).stdout.strip()
    function = function.replace("(bool)1", "true").replace("(bool)0", "false").replace("(anonymous namespace)", "")
    named = re.search(r"(\w+(?:<[^()]*>)?)\(", function)
    return named[1] if named else function


def arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--write", action="store_true", help="write the table anew instead of comparing with it")
    parser.add_argument("--table", type=Path, default=TABLE, help="the table (default: %(default)s)")
    parser.add_argument("--show", action="store_true", help="print the table's kernels of a step, compile nothing")


def run(options: Namespace) -> int:
    """The command; see the module's docstring."""
    if options.show:
        print(table(read_rows(options.table)))
        return 0
    rows: list[Any] = sorted([*cuda_rows(), *triton_rows()], key=lambda row: row.key)
    before = [asdict(row) for row in rows] if options.write else read_rows(options.table)
    problems = complaints(rows, [{name: str(value) for name, value in row.items()} for row in before])
    if options.write:
        with csv_file(options.table) as write:
            write(rows)
    architectures = sorted({row.architecture for row in rows})
    most = max(rows, key=lambda row: row.registers)
    print(f"{len(rows)} kernels for {', '.join(architectures)}; most registers: {most.registers}, {most.kernel}")
    print("\n".join(problems) or "no spills, and nothing worse than in the table")
    return int(bool(problems))
