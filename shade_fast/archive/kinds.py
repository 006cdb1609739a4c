"""The kinds of archives, and which of them a run's sources are."""

from __future__ import annotations

import os
from collections.abc import Sequence

from shade_fast.archive.folders import Folder
from shade_fast.archive.layout import Layout
from shade_fast.archive.options import Source
from shade_fast.archive.reading import Reader
from shade_fast.archive.storage import TABLE_SUFFIXES, Storage
from shade_fast.archive.tables import Tables
from shade_fast.archive.tars import TAR_SUFFIXES, Tars
from shade_fast.images import Output
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.limits import Access


def open_layout(sources: Sequence[Source], out: Storage, output: Output, shard_size: int, reader: Reader) -> Layout:
    """What the sources are, by their names. Raises ShadeFastError for none, and for kinds that are mixed."""
    if not sources:
        raise ShadeFastError("source: none was given")
    texts = [os.fspath(source) for source in sources]
    kinds = {
        "tars"
        if text.lower().endswith(TAR_SUFFIXES)
        else "tables"
        if text.lower().endswith(TABLE_SUFFIXES)
        else "folders"
        for text in texts
    }
    if len(kinds) > 1:
        raise ShadeFastError(f"source: {', '.join(sorted(kinds))} together; protect them into outputs of their own")
    if "tars" in kinds:
        return Tars(texts, out, output, reader.limits)
    if "tables" in kinds:
        return Tables(texts, out, output, reader)
    return Folder(sources, out, output, shard_size, reader)


def target_roots(layout: Layout, access: Access) -> list[str]:
    """Folders that a row's target may lie in: its table's, and those that the run allows."""
    tables = layout.tables.values() if isinstance(layout, Tables) else ()
    return [*(os.path.dirname(table.storage.root) for table in tables if table.storage.local), *access.paths]
