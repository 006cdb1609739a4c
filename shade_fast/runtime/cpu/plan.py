"""Which algorithm each convolution runs: measured once per machine and shape, and remembered; or by fixed rules.

`fast` takes what is fastest of direct sums, Winograd's algorithms, which multiply less, and AMX's tiles, which multiply
parts of values: root-mean-square errors of a layer up to 2e-6 for F(4x4), 7e-6 for F(6x6), 4.5e-6 in tiles. `exact`
takes direct sums in float32 alone.

Environment:
    SHADE_FAST_PLAN     measured (the default), or fixed: rules that depend on no measurement.
    SHADE_FAST_CACHE    the folder of what was measured, default ~/.cache/shade_fast; empty: nothing is kept on disk.
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import threading
import time
import zlib
from pathlib import Path

import torch

from shade_fast.ops import convolution as conv
from shade_fast.ops import matrix_product, native
from shade_fast.ops.convolution import Convolution
from shade_fast.ops.epilogue import Epilogue
from shade_fast.ops.native import Call
from shade_fast.runtime.cpu.values import Dims
from shade_fast.system.files import cache_folder, write_whole
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.version import __version__

#: What an accuracy admits, the one to take without measurements first, where it supports the convolution. `careful` is
#: the forward of a network whose gradient jumps (ReLUs, max pooling), for `fast`: each error moves the places of the
#: jumps, and those of tiles are 5 to 9 times F(4x4)'s, and twice F(6x6)'s where channels are 64 or fewer.
ADMITTED = {
    "fast": ("narrow", "tiles", "winograd4", "winograd6", "direct"),
    "exact": ("narrow", "direct"),
    "careful": ("narrow", "winograd4", "winograd6", "direct"),
}
MOST_EXACT = ("narrow", "direct", "winograd2", "winograd4", "tiles", "winograd6")
#: The share of the time of a more exact algorithm that another has to stay below.
CLEARLY = 0.95
#: From so many channels and filters on tiles are full enough, and Winograd's transforms worth their time.
LEAST_CHANNELS = {"tiles": 32, "winograd4": 16, "winograd6": 16}
#: A measurement runs on at most this many result pixels: the rates of larger images are theirs.
MOST_PIXELS = 128 * 128
REPEATS = 9
#: Bytes that are written before each run: as in a step, the second-level caches have a layer's input, not its weights.
EVICTED = 2**25


def choose(accuracy: str, convolution: Convolution, source: Dims, result: Dims, threads: int) -> str:
    """The algorithm for a convolution from [B, C, h, w] to [B, K, h', w'] on so many threads."""
    candidates = [name for name in ADMITTED[accuracy] if conv.supports(name, convolution)]
    plan = os.environ.get("SHADE_FAST_PLAN", "measured")
    if plan not in ("measured", "fixed"):
        raise ShadeFastError(f"SHADE_FAST_PLAN={plan}: give measured or fixed")
    if len(candidates) == 1 or plan == "fixed":
        fewest = min(convolution.channels, convolution.filters)
        return next(name for name in candidates if fewest >= LEAST_CHANNELS.get(name, 1))
    return _measured(candidates, convolution, source, result, threads)


def choose_product(accuracy: str, shortest: int) -> str:
    """The algorithm for products of matrices whose shortest side is this long."""
    admitted = accuracy == "fast" and shortest >= LEAST_CHANNELS["tiles"]
    return "tiles" if admitted and matrix_product.supports("tiles") else "direct"


_lock = threading.Lock()


def _measured(candidates: list[str], convolution: Convolution, source: Dims, result: Dims, threads: int) -> str:
    source, result = _bounded(convolution, source, result)
    bucket = (result[0] * result[2] * result[3]).bit_length()
    key = (
        f"{convolution.channels}->{convolution.filters} {convolution.kernel[0]}x{convolution.kernel[1]} "
        f"/{convolution.stride} *{convolution.up} 2^{bucket} {threads} threads of {', '.join(candidates)}"
    )
    with _lock:
        file = _file()
        known = _known(file, native.cpu().selected_isa())
        if known.get(key) not in candidates:
            known[key] = _best(_times(candidates, convolution, source, result, threads))
            _remember(file, known)
        return known[key]


def _best(seconds: dict[str, float]) -> str:
    """The fastest; one with larger rounding errors and larger packed weights only where it is clearly faster."""
    best = ""
    for name in sorted(seconds, key=MOST_EXACT.index):
        if not best or seconds[name] < CLEARLY * seconds[best]:
            best = name
    return best


def _bounded(convolution: Convolution, source: Dims, result: Dims) -> tuple[Dims, Dims]:
    """The shapes of one image that is cut down to MOST_PIXELS."""
    sides = [result[2], result[3]]
    while sides[0] * sides[1] > MOST_PIXELS:
        longer = sides.index(max(sides))
        sides[longer] = -(-sides[longer] // 2)
    grown = [
        min(had, -(-side * convolution.stride // convolution.up) + kernel)
        for side, had, kernel in zip(sides, source[2:], convolution.kernel, strict=True)
    ]
    return (1, source[1], grown[0], grown[1]), (1, result[1], sides[0], sides[1])


def _times(
    candidates: list[str], convolution: Convolution, source: Dims, result: Dims, threads: int
) -> dict[str, float]:
    """The least seconds of each in a few runs, in turns: what else runs on the machine meets them all."""
    generator = torch.Generator().manual_seed(0)
    empty = functools.partial(torch.empty, dtype=torch.float32, device="cpu")
    weight = empty(convolution.filters, convolution.channels, *convolution.kernel).normal_(generator=generator)
    x = empty(source, memory_format=torch.channels_last).normal_(generator=generator)
    out = empty(result, memory_format=torch.channels_last)

    def bound(name: str) -> Call:
        scratch = empty(conv.scratch_size(name, convolution, source, result, threads))
        packed = conv.pack(name, convolution, weight)
        return conv.bind(name, convolution, packed, x, out, Epilogue(), scratch, threads)

    calls = {name: bound(name) for name in candidates}
    least = dict.fromkeys(candidates, math.inf)
    others = empty(EVICTED // 4)
    for _ in range(REPEATS):
        for name, call in calls.items():
            others.zero_()
            x.neg_()
            start = time.perf_counter()
            native.check(native.cpu(), call())
            least[name] = min(least[name], time.perf_counter() - start)
    return least


@functools.cache
def _known(file: Path | None, isa: str) -> dict[str, str]:
    """What was measured on this machine with an instruction set so far."""
    return _read(file)


def _read(file: Path | None) -> dict[str, str]:
    try:
        read = json.loads(file.read_text()) if file is not None else {}
    except (OSError, ValueError):
        return {}
    return {str(key): str(name) for key, name in read.items()} if isinstance(read, dict) else {}


def _remember(file: Path | None, known: dict[str, str]) -> None:
    """Write the measurements, with what other processes have written meanwhile, where others find them whole; a folder
    that cannot be written is gone without."""
    if file is None:
        return
    try:
        write_whole(file, json.dumps(_read(file) | known, indent=0, sort_keys=True).encode())
    except OSError:
        return


def _file() -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    name = f"plan {__version__} {_build()} {native.cpu().selected_isa()} {_machine()}.json"
    return folder / "".join(letter if letter.isalnum() or letter in " .-" else "_" for letter in name)


@functools.cache
def _build() -> str:
    """The compiled kernels' checksum: other kernels are measured anew."""
    return f"{zlib.crc32(Path(str(native.cpu().__file__)).read_bytes()):08x}"


@functools.cache
def _machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
