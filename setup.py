"""Builds the compiled modules of shade_fast with one ninja file; everything else stands in pyproject.toml.

Environment:
    CXX                     the C++ compiler, g++ 12 or clang++ (else c++, g++ or clang++ on PATH).
    SHADE_FAST_CUDA         1: the CUDA module is required; 0: it is left out; unset: it is built where nvcc is found.
    SHADE_FAST_CUDA_ARCHS   compute capabilities to compile for, such as "80;90"; unset: 80, 90 and 100.
    CUDA_HOME               where bin/nvcc is (else nvcc on PATH, else /usr/local/cuda).
    MAX_JOBS                how many compilers run at once.
    SHADE_FAST_SANITIZE     sanitizers for the CPU module, such as "address,undefined" (see `make sanitize`).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, PlatformError

ROOT = Path(__file__).resolve().parent
DEFAULT_CUDA_ARCHITECTURES = ("80", "90", "100")

# Without contraction and with IEEE rounding, every instruction set gives the same bits; the last two flags only say
# that nobody reads errno or the floating-point exception flags, without which selects are not vectorised.
CXX_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
NVCC_FLAGS = (
    *("-std=c++17", "-O3", "--fmad=false", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall"),
)
AVX512_FLAGS = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512")
AMX_FLAGS = (*AVX512_FLAGS, "-mavx512bf16", "-mamx-tile", "-mamx-bf16")
SANITIZERS = os.environ.get("SHADE_FAST_SANITIZE", "")
if SANITIZERS:
    CXX_FLAGS += (f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1")
ISA_FLAGS = {"avx512": AVX512_FLAGS, "avx2": ("-mavx2", "-mfma"), "portable": ()}

CPU_BINDINGS, CUDA_BINDINGS = "csrc/bindings/cpu.cpp", "csrc/bindings/cuda.cpp"
# The folder says how a source is compiled; a new file needs no line here.
#   csrc/bindings, csrc/cpu   once, for any machine
#   csrc/cpu/exact            once for each instruction set, without contraction: the same bits on all of them
#   csrc/cpu/fused            once for each instruction set, with contraction: sums of products, where fused
#                             multiply-adds are worth more than equal bits
#   csrc/cpu/amx              once, with contraction, for x86 machines with AMX, by compilers that know it
#   csrc/cuda                 by nvcc, for every architecture
CONTRACTION = {"csrc/cpu/exact": (), "csrc/cpu/fused": ("-ffp-contract=fast",)}


def sources(folder: str, pattern: str = "*.cpp") -> list[str]:
    """The sources of a folder, its own folders left out."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).glob(pattern))


@dataclass(frozen=True)
class Compile:
    """One source file to one object file; `variant` keeps apart the objects of a source compiled several times."""

    source: str
    flags: tuple[str, ...]
    rule: str = "cxx"
    variant: str = "common"

    @property
    def object(self) -> str:
        return f"{self.source}.{self.variant}.o"


class NinjaBuild(build_ext):
    """Compiles all extensions in one ninja run: in parallel, and only what has changed."""

    def build_extensions(self) -> None:
        cxx = find_cxx()
        nvcc = find_nvcc() if any(extension.name == "shade_fast._cuda" for extension in self.extensions) else None
        # An editable install is given a folder that is thrown away afterwards; build/ keeps what did not change.
        folder = (
            ROOT / "build" / f"ninja-{sys.implementation.cache_tag}" if self.editable_mode else Path(self.build_temp)
        )
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)

        lines = ["ninja_required_version = 1.8", "", *rules(cxx, nvcc)]
        for extension in self.extensions:
            output = Path(self.get_ext_fullpath(extension.name)).resolve()
            cuda = extension.name == "shade_fast._cuda"
            compiles = cuda_compiles(cxx, str(nvcc)) if cuda else cpu_compiles(cxx)
            for item in compiles:
                lines += [
                    f"build {escape(item.object)}: {item.rule} {escape(ROOT / item.source)}",
                    f"  flags = {' '.join(quote(flag) for flag in item.flags)}",
                ]
            objects = " ".join(escape(item.object) for item in compiles)
            lines += [f"build {escape(output)}: {'link_cuda' if cuda else 'link_cxx'} {objects}", ""]

        (folder / "build.ninja").write_text("\n".join(lines))
        jobs = [f"-j{os.environ['MAX_JOBS']}"] if os.environ.get("MAX_JOBS") else []
        verbose = ["-v"] if self.verbose > 1 else []
        if subprocess.run([find_ninja(), "-C", str(folder), *jobs, *verbose], check=False).returncode != 0:
            hint = "; SHADE_FAST_CUDA=0 builds the package without its CUDA module" if nvcc else ""
            raise CompileError(f"shade_fast: compiling failed, the compiler's messages stand above{hint}")


