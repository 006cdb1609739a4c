"""The row of an image in an archive's record: its columns, and what they may hold."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from shade_fast.archive.names import legible
from shade_fast.terms.text import redacted

#: What can become of an image.
STATUSES = ("ok", "below_target", "failed")


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

    @property
    def ratio(self) -> float | None:
        """The share of the latent distance that is left; None where it was not measured."""
        if self.status == "failed" or not self.distance_before or self.distance_after is None:
            return None
        return finite(self.distance_after / self.distance_before)

    def checked(self) -> Row:
        """The row, once each value is known to be of its column's type; figures that are not finite are None.

        Raises ValueError for a row that no run writes.
        """
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r:.80}")
        figures: dict[str, Any] = {}
        for name, kind in _COLUMNS.items():
            value = getattr(self, name)
            if not (_is_of(kind.removesuffix(" | None"), value) or (value is None and kind.endswith("None"))):
                raise ValueError(f"{name} {value!r:.80}")
            if kind == "float | None":
                figures[name] = finite(value)
        return dataclasses.replace(self, **figures)

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


#: Column -> its type, as `Row` has it.
_COLUMNS = {column.name: str(column.type) for column in dataclasses.fields(Row)}
_TEXTS = [name for name, kind in _COLUMNS.items() if kind.startswith("str")]
_TYPES = {
    "str": pa.string(),
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "tuple[float, ...]": pa.list_(pa.float32()),
    "tuple[tuple[float, float], ...]": pa.list_(pa.list_(pa.float64(), 2)),
    "tuple[tuple[str, float | None], ...]": pa.map_(pa.string(), pa.float64()),
}
SCHEMA = pa.schema([(name, _TYPES[kind.removesuffix(" | None")]) for name, kind in _COLUMNS.items()])


def finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity; the row's error says what happened."""
    return value if value is not None and math.isfinite(value) else None


def _is_of(kind: str, value: Any) -> bool:
    """Whether a value is of a column's type, by its name."""
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63
    if kind == "float":
        return isinstance(value, float) or _is_of("int", value)
    if kind == "tuple[tuple[str, float | None], ...]":
        return all(_is_of("str", name) and (share is None or _is_of("float", share)) for name, share in value or ())
    if kind.startswith("tuple[tuple["):
        return all(_is_of("float", figure) for figures in value for figure in figures)
    if kind.startswith("tuple["):
        return all(_is_of("float", figure) for figure in value)
    return isinstance(value, {"str": str, "bool": bool}[kind])
