"""Finding images, naming their outputs, and writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from shade_fast.errors import ShadeFastError
from shade_fast.images import INPUT_SUFFIXES, OUTPUT_FORMATS, Output


@dataclass(frozen=True)
class SourceFile:
    """An image file, and its path below the folder that it was found in (its name, where it was given itself)."""

    path: Path
    relative: PurePath

    def output(self, output: Output) -> PurePath:
        """Path below the output folder: the source's own, with the ending of the format written.

        An ending that names this format already is kept, .jpeg for example. `same` goes by what the file holds.
        """
        written = output.format_of(_stored_format(self.path) if output.format == "same" else None)
        if self.relative.suffix.lower() in (OUTPUT_FORMATS[written], f".{written}"):
            return self.relative
        return self.relative.with_suffix(OUTPUT_FORMATS[written])


def find_images(sources: Sequence[str | Path], exclude: str | Path | None = None) -> list[SourceFile]:
    """The image files that `sources` name, sorted within each: files by themselves, folders with all below them.

    exclude: a folder inside which a search takes nothing: where the outputs go. It has no say over a folder that is
        this one itself or lies inside it.
    Raises ShadeFastError for a path that does not exist, and where there is no image at all.
    """
    found: dict[Path, SourceFile] = {}
    excluded = None if exclude is None else Path(exclude).resolve()
    for source in map(Path, sources):
        try:
            if source.is_dir():
                searched = source.resolve()
                skipped = None if excluded is None or searched.is_relative_to(excluded) else excluded
                for path in sorted(source.rglob("*")):
                    # macOS writes ._photo.jpg beside photo.jpg on disks of other systems: no image, for all its name.
                    if path.suffix.lower() not in INPUT_SUFFIXES or path.name.startswith("._") or not path.is_file():
                        continue
                    resolved = path.resolve()
                    if skipped is None or not resolved.is_relative_to(skipped):
                        found.setdefault(resolved, SourceFile(path, path.relative_to(source)))
            elif source.exists():
                found.setdefault(source.resolve(), SourceFile(source, PurePath(source.name)))
            else:
                raise ShadeFastError(f"{source}: no such file or folder")
        except OSError as error:
            raise ShadeFastError(f"{source}: cannot be read: {error.strerror}") from error
    if not found:
        raise ShadeFastError(f"{', '.join(map(str, sources))}: no images found ({', '.join(INPUT_SUFFIXES)})")
    return list(found.values())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the whole of it or nothing: temporary name, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".shade_fast-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _stored_format(path: Path) -> str | None:
    """Pillow's name of a file's format by its first bytes, where it is one that `same` keeps."""
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError:
        return None
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    return "WEBP" if start.startswith(b"RIFF") and start.endswith(b"WEBP") else None