def cpu_compiles(cxx: str) -> list[Compile]:
    """The sources of shade_fast._cpu: the kernels once for each instruction set, the rest once."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    amx = x86 and sys.platform == "linux" and builds_tiles(cxx)
    common = (
        *CXX_FLAGS,
        *python_includes(),
        f'-DSHADE_FAST_COMPILER="{version_line(cxx)}"',
        *(("-DSHADE_FAST_X86",) if x86 else ()),
        *(("-DSHADE_FAST_AMX",) if amx else ()),
    )
    kernels = [
        Compile(source, (*CXX_FLAGS, *flags, *contraction, f"-DSHADE_FAST_ISA={isa}"), variant=isa)
        for folder, contraction in CONTRACTION.items()
        for source in sources(folder)
        for isa, flags in ISA_FLAGS.items()
        if x86 or isa == "portable"
    ]
    if amx:
        flags = (*CXX_FLAGS, *AMX_FLAGS, "-ffp-contract=fast", "-DSHADE_FAST_ISA=amx")
        kernels += [Compile(source, flags, variant="amx") for source in sources("csrc/cpu/amx")]
    return [*(Compile(source, common) for source in (CPU_BINDINGS, *sources("csrc/cpu"))), *kernels]


def cuda_compiles(cxx: str, nvcc: str) -> list[Compile]:
    """The sources of shade_fast._cuda: bindings by the C++ compiler, kernels by nvcc for every architecture."""
    architectures = cuda_architectures(nvcc)
    common = (
        *CXX_FLAGS,
        *python_includes(),
        f'-DSHADE_FAST_NVCC="{version_line(nvcc)}"',
        f'-DSHADE_FAST_CUDA_ARCHITECTURES="{" ".join(f"sm_{name}" for name in architectures)}"',
    )
    codes = tuple(f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures)
    ahead = f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}"
    flags = (*NVCC_FLAGS, f"-ccbin={cxx}", *codes, ahead)
    return [
        Compile(CUDA_BINDINGS, common),
        *(Compile(source, flags, rule="nvcc") for source in sources("csrc/cuda", "*.cu")),
    ]


def rules(cxx: str, nvcc: str | None) -> list[str]:
    """Ninja's rules for the compilers that are there."""
    shared = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"
    link_flags = " ".join(["-pthread", "-ldl", *([f"-fsanitize={SANITIZERS}"] if SANITIZERS else [])])
    lines = [
        "rule cxx",
        f"  command = {escape(quote(cxx))} -MMD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $out",
        "rule link_cxx",
        f"  command = {escape(quote(cxx))} {shared} {link_flags} -o $out $in",
        "  description = $out",
    ]
    if nvcc is not None:
        device_flags = f"-arch=sm_{cuda_architectures(nvcc)[0]} -ccbin={escape(quote(cxx))}"
        lines += [
            "rule nvcc",
            f"  command = {escape(quote(nvcc))} -MD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = $out",
            "rule link_cuda",
            f"  command = {escape(quote(nvcc))} -shared -cudart=static {device_flags} -o $out $in",
            "  description = $out",
        ]
    return [*lines, ""]


#: What g++ has since version 12.
SHUFFLE = (
    "typedef int V __attribute__((vector_size(16)));\nV f(V a) { return __builtin_shufflevector(a, a, 0, 2, 4, 6); }\n"
)


def find_cxx() -> str:
    """The C++ compiler, or an error that says how to get one."""
    if sys.platform == "win32":
        raise PlatformError("shade_fast builds with g++ or clang++ on Linux and macOS; on Windows use WSL")
    asked = os.environ.get("CXX")
    found = [path for name in ([asked] if asked else ["c++", "g++", "clang++"]) if (path := shutil.which(name))]
    for path in found:
        if compiles(path, SHUFFLE):
            return path
    looked = f"CXX={asked}, which is no program" if asked else "none of c++, g++, clang++ is on PATH"
    if found:
        looked = f"{', '.join(found)} cannot compile it, too old perhaps"
    raise PlatformError(f"shade_fast needs a C++ compiler: {looked}; install g++ 12 or clang++, or set CXX to one")


def builds_tiles(cxx: str) -> bool:
    """Whether the C++ compiler and its assembler know AMX."""
    return compiles(cxx, "#include <immintrin.h>\nvoid f() { _tile_dpbf16ps(0, 1, 2); }\n", AMX_FLAGS)


def compiles(cxx: str, code: str, flags: Sequence[str] = ()) -> bool:
    """Whether the C++ compiler and its assembler take some code."""
    command = [cxx, *flags, "-x", "c++", "-c", "-", "-o", os.devnull]
    return subprocess.run(command, input=code.encode(), capture_output=True, check=False).returncode == 0


