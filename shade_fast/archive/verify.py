"""What an output holds, by its record (`archive_status`) and measured again from the files alone (`verify_archive`)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shade_fast.api.poisoner import Poisoner
from shade_fast.archive.archive import fixed_plan
from shade_fast.archive.kinds import open_layout, target_roots
from shade_fast.archive.layout import Layout
from shade_fast.archive.manifest import Manifest
from shade_fast.archive.names import from_text
from shade_fast.archive.options import Source
from shade_fast.archive.reading import Reader
from shade_fast.archive.record import is_own, read_run, recorded_options, url_key
from shade_fast.archive.row import Row
from shade_fast.archive.storage import Storage, is_hidden
from shade_fast.archive.targets import Targets
from shade_fast.archive.totals import totals
from shade_fast.codecs import Codecs
from shade_fast.images import DecodedImage, Output
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.limits import Access, Limits
from shade_fast.terms.text import redacted

#: Another machine, or batch, sums in another order: distances and LPIPS agree to this share, or this much.
RELATIVE, ABSOLUTE = 2e-3, 2e-4


def archive_status(out: Source) -> dict[str, Any]:
    """The totals over an output's rows, with its options. Raises ShadeFastError where no run has been."""
    storage = Storage(out)
    record = _record(storage)
    manifest = Manifest(storage)
    return {
        "out": redacted(storage.url),
        "created": record["created"],
        "options": record["options"],
        **totals(manifest.all_rows()),
        "finished_shards": len(manifest.finished()),
        "open_shards": manifest.open_shards(),
    }


@dataclass(frozen=True)
class Mismatch:
    """A row (by its key and shard) that its files do not bear out, and in what."""

    shard: str
    key: str
    reason: str


def verify_archive(
    out: Source,
    *,
    on_row: Callable[[Row, str | None], None] | None = None,
    backend: str | None = None,
    poisoner: Poisoner | None = None,
    trust: bool | None = None,
    source: Source | Sequence[Source] | None = None,
    access: Access | None = None,
    limits: Limits = Limits(),
) -> list[Mismatch]:
    """Measure every image of an output again, from its source's and its own bytes alone; what differs from its row.

    Checked: the hashes of both, and of the target; that an output decodes, has the source's size and alpha, and an
    untouched place where that is fully transparent; that it holds the budget; linf, LPIPS and latent distances; that
    every image of the source has one row, and every shard is finished.
    on_row: given each row with what is wrong with it. backend: what executes the networks, on the device that it takes;
        None: the recorded one. poisoner: instead of one of the recorded options, which name no encoder and no
        anchors that were given as objects.
    trust: whether the sources, targets and networks that the record names are opened, wherever they are; None: where
        this user's own run wrote it for this place. source: instead of the recorded one, as where that was a URL with
        a password. access, limits: as of `poison_archive`; by default access is the run's.

    Raises ShadeFastError where the record is not to be trusted.
    """
    storage, record = trusted(out, trust)
    options = record["options"]
    manifest = Manifest(storage)
    if poisoner is None:
        with fixed_plan():
            poisoner = Poisoner(recorded_options(options, backend))
    reader = Reader(limits, access or Access(**record.get("access", {})))
    layout = _layout(storage, options, reader, source)
    with Codecs(limits, 1) as codecs:
        targets = Targets(poisoner, options["target"], target_roots(layout, reader.access), reader, codecs)
        return _mismatches(manifest, layout, _Checker(poisoner, targets, codecs), on_row)


def _mismatches(
    manifest: Manifest, layout: Layout, checker: _Checker, on_row: Callable[[Row, str | None], None] | None
) -> list[Mismatch]:
    mismatches = []
    seen: set[bytes] = set()
    with fixed_plan():
        for shard in manifest.finished():
            for row, source, written in layout.pairs(manifest.rows(shard), manifest.out):
                reason = None
                identity = hashlib.sha256(f"{row.shard}\0{row.source}\0{row.index}".encode()).digest()[:8]
                if identity in seen:
                    reason = "has two rows"
                seen.add(identity)
                if row.output is not None and reason is None:
                    reason = checker.check(row, source, written)
                if reason is not None:
                    mismatches.append(Mismatch(shard, row.key, reason))
                if on_row is not None:
                    on_row(row, reason)
    for shard in manifest.open_shards():
        mismatches.append(Mismatch(shard, "", "is not finished; run the same again"))
    count = layout.count()
    if count is not None and not mismatches and count != len(seen):
        mismatches.append(Mismatch("", "", f"the source has {count} images, the output {len(seen)} rows"))
    return mismatches


