"""A run over files: each is decoded, protected, encoded, checked on its bytes and written, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shade_fast.anchors import Anchor, Target
from shade_fast.archive.files import SourceFile, write_whole
from shade_fast.archive.manifest import MANIFEST_NAME, Row, manifest, write_manifest
from shade_fast.errors import ShadeFastError
from shade_fast.images import DecodedImage, Output, decode
from shade_fast.poison import Poisoner
from shade_fast.results import PoisonedImage


def poison_files(
    sources: Sequence[SourceFile],
    folder: str | Path,
    target: Target,
    poisoner: Poisoner,
    *,
    output: Output = Output(),
    overwrite: bool = False,
    options: dict[str, Any],
    on_image: Callable[[Row], None] | None = None,
) -> dict[str, Any]:
    """Protect files into a folder, and write the run's record (`shade_fast.json`) beside them; returns the record.

    options: what the caller was asked for, recorded as it is; `encoder` in it is a list with one entry per encoder.
    on_image: told each image's row when it is done. The record is written even where the run is interrupted.
    Raises ShadeFastError where the folder holds an earlier run and `overwrite` is not given, or cannot be written.
    """
    folder = Path(folder)
    _check_folder(folder, overwrite)
    anchor = poisoner.anchor(target)
    rows: list[Row] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # An empty record now, so that a folder that cannot be written costs no work.
        write_manifest(folder, manifest(folder, poisoner, options, rows, 0.0))
    except OSError as error:
        raise ShadeFastError(f"{folder}: cannot be written: {error.strerror}; give another folder") from error
    started = time.perf_counter()
    try:
        for row in _rows(sources, folder, anchor, poisoner, output, overwrite):
            rows.append(row)
            if on_image is not None:
                on_image(row)
    finally:
        record = manifest(folder, poisoner, options, rows, time.perf_counter() - started)
        try:
            write_manifest(folder, record)
        except OSError as error:
            raise ShadeFastError(f"{folder / MANIFEST_NAME}: cannot be written: {error.strerror}") from error
    return record


def plan_files(
    sources: Sequence[SourceFile], folder: str | Path, poisoner: Poisoner, *, output: Output, overwrite: bool
) -> list[dict[str, Any]]:
    """What `poison_files` would do with each file, undone: its output, its sizes, the error that it would meet.

    Raises ShadeFastError where the folder holds an earlier run and `overwrite` is not given.
    """
    _check_folder(Path(folder), overwrite)
    refusals = _refusals(sources, Path(folder), output, overwrite)
    rows = []
    for source, refusal in zip(sources, refusals, strict=True):
        row: dict[str, Any] = {"source": str(source.path), "output": str(source.output(output)), "error": refusal}
        try:
            image = decode(source.path)
            height, width = image.pixels.shape[:2]
            row |= {"width": width, "height": height}
            output.check(image)
            row["view"] = list(poisoner.view.plan(height, width, poisoner.factor).crop)
        except ShadeFastError as error:
            row["error"] = refusal or str(error)
        rows.append(row)
    return rows


def _rows(
    sources: Sequence[SourceFile], folder: Path, anchor: Anchor, poisoner: Poisoner, output: Output, overwrite: bool
) -> Iterator[Row]:
    refusals = _refusals(sources, folder, output, overwrite)

    def images() -> Iterator[tuple[Path | DecodedImage | ShadeFastError, Anchor]]:
        for source, refusal in zip(sources, refusals, strict=True):
            yield (source.path if refusal is None else ShadeFastError(refusal)), anchor

    for source, protected in zip(sources, poisoner.protect(images(), output), strict=True):
        outcome, written = protected.outcome, None
        if protected.data is not None:
            written = source.output(output)
            try:
                write_whole(folder / written, protected.data)
            except OSError as error:
                written = None
                message = f"{folder / source.output(output)}: cannot be written: {error.strerror}"
                outcome = PoisonedImage(image=None, status="failed", error=message, name=outcome.name)
        height, width = (0, 0) if protected.image is None else protected.image.pixels.shape[:2]
        yield Row(
            source=source.path,
            output=None if written is None else written.as_posix(),
            target=anchor.name,
            width=width,
            height=height,
            outcome=replace(outcome, image=None),
        )


def _check_folder(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ShadeFastError(f"{folder}: is a file; give a folder")
    if (folder / MANIFEST_NAME).exists() and not overwrite:
        raise ShadeFastError(f"{folder}: holds an earlier run; give another folder, or --overwrite")


def _refusals(sources: Sequence[SourceFile], folder: Path, output: Output, overwrite: bool) -> list[str | None]:
    """Why each file's output may not be written, None where it may."""
    originals = {source.path.resolve() for source in sources}
    taken: dict[str, Path] = {}
    refusals: list[str | None] = []
    for source in sources:
        name = source.output(output).as_posix()
        path = folder / name
        refusal = None
        try:
            exists, original = path.exists(), path.resolve() in originals
        except OSError as error:
            refusals.append(f"{source.path}: its output {path} cannot be written: {error.strerror}")
            continue
        if name in taken:
            refusal = f"{source.path}: its output {name} is that of {taken[name]} too; rename one, or run them apart"
        elif original:
            refusal = (
                f"{source.path}: its output would take the place of {path}, which is a source; give another folder"
            )
        elif exists and not overwrite:
            refusal = f"{source.path}: its output {path} exists; give another folder, or --overwrite"
        else:
            taken[name] = source.path
        refusals.append(refusal)
    return refusals
