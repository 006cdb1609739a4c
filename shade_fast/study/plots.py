"""matplotlib, without a screen, and sheets of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from shade_fast.images import UInt8Array
from shade_fast.terms.errors import ShadeFastError


def import_pyplot() -> Any:
    """matplotlib.pyplot, drawing to files alone. Raises ShadeFastError where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise ShadeFastError(f"a plot needs matplotlib ({error}): pip install 'shade-fast[study]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot

    # The same figures give identical files.
    matplotlib.rcParams["svg.hashsalt"] = "shade_fast"
    return pyplot


def write_sheet(rows: Sequence[tuple[str, UInt8Array]], path: Path, columns: int = 16) -> None:
    """A sheet of images: a labelled row for each (label, uint8 [N, h, w, 3]), of its first `columns`."""
    height, width = rows[0][1].shape[1:3]
    margin = 9 + 6 * max(len(label) for label, _ in rows)
    sheet = Image.new("RGB", (margin + columns * width, len(rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (label, images) in enumerate(rows):
        draw.text((4, number * height + height // 2 - 5), label, fill="black")
        strip = np.concatenate(list(images[:columns]), axis=1)
        sheet.paste(Image.fromarray(strip), (margin, number * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