def find_ninja() -> str:
    """Ninja's program, from its Python package or from PATH."""
    try:
        import ninja

        found = shutil.which("ninja", path=ninja.BIN_DIR)
    except ImportError:
        found = None
    found = found or shutil.which("ninja")
    if not found:
        raise PlatformError("shade_fast needs ninja to build: pip install ninja")
    return found


def find_nvcc() -> str | None:
    """CUDA's compiler from CUDA_HOME, PATH or its usual place; None without one."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which("nvcc", path=str(Path(home) / "bin"))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def python_includes() -> tuple[str, ...]:
    """Header folders of Python and pybind11, as system headers: their warnings are not ours."""
    import sysconfig

    try:
        import pybind11
    except ImportError:
        raise PlatformError("shade_fast needs pybind11 to build: pip install pybind11") from None
    folders = [pybind11.get_include(), sysconfig.get_path("include"), sysconfig.get_path("platinclude")]
    return tuple(f"-isystem{folder}" for folder in dict.fromkeys(folders))


def cuda_architectures(nvcc: str) -> list[str]:
    """The compute capabilities to compile for: those asked for, else the default ones that this nvcc knows."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False).stdout.split()
    asked = os.environ.get("SHADE_FAST_CUDA_ARCHS", "").replace(",", ";").replace(".", "")
    names = [name.strip() for name in asked.split(";") if name.strip()]
    unknown = [name for name in names if f"sm_{name}" not in listed]
    if unknown:
        raise PlatformError(f"SHADE_FAST_CUDA_ARCHS: {nvcc} does not know {unknown}; it knows {' '.join(listed)}")
    names = names or [name for name in DEFAULT_CUDA_ARCHITECTURES if f"sm_{name}" in listed]
    if not names:
        raise PlatformError(
            f"{nvcc} knows none of sm_80, sm_90, sm_100: install CUDA 11.8 or later, or SHADE_FAST_CUDA=0"
        )
    return names


def version_line(compiler: str) -> str:
    """The line of `--version` that holds the compiler's version, safe inside a C string."""
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    lines = text.splitlines() or ["unknown"]
    line = next((line for line in lines if "release" in line), lines[0])
    return line.replace("\\", "").replace('"', "").strip()


def quote(text: str) -> str:
    """A shell word."""
    import shlex

    return shlex.quote(text).replace("$", "$$")


def escape(path: str | Path) -> str:
    """A path in a ninja file."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def extensions() -> list[Extension]:
    """The modules to build, with one plain line about CUDA."""
    headers = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h"))
    folders = ("csrc/cpu", *CONTRACTION, "csrc/cpu/amx")
    cpu = [CPU_BINDINGS, *(source for folder in folders for source in sources(folder))]
    modules = [Extension("shade_fast._cpu", cpu, depends=headers)]

    asked = os.environ.get("SHADE_FAST_CUDA", "")
    if asked not in ("", "0", "1"):
        raise PlatformError(
            f"SHADE_FAST_CUDA={asked}: 1 requires the CUDA module, 0 leaves it out, unset lets nvcc decide"
        )
    nvcc = find_nvcc() if asked != "0" else None
    if asked == "1" and nvcc is None:
        home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        looked = f"in {home}/bin" if home else "on PATH or in /usr/local/cuda/bin"
        raise PlatformError(
            f"SHADE_FAST_CUDA=1, but no nvcc {looked}: install the CUDA toolkit, or set CUDA_HOME to it"
        )
    if nvcc is not None:
        print(f"shade_fast: building the CPU module and, with {nvcc}, the CUDA module")
        modules.append(Extension("shade_fast._cuda", [CUDA_BINDINGS, *sources("csrc/cuda", "*.cu")], depends=headers))
    elif asked == "0":
        print("shade_fast: building the CPU module; the CUDA module is left out, as SHADE_FAST_CUDA=0 asks")
    else:
        print("shade_fast: building the CPU module; no nvcc found, so the package comes without its CUDA module")
    return modules


setup(
    # kernels/ has no __init__.py, as its name belongs to another package on PyPI: its modules join the package whose
    # __init__.py stands in shade_fast/kernels, and which finds them where they are while nothing is installed.
    packages=[
        *find_packages(include=["shade_fast", "shade_fast.*"], exclude=["shade_fast.kernels"]),
        "shade_fast.kernels",
    ],
    package_dir={"shade_fast.kernels": "kernels"},
    package_data={
        "shade_fast": [
            "py.typed",
            "report/report.html",
            "kernels/__init__.py",
            "data/anchors/**",
            "encoders/embedded/*.safetensors",
            "encoders/embedded/CARD.md",
        ],
    },
    ext_modules=extensions(),
    cmdclass={"build_ext": NinjaBuild},
    zip_safe=False,
)
