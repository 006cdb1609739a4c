"""What a step costs on a GPU, counted from the real modules' shapes: `python -m benchmarks gpu model [--write]`.

Two paths through one step (encoder forward, latent distance, gradient in the image; with LPIPS also the distance to the
clean image): `fused`, the engine's own step as it is recorded, and `published`, the same modules in plain torch. Both
are counted op by op as torch dispatches them on the meta device. Nothing is computed, and nothing was measured.

Assumptions, their constants in count.py:
- Features have 2 bytes, float16 or bfloat16, and an op reads and writes each of its tensors once; a group norm reads
  its input twice, its backward both of its inputs twice, on either path. Caches save nothing.
- Matrix products, convolutions and attention run at `PRODUCTS` of the data sheet's dense rate, everything at no more
  than `BANDWIDTH` of its memory rate. A step is the sum over its ops of the longer of the two.
- Plain torch adds a convolution's bias in a pass of its own, as its cuDNN path does, and its attention is the fused
  one. Its tensors are NCHW, which tensor cores do not take: cuDNN transposes a convolution's input and its result, both
  ways, as NVIDIA's guide to convolutional layers says ("Tensor Layouts in Memory: NCHW vs NHWC"). These transposes are
  counted apart as well, and the bytes are compared with them and without. The host needs `HOST` a launched op, and
  the step is no shorter than that; a graph's replay needs `REPLAY` a kernel.
- Kept for the backward: the most that autograd holds at one time, on the published path a convolution's input also
  where its weight requires no gradient. The engine differentiates the encoder before LPIPS begins, the published path
  their sum.
- Held: what is there from step to step, such as images, perturbation, momentum and the clean image's features, which
  the published path makes anew in each step.
- Memory an image: what is kept and held, and three times the largest feature map to work in. Weights and `RESERVED` are
  there once.
"""

from __future__ import annotations

import itertools
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gpu.count import DEVICES, RESERVED, Count
from benchmarks.gpu.fused import fused
from benchmarks.gpu.published import published
from benchmarks.rows import csv_file, read_rows
from benchmarks.tables import markdown

TABLE = Path(__file__).parents[1] / "results" / "gpu_model.csv"
SIZE = 512
BATCHES = (1, 8)

PATHS: dict[str, Callable[[int, bool, int], Count]] = {"fused": fused, "published": published}


@dataclass(frozen=True)
class Row:
    """One path on one device, for the whole batch; kept, held and memory for one image.

    other_megabytes: outside products, transpose_megabytes: the transposes among them.
    """

    path: str
    case: str
    batch: int
    gpu: str
    launches: int
    gigaoperations: float
    product_megabytes: float
    other_megabytes: float
    transpose_megabytes: float
    step_ms: float
    product_ms: float
    other_ms: float
    images_per_second_60_steps: float
    kept_megabytes: float
    held_megabytes: float
    memory_megabytes: float
    largest_batch: int


def rows(size: int = SIZE, batches: Sequence[int] = BATCHES) -> list[Row]:
    """All paths, with and without LPIPS, on all devices."""
    return [
        row
        for lpips, (name, path), batch in itertools.product((False, True), PATHS.items(), batches)
        for row in rows_of(name, path(batch, lpips, size), batch, f"kl.{size}" + (".lpips" if lpips else ""))
    ]


def rows_of(path: str, count: Count, batch: int, case: str) -> Iterator[Row]:
    """One path's, on all devices."""
    for device in DEVICES:
        products, other = count.seconds(device, graph=path == "fused")
        yield Row(
            path=path,
            case=case,
            batch=batch,
            gpu=device.name,
            launches=len(count.ops),
            gigaoperations=count.operations / 1e9,
            product_megabytes=count.bytes(True) / 1e6,
            other_megabytes=count.bytes(False) / 1e6,
            transpose_megabytes=count.transposed / 1e6,
            step_ms=1e3 * (products + other),
            product_ms=1e3 * products,
            other_ms=1e3 * other,
            images_per_second_60_steps=batch / (60 * (products + other)),
            kept_megabytes=count.kept / batch / 1e6,
            held_megabytes=count.held / batch / 1e6,
            memory_megabytes=count.memory / batch / 1e6,
            largest_batch=int((device.memory - RESERVED - count.weights) / (count.memory / batch)),
        )


def table(rows: Sequence[dict[str, str]]) -> str:
    """The rows for reading, and the ratios of the fused path to the published one."""
    columns = {
        **{name: name for name in ("path", "case", "batch")},
        **{"GPU": "gpu", "ms a step": "step_ms", "products, ms": "product_ms", "the rest, ms": "other_ms"},
        **{"the rest, MB an image": "other_megabytes", "transposes in it": "transpose_megabytes"},
        **{"kept, MB an image": "kept_megabytes", "held, MB an image": "held_megabytes"},
        **{"largest batch": "largest_batch"},
    }
    rows = [row | _of_image(row) for row in rows]
    shown = markdown(list(columns), [[_short(row[name]) for name in columns.values()] for row in rows])
    published_rows = {(row["case"], row["batch"], row["gpu"]): row for row in rows if row["path"] == "published"}
    lines = []
    for row in rows:
        if row["path"] != "fused":
            continue
        other = published_rows[row["case"], row["batch"], row["gpu"]]
        shares = [
            sum(float(row[name]) for name in names) / sum(float(other[name]) for name in names)
            for names in (
                ("step_ms",),
                ("other_megabytes",),
                ("untransposed_megabytes",),
                ("kept_megabytes",),
                ("kept_megabytes", "held_megabytes"),
            )
        ]
        lines.append((row["case"], row["batch"], row["gpu"], *(f"{share:.3f}" for share in shares)))
    heads = ("case", "batch", "GPU", "time", "the rest, bytes", "without transposes", "kept", "kept and held")
    return f"{shown}\n\nFused over published:\n\n{markdown(heads, lines)}"


def _of_image(row: dict[str, str]) -> dict[str, str]:
    """Bytes outside products of one image: all, the transposes, and all but these."""
    other, transposes = (float(row[name]) / int(row["batch"]) for name in ("other_megabytes", "transpose_megabytes"))
    values = {"other": other, "transpose": transposes, "untransposed": other - transposes}
    return {f"{name}_megabytes": str(value) for name, value in values.items()}


def _short(text: str) -> str:
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text


def arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--write", action="store_true", help="write the table anew")
    parser.add_argument("--table", type=Path, default=TABLE, help="the table (default: %(default)s)")


def run(options: Namespace) -> int:
    """The command; 1 where the committed table is not what is counted now."""
    counted = rows()
    if options.write:
        with csv_file(options.table) as write:
            write(counted)
    committed = read_rows(options.table)
    print(table(committed))
    same = committed == [as_text(row) for row in counted]
    if not same:
        print(f"{options.table} is not what is counted now: write it with --write", file=sys.stderr)
    return int(not same)


def as_text(row: Row) -> dict[str, str]:
    """A row as its file has it."""
    return {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in asdict(row).items()}
