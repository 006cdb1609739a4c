"""The record of an archive: a row for every image, one parquet file for every shard, and the totals over them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shade_fast.archive.names import legible
from shade_fast.archive.storage import RECORD_FOLDER, Storage
from shade_fast.terms.text import redacted

STATS_NAME = "_stats.json"
PARTIAL = ".partial.parquet"
#: Rows of a parquet row group, and files of a folder of open work.
GROUP = 1000
#: Columns that are summed up: times of work, without that of duplicates, and sizes.
MILLISECONDS, BYTES = ("decode_ms", "optimize_ms", "encode_ms"), ("source_bytes", "output_bytes")


@dataclass(frozen=True)
class Row:
    """One image of a run. Names are text as `names.to_text` makes it; sizes in pixels, upright, and in bytes; `linf` in
    [0, 1] units; distances in latent units (an ensemble's relative to their start); None where nothing was measured.

    source: the file that the image is in, relative to the output where both are local. output: its name in the output,
    None where nothing was written. previews: pictures inside the file's metadata that were removed. quality,
    subsampling: a JPEG's, as written. duplicate_of: the key of the image with the same content whose result this is.
    target: as it was given; target_sha256: see `Anchor.sha256`. anchor: path of the anchor's image. encoder_distances:
    each encoder's, before and after. history: distance before each step. survival: a treatment and the share of the
    shift that it leaves. transient: whether what failed may succeed another time (a place that did not answer, a
    deadline, a lack of memory): `--retry-failed` tries it again.
    """

    key: str
    shard: str
    index: int
    source: str
    status: str
    output: str | None = None
    error: str | None = None
    concept: str | None = None
    target: str | None = None
    target_sha256: str | None = None
    anchor: str | None = None
    width: int = 0
    height: int = 0
    previews: int = 0
    source_format: str | None = None
    output_format: str | None = None
    quality: int | None = None
    subsampling: int | None = None
    source_bytes: int = 0
    output_bytes: int = 0
    source_sha256: str | None = None
    output_sha256: str | None = None
    duplicate_of: str | None = None
    linf: float | None = None
    lpips: float | None = None
    distance_before: float | None = None
    distance_after: float | None = None
    encoder_distances: tuple[tuple[float, float], ...] = ()
    steps: int = 0
    seed: int = 0
    decode_ms: float = 0.0
    optimize_ms: float = 0.0
    encode_ms: float = 0.0
    encoder: str = ""
    encoder_sha256: str | None = None
    perceptual: str | None = None
    perceptual_sha256: str | None = None
    backend: str = ""
    version: str = ""
    options_sha256: str = ""
    history: tuple[float, ...] = ()
    survival: tuple[tuple[str, float | None], ...] | None = None
    transient: bool = False

    def __post_init__(self) -> None:
        for name in ("error", "key", "target", "concept"):  # texts of others, which may hold a URL
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, redacted(value))
        # A table's concept, or an error that names a file, may hold bytes that are no text: parquet refuses them.
        for name in _TEXTS:
            value = getattr(self, name)
            if value is not None and not value.isascii():
                object.__setattr__(self, name, legible(value))

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Row:
        return cls.of(json.loads(data))

    @classmethod
    def of(cls, values: dict[str, Any]) -> Row:
        pairs = {name: values.get(name) for name in ("encoder_distances", "survival")}
        lists = {name: None if value is None else tuple(map(tuple, value)) for name, value in pairs.items()}
        return cls(**(values | lists | {"history": tuple(values["history"] or ())}))


_TEXTS = [one.name for one in dataclasses.fields(Row) if str(one.type).startswith("str")]
_TYPES = {
    "str": pa.string(),
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "tuple[float, ...]": pa.list_(pa.float32()),
    "tuple[tuple[float, float], ...]": pa.list_(pa.list_(pa.float64(), 2)),
    "tuple[tuple[str, float | None], ...]": pa.map_(pa.string(), pa.float64()),
}
SCHEMA = pa.schema([(one.name, _TYPES[str(one.type).removesuffix(" | None")]) for one in dataclasses.fields(Row)])


class Manifest:
    """The rows below an output: those of finished shards, and those of shards that are open.

    An open shard's rows are files of their own, each written before the image that it describes, so that a row whose
    image is there, in its recorded size, is done. An interruption gathers them in one `.partial.parquet` file.
    """

    def __init__(self, out: Storage, record: str = RECORD_FOLDER) -> None:
        """record: the folder below `out` that holds the rows."""
        self.out = out
        self.manifests, self.work = f"{record}/manifest", f"{record}/work"

    def finished(self) -> list[str]:
        """Names of finished shards."""
        names = self.out.names(self.manifests)
        return [name.removesuffix(".parquet") for name in names if not name.endswith(PARTIAL)]

    def open_shards(self) -> list[str]:
        """Names of shards that have rows and are not finished."""
        partial = {name.removesuffix(PARTIAL) for name in self.out.names(self.manifests) if name.endswith(PARTIAL)}
        return sorted((partial | set(self.out.folders(self.work))) - set(self.finished()))

    def rows(self, shard: str) -> Iterator[Row]:
        """A shard's rows, in order; those of an open one whether their images are there or not."""
        if self.out.size(f"{self.manifests}/{shard}.parquet") is not None:
            yield from self._read(f"{self.manifests}/{shard}.parquet")
            return
        rows: dict[int, Row] = {}
        if self.out.size(f"{self.manifests}/{shard}{PARTIAL}") is not None:
            rows = {row.index: row for row in self._read(f"{self.manifests}/{shard}{PARTIAL}")}
        for name in self._work(shard):
            row = Row.from_json(self.out.read(name))
            rows[row.index] = row
        yield from (rows[index] for index in sorted(rows))

    def all_rows(self) -> Iterator[Row]:
        for shard in sorted({*self.finished(), *self.open_shards()}):
            yield from self.rows(shard)

    def work_name(self, shard: str, index: int, ending: str = "json") -> str:
        return f"{self.work}/{shard}/{index // GROUP:06d}/{index:09d}.{ending}"

    def write_row(self, row: Row) -> None:
        self.out.write(self.work_name(row.shard, row.index), row.to_json())

    def write(self, shard: str, rows: Iterable[Row], *, whole: bool) -> None:
        """Write a shard's manifest: a finished one's, after which its open work is gone, or an open one's."""
        name = f"{self.manifests}/{shard}{'.parquet' if whole else PARTIAL}"
        with self.out.create(name) as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
            group: list[Row] = []
            for row in rows:
                group.append(row)
                if len(group) == GROUP:
                    writer.write_table(_table(group))
                    group = []
            writer.write_table(_table(group))
        if whole:
            self.out.remove_record(f"{self.work}/{shard}")
            self.out.remove_record(f"{self.manifests}/{shard}{PARTIAL}")
        else:
            for row_file in self._work(shard):
                self.out.remove_record(row_file)

    def reopen(self, shard: str, rows: Iterable[Row]) -> None:
        """Make a finished shard an open one that has these rows."""
        self.write(shard, rows, whole=False)
        self.out.remove_record(f"{self.manifests}/{shard}.parquet")

    def set_aside(self, folder: str) -> None:
        """Move all rows to another folder of the record, and forget their totals."""
        self.out.move_record(self.manifests, f"{folder}/manifest")
        self.out.move_record(self.work, f"{folder}/work")
        self.out.remove_file(STATS_NAME)

    def write_stats(self, record: dict[str, Any]) -> dict[str, Any]:
        """Write and return the totals over all rows. Tasks that end at the same time find each other's rows."""
        while True:
            before = self.out.names(self.manifests)
            stats = record | totals(self.all_rows()) | {"open_shards": self.open_shards()}
            self.out.write(STATS_NAME, (json.dumps(stats, indent=1) + "\n").encode())
            if self.out.names(self.manifests) == before:
                return stats

    def _read(self, name: str) -> Iterator[Row]:
        with self.out.open(name) as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=GROUP):
                yield from map(Row.of, batch.to_pylist())

    def _work(self, shard: str) -> list[str]:
        folders = [f"{self.work}/{shard}/{group}" for group in self.out.folders(f"{self.work}/{shard}")]
        return [f"{folder}/{name}" for folder in folders for name in self.out.names(folder) if name.endswith(".json")]