def read_pairs(
    out: Source, *, trust: bool | None = None, source: Source | Sequence[Source] | None = None
) -> Iterator[tuple[Row, DecodedImage, DecodedImage]]:
    """The rows of an output that have an image, with the source's image and their own, decoded. Arguments:
    `verify_archive`'s.

    Raises ShadeFastError where no run has been, where the record is not to be trusted, and for an image that is gone or
    cannot be decoded.
    """
    storage, record = trusted(out, trust)
    manifest = Manifest(storage)
    limits = Limits()
    layout = _layout(storage, record["options"], Reader(limits, Access(**record.get("access", {}))), source)
    with Codecs(limits, 1) as codecs:
        for shard in manifest.finished():
            for row, read, written in layout.pairs(manifest.rows(shard), storage):
                if row.output is not None:
                    try:
                        data, output = read(), written()
                    except (OSError, KeyError, EOFError) as error:
                        raise ShadeFastError(
                            f"{row.key}: it, or its output {row.output}, cannot be read: {error}"
                        ) from error
                    yield row, codecs.decode(data, row.key), codecs.decode(output, row.output)


def trusted(out: Source, trust: bool | None) -> tuple[Storage, dict[str, Any]]:
    """An output and its record, whose names of files and networks may be followed. Raises ShadeFastError."""
    storage = Storage(out)
    record = _record(storage)
    if not (is_own(storage, record) if trust is None else trust):
        raise ShadeFastError(
            f"{storage.url}: its record was not written by a run of yours for this place, and names what lies outside "
            f"of it: {', '.join(map(str, record['options'].get('source', [])))}; give --trust-record to open that, or "
            "run the same again to make it yours"
        )
    storage.key = url_key(storage)
    return storage, record


class _Checker:
    def __init__(self, poisoner: Poisoner, anchor: Targets, codecs: Codecs) -> None:
        self.poisoner, self.anchor, self.codecs = poisoner, anchor, codecs

    def check(self, row: Row, source: Callable[[], bytes], written: Callable[[], bytes]) -> str | None:
        try:
            return next(self._differences(row, source, written), None)
        except Exception as error:  # whatever a damaged tar or table makes its reader raise
            return str(error) or type(error).__name__

    def _differences(self, row: Row, source: Callable[[], bytes], written: Callable[[], bytes]) -> Iterator[str]:
        data, output = source(), written()
        for what, content, recorded in (
            ("source", data, row.source_sha256),
            ("output", output, row.output_sha256),
        ):
            if hashlib.sha256(content).hexdigest() != recorded:
                yield f"its {what} has another sha256 than recorded"
        clean, shown = self.codecs.decode(data, row.key), self.codecs.decode(output, row.output or row.key)
        if clean.pixels.shape != shown.pixels.shape:
            yield f"its output has {shown.pixels.shape[1]}x{shown.pixels.shape[0]} pixels, its source others"
        if not shown.has_alpha_of(clean):
            yield "its alpha is changed"
        change = np.abs(clean.pixels.astype(np.int16) - shown.pixels)
        if clean.alpha is not None and change[clean.alpha == 0].any():
            yield "it is changed where it is fully transparent"
        levels, budget = int(change.max()), self.poisoner.options.budget
        if levels > budget.levels:
            yield f"linf {levels}/255 is over the budget"
        anchor = self.anchor(from_text(row.target or ""))
        if anchor.sha256 != row.target_sha256:
            yield f"its target {row.target} has another sha256 than recorded"
        before, after, lpips = self.poisoner.measure(clean.pixels, shown.pixels, anchor)
        if budget.lpips is not None and lpips is not None and lpips > budget.lpips:
            yield f"lpips {lpips:.4f} is over the budget"
        for name, measured in (
            ("linf", levels / 255),
            ("lpips", lpips),
            ("distance_before", before),
            ("distance_after", after),
        ):
            recorded = getattr(row, name)
            if (measured is None) != (recorded is None):
                yield f"{name} is {recorded} in the record, {measured} as measured"
            elif measured is not None and abs(measured - recorded) > max(ABSOLUTE, RELATIVE * abs(recorded)):
                yield f"{name} is {recorded:.6g} in the record, {measured:.6g} as measured"


def _layout(
    storage: Storage, options: dict[str, Any], reader: Reader, source: Source | Sequence[Source] | None
) -> Layout:
    """The source that an output comes from. source: instead of what the record names."""
    base = storage.root if storage.local else "."
    if source is None:
        for place in options["source"]:
            if is_hidden(place):
                raise ShadeFastError(f"{place}: the record does not hold what opens this URL; give the source again")
        source = [
            place if "://" in place else os.path.normpath(os.path.join(base, from_text(place)))
            for place in options["source"]
        ]
    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    written = "same" if options["output"] == "dummy" else options["output"]
    return open_layout(sources, storage, Output(written, options["quality"]), 1, reader)


def _record(storage: Storage) -> dict[str, Any]:
    record = read_run(storage)
    if record is None:
        raise ShadeFastError(f"{storage.url}: no run has been here; give the output of `shade-fast archive`")
    return record
