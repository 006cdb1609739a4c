"""CSV files of rows: one writer and one reader for every kind."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TextIO

from benchmarks.environment import Environment


def write_rows(file: TextIO, rows: Iterable[Any], header: bool) -> None:
    """Append rows, dataclasses of one kind, as CSV; its header line first if asked for."""
    for number, row in enumerate(rows):
        own = [field.name for field in fields(row)]
        shared = {field.name for field in fields(Environment)}
        writer = csv.DictWriter(file, sorted(own, key=lambda name: name in shared), lineterminator="\n")
        if header and number == 0:
            writer.writeheader()
        writer.writerow({name: _text(value) for name, value in asdict(row).items()})
    file.flush()


@contextmanager
def csv_file(path: Path | None) -> Iterator[Any]:
    """A function that appends rows to the file at `path`, written anew; without a path it does nothing."""
    if path is None:
        yield lambda rows: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        yield lambda rows: write_rows(file, rows, header=file.tell() == 0)


def read_rows(path: Path) -> list[dict[str, str]]:
    """A file's rows by column. Raises ValueError where it has none."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return rows


def _text(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value
