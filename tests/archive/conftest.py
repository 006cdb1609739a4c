"""Archives small enough to run at once, in this process with a tiny encoder and in others with the embedded one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from torch import nn

from shade_fast import AnchorLibrary, ArchiveReport, Budget, View, poison_archive
from tests.archive.outputs import SMALL, Command, Run, twelve_images


@pytest.fixture(scope="session")
def engine(tiny_module: nn.Module, draw: Any) -> dict[str, Any]:
    """Options of an engine that takes milliseconds an image."""
    return {
        "encoder": tiny_module,
        "perceptual": None,
        "budget": Budget(16 / 255, None),
        "steps": 3,
        "view": View(size=32),
        "target_ratio": 1.0,
        "anchors": AnchorLibrary({"dog": [draw(48, 48, seed=9)], "cat": [draw(48, 48, seed=8)]}),
    }


@pytest.fixture
def run(engine: dict[str, Any], tmp_path: Path) -> Run:
    """`run(source, out, **options)` with the tiny engine, moving to `dog`, in this process."""

    def call(source: Any, out: Path | None = None, target: str | None = "dog", **options: Any) -> ArchiveReport:
        return poison_archive(source, out or tmp_path / "out", target, **(engine | options))

    return call


@pytest.fixture
def photos(tmp_path: Path, draw: Any) -> Path:
    """a.png 40x32, b.jpg 48x40 with an orientation and a name in its EXIF, more/c.webp 32x32 with alpha."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    Image.fromarray(draw(32, 40, 1)).save(folder / "a.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Artist] = 6, "Someone"
    Image.fromarray(draw(40, 48, 2)).save(folder / "b.jpg", exif=exif, quality=90)
    alpha = draw(32, 32, 4)[..., :1]
    Image.fromarray(np.dstack([draw(32, 32, 3), alpha])).save(folder / "more" / "c.webp", lossless=True, exact=True)
    return folder


@pytest.fixture
def many(tmp_path: Path, draw: Any) -> Path:
    """Twelve PNGs of 32x32, 00.png to 11.png."""
    return twelve_images(tmp_path / "many", draw)


@pytest.fixture
def command() -> Command:
    """`command(*arguments)`: `shade-fast` in a process of its own, with the embedded encoder at a view of 32 pixels."""

    def start(*arguments: str | Path, engine: bool = True, **options: Any) -> subprocess.Popen[str]:
        # What a test asks for goes last, and so before what is small.
        arguments = (*arguments[:1], *(SMALL if engine else []), *arguments[1:])
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "shade_fast.cli", *map(str, arguments)],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            **options,
        )

    return start
