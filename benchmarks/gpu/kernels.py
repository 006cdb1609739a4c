"""Every Triton kernel as the engine launches it, for compiling ahead of time: types, tiles, what is known of sizes.

Pointers and the counts of channels and elements are multiples of 16, as they are for the networks' tensors, which is
what the launcher finds at run time as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.ops import OPS, Kernel

DTYPES = ("fp32", "fp16", "bf16")
MULTIPLES_OF_16 = ("channels", "elements")
#: Pointers that hold float32, whatever the features are.
FLOAT32 = ("partial", "distance", "upstream", "statistics", "means", "gamma", "beta", "bias", "head")
#: Pointers to masks and to places in a window.
INTEGERS = {"mask": "*i16", "index": "*u8"}


@dataclass(frozen=True)
class Configuration:
    """A kernel with its constants, of features of one dtype; `dtype` is float32's name where it reads none."""

    name: str
    dtype: str
    source: ASTSource
    warps: int = 4

    def compile(self, architecture: int) -> Any:
        """The kernel that Triton makes of it for sm_`architecture`."""
        options = {"num_warps": self.warps, "enable_fp_fusion": True}
        return triton.compile(self.source, target=GPUTarget("cuda", architecture, 32), options=options)


def configurations(dtype: str, complete: bool = True) -> Iterator[Configuration]:
    """All that run on features of a dtype; without `complete` those alone that a step has most often."""
    for op in OPS:
        for kernel in op.kernels(dtype):
            if complete or kernel.usual:
                yield _configuration(op.name, kernel, dtype)


def _configuration(op: str, kernel: Kernel, dtype: str) -> Configuration:
    names = kernel.function.arg_names
    signature = {name: _type(name, kernel, dtype) for name in names}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if signature[name].startswith("*") or name in MULTIPLES_OF_16
    }
    name = f"{op}.{kernel.function.__name__.removesuffix('_kernel')}" + (f" ({kernel.note})" if kernel.note else "")
    source = ASTSource(kernel.function, signature, dict(kernel.constants), attributes)
    return Configuration(name, dtype if kernel.features else "fp32", source, kernel.warps)


def _type(name: str, kernel: Kernel, dtype: str) -> str:
    if name in kernel.constants:
        return "constexpr"
    if name in kernel.features:
        return f"*{dtype}"
    if name in FLOAT32:
        return "*fp32"
    if name in INTEGERS:
        return INTEGERS[name]
    return "fp32" if name == "epsilon" else "i32"