def read_stats(out: Storage) -> dict[str, Any]:
    """The totals that the last run has written; empty where none has."""
    if out.size(STATS_NAME) is None:
        return {}
    stats = json.loads(out.read(STATS_NAME))
    return stats if isinstance(stats, dict) else {}


def totals(rows: Iterable[Row]) -> dict[str, Any]:
    """Counts by status, and the figures over rows that have them."""
    statuses: Counter[str] = Counter()
    sums: dict[str, float] = dict.fromkeys(MILLISECONDS + BYTES, 0.0)
    ratios = 0.0
    worst: dict[str, float] = {}
    left: dict[str, list[float]] = {}
    duplicates = measured = 0
    for row in rows:
        statuses[row.status] += 1
        duplicates += row.duplicate_of is not None
        if row.duplicate_of is None:
            for name in MILLISECONDS:
                sums[name] += getattr(row, name)
        for name in BYTES:
            sums[name] += getattr(row, name)
        if row.status != "failed":
            for name in ("linf", "lpips"):
                if getattr(row, name) is not None:
                    worst[name] = max(worst.get(name, 0.0), getattr(row, name))
            for name, share in row.survival or ():
                if share is not None:
                    shares = left.setdefault(name, [0.0, 0])
                    shares[0] += share
                    shares[1] += 1
            if row.distance_before and row.distance_after is not None:
                measured += 1
                ratios += row.distance_after / row.distance_before
    return {
        "images": statuses.total(),
        **{status: statuses[status] for status in ("ok", "below_target", "failed")},
        "duplicates": duplicates,
        "mean_ratio": ratios / measured if measured else None,
        "largest_linf": worst.get("linf"),
        "largest_lpips": worst.get("lpips"),
        "survival": {name: total / count for name, (total, count) in left.items()},
        **{name: round(sums[name], 1) for name in MILLISECONDS},
        **{name: int(sums[name]) for name in BYTES},
    }


def finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity; the row's error says what happened."""
    return value if value is not None and math.isfinite(value) else None


def _table(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=SCHEMA)
