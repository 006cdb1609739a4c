"""What the archive's tests ask of outputs and of processes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from shade_fast import ArchiveReport
from shade_fast.archive import Row

Run = Callable[..., ArchiveReport]
Command = Callable[..., "subprocess.Popen[str]"]

#: Options of a command that takes milliseconds an image with the embedded encoder.
SMALL = ("--view", "32", "--steps", "2", "--perceptual", "none", "--lpips", "none", "--target", "castle")


def twelve_images(folder: Path, draw: Any) -> Path:
    """PNGs of 32x32, 00.png to 11.png."""
    folder.mkdir()
    for index in range(12):
        Image.fromarray(draw(32, 32, 20 + index)).save(folder / f"{index:02}.png")
    return folder


def images(folder: Path) -> dict[str, bytes]:
    """Every file of an output but its record."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "_shade_fast" not in path.parts and path.name != "_stats.json"
    }


def by_key(report: ArchiveReport) -> dict[str, Row]:
    rows = list(report.rows())
    assert len({row.key for row in rows}) == len(rows) == report.images
    return {row.key: row for row in rows}


def finish(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str, str]:
    printed, errors = process.communicate(timeout=seconds)
    return process.returncode, printed, errors


def wait_for_images(process: subprocess.Popen[str], path: Path, count: int) -> None:
    """Until a run's events hold so many images. Raises AssertionError where it ends before."""
    while process.poll() is None:
        if path.exists() and path.read_text().count('"event": "image"') >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"ended before {count} images: {process.communicate()}")
