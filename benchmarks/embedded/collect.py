"""Collect the training photographs: `python -m benchmarks embedded collect --roots DIR... --out DIR`.

`photographs.tsv` names every photograph, its author, its licence and the package that carries it. The roots are where
those packages lie unpacked: `/` for installed Debian packages, a folder into which `dpkg-deb -x` or `unzip` put them
for the others (gcompris-qt-data, scikit-image, scikit-learn and scipy 1.9.3).
"""

from __future__ import annotations

import bz2
import csv
import io
import struct
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from shade_fast.terms.errors import ShadeFastError

TABLE = Path(__file__).with_name("photographs.tsv")
SIDE = 768
RACCOON = (1024, 768)


def collect(roots: Sequence[Path], out: Path) -> int:
    """Write every photograph of the table to `out/NAME.png`, shorter side 768 pixels at most; return how many."""
    out.mkdir(parents=True, exist_ok=True)
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for row in rows:
        path = next((root / row["path"] for root in roots if (root / row["path"]).exists()), None)
        if path is None:
            raise ShadeFastError(f"{row['path']}: under none of the roots; unpack {row['package']} into one of them")
        image = read(path, row["member"])
        scale = min(1.0, SIDE / min(image.size))
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS) if size != image.size else image
        image.save(out / f"{row['name']}.png", compress_level=1)
    return len(rows)


def read(path: Path, member: str) -> Image.Image:
    """One photograph as RGB, upright; `member` is its path in a Qt resource file, or empty."""
    if path.suffix == ".dat":
        return Image.frombytes("RGB", RACCOON, bz2.decompress(path.read_bytes()))
    content = path.read_bytes()
    if member:
        content = dict(resource_members(content))[member]
    with Image.open(io.BytesIO(content)) as opened:
        return ImageOps.exif_transpose(opened).convert("RGB")


def resource_members(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Paths and contents of the uncompressed files in a Qt resource file (`.rcc`).

    Big-endian: magic `qres`, then version and the offsets of the tree, the data and the names. A tree entry holds the
    name's offset and flags (1 compressed, 2 folder), then the child count and the first child, or the data's offset.
    """
    if content[:4] != b"qres":
        raise ShadeFastError("not a Qt resource file: it does not begin with 'qres'")
    version, tree, data, names = struct.unpack(">4i", content[4:20])
    entry_size = 14 if version < 2 else 22

    def walk(index: int, folder: str) -> Iterator[tuple[str, bytes]]:
        name_offset, flags, first, second = struct.unpack_from(">IHII", content, tree + index * entry_size)
        (length,) = struct.unpack_from(">H", content, names + name_offset)
        begin = names + name_offset + 6
        path = f"{folder}/{content[begin : begin + 2 * length].decode('utf-16-be')}" if index else ""
        if flags & 2:
            for child in range(second, second + first):
                yield from walk(child, path)
        elif not flags & 5:
            (size,) = struct.unpack_from(">I", content, data + second)
            yield path, content[data + second + 4 : data + second + 4 + size]

    return walk(0, "")


def arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--roots", type=Path, nargs="+", required=True, help="where the packages lie unpacked")
    parser.add_argument("--out", type=Path, required=True, help="folder for the photographs")


def run(options: Namespace) -> int:
    """The command."""
    print(f"{collect(options.roots, options.out)} photographs in {options.out}")
    return 0
