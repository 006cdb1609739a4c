"""The keeping of one image: its row, its place in the output, and its file, so that a crash loses nothing."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from shade_fast.api.poisoner import Poisoner
from shade_fast.archive.index import Index
from shade_fast.archive.layout import Layout, Sample
from shade_fast.archive.manifest import Manifest
from shade_fast.archive.names import from_text, to_text
from shade_fast.archive.row import Row
from shade_fast.archive.storage import RECORD_FOLDER, STOPPING, ArchiveStoppedError, Facts, Storage
from shade_fast.terms.version import __version__


def shared_columns(poisoner: Poisoner, options_sha256: str) -> dict[str, Any]:
    """The columns that all rows of a run share."""
    hashes = [encoder.sha256 for encoder in poisoner.encoders]
    perceptual = poisoner.perceptual
    return {
        "seed": poisoner.options.seed,
        "encoder": poisoner.encoder_name,
        "encoder_sha256": " + ".join(hashes) if all(hashes) else None,  # type: ignore[arg-type]
        "perceptual": None if perceptual is None else perceptual.name,
        "perceptual_sha256": None if perceptual is None else perceptual.sha256,
        "backend": poisoner.backend,
        "version": __version__,
        "options_sha256": options_sha256,
    }


class Recorder:
    """Keeps the images of a run's shards: a row each, and a file where the run writes any.

    target: of images that have none of their own. shared: see `shared_columns`. writes: whether files are written at
    all. keep_times: whether they get the modification times of their sources.
    """

    def __init__(
        self,
        layout: Layout,
        manifest: Manifest,
        index: Index,
        *,
        target: str | None,
        shared: Mapping[str, Any],
        writes: bool,
        keep_times: bool,
    ) -> None:
        self.out: Storage = manifest.out
        self.layout, self.manifest, self.index = layout, manifest, index
        self.writes = writes
        self._target, self._shared, self._keep_times = target, shared, keep_times

    def blank(self, shard: str, sample: Sample) -> Row:
        """A sample's row with what is known before it is read; it has failed until it says otherwise."""
        target = sample.target or self._target
        return Row(
            key=sample.key,
            shard=shard,
            index=sample.index,
            source=sample.source,
            status="failed",
            output=to_text(sample.output),
            concept=sample.concept,
            target=None if target is None else to_text(target),
            **self._shared,
        )

    def place(self, row: Row) -> str:
        """Where a row's image is until its shard is finished; for good where images are files."""
        if self.layout.files:
            return from_text(row.output or "")
        return self.manifest.work_name(row.shard, row.index, "bin")

    def is_there(self, row: Row) -> bool:
        """Whether a row's image is where it was to be written."""
        return row.output is None or not self.writes or self.out.size(self.place(row)) == row.output_bytes

    def store(self, row: Row, data: bytes | None = None, path: str | None = None) -> Row:
        """Write a row, then its image: a crash between the two leaves a row that is known to be undone.

        data: the image's bytes, None for no image. path: of the source's file, where it is one on this machine.
        Returns the row as it was written. Raises ArchiveStoppedError where the output cannot be written.
        """
        with self._stopping():
            refusal = None if data is None or not self.writes else self._make_room(row)
            if refusal is not None:
                row, data = replace(row, status="failed", error=refusal, output=None), None
            if not self.writes:
                row, data = replace(row, output=None), None
            self.manifest.write_row(row)
            if data is not None:
                try:
                    self.out.write(self.place(row), data, self.facts(path, self.place(row)))
                except OSError as error:
                    if error.errno in STOPPING:
                        raise
                    message = f"{row.key}: its output {row.output} cannot be written: {error.strerror}"
                    row = replace(row, status="failed", error=message, output=None)
                    self.manifest.write_row(row)
        return row

    def load(self, row: Row) -> bytes:
        """The bytes of a row's image."""
        if not self.writes:
            return b""
        if self.layout.files or row.shard not in self.index.finished:
            return self.out.read(self.place(row))
        return self.layout.read_output(row, self.out)

    def clear(self, row: Row) -> None:
        """Where this run overwrites, remove what an earlier one left in the place of an image that has failed."""
        replaces = row.output is not None and self.index.may_replace(row.output)
        if replaces and self.writes and self.layout.files and self._barrier(row) is None:
            with self._stopping():
                self.out.remove_file(self.place(row))

    def facts(self, path: str | None, name: str) -> Facts | None:
        """What a file of the output gets of the local file that it is made of."""
        return None if path is None else Facts.of(path, name.count("/") + 1, times=self._keep_times)

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        """Raise ArchiveStoppedError where the output cannot be written."""
        try:
            yield
        except OSError as error:
            raise ArchiveStoppedError.unwritable(self.out.url, error) from error

    def _make_room(self, row: Row) -> str | None:
        """Where this run overwrites, empty an image's place. Why it may not be written there; None where it may."""
        place = self.place(row)
        if not self.layout.files:
            return None
        barrier = self._barrier(row)
        if barrier is not None or not self.out.exists(place):
            return barrier
        if row.duplicate_of is not None and hashlib.sha256(self.out.read(place)).hexdigest() == row.output_sha256:
            return None
        if not self.index.may_replace(row.output or ""):
            path = self.out.path(place)
            if self.index.overwrites:
                return f"{row.key}: its output {path} exists and no run's record names it; move it away"
            return (
                f"{row.key}: its output {path} exists and is none of this run's; give another output, or mode overwrite"
            )
        self.out.remove_file(place)
        return None

    def _barrier(self, row: Row) -> str | None:
        """What is in the way of an image's file and may never be replaced; None where nothing is."""
        place = self.place(row)
        path = self.out.path(place)
        if place.startswith(f"{RECORD_FOLDER}/"):
            return f"{row.key}: its output {row.output} would be among the record's files; rename it"
        if self.out.local:
            folder, root = os.path.realpath(os.path.dirname(path)), os.path.realpath(self.out.root)
            if os.path.commonpath([folder, root]) != root:
                return f"{row.key}: its output {row.output} leads out of {self.out.url} through a link; remove the link"
        if self.out.is_folder(place):
            return f"{row.key}: its output {path} is a folder; give another output"
        return None
