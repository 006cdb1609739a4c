"""A run's record as typed values, for who shows it: anyone may have written it, so every value is checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from shade_fast.terms.errors import ShadeFastError

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class RecordedEncoder:
    """An encoder that a run used. factor: pixels per latent."""

    spec: str = ""
    name: str = ""
    factor: int | None = None
    channels: int | None = None
    sha256: str | None = None

    @property
    def title(self) -> str:
        return self.name or self.spec or "unknown"


@dataclass(frozen=True)
class RecordedBudget:
    """linf in [0, 1] units, and LPIPS distance; None where the budget leaves one free."""

    linf: float | None = field(default=None, metadata={"most": 1})
    lpips: float | None = None


@dataclass(frozen=True)
class RecordedView:
    size: int | None = None


@dataclass(frozen=True)
class RecordedNetwork:
    name: str | None = None


@dataclass(frozen=True)
class RecordedOptions:
    """What a run was asked for, as `record.describe` has it, as far as it is shown."""

    encoder: tuple[RecordedEncoder, ...]
    target: str = ""
    optimizer: str = "unknown"
    steps: int | None = None
    seed: int | None = None
    budget: RecordedBudget = RecordedBudget()
    view: RecordedView = RecordedView()
    perceptual: RecordedNetwork = RecordedNetwork()
    backend: str = "unknown"
    device: str = "unknown"
    version: str = "unknown"


@dataclass(frozen=True)
class RecordedRun:
    """The record of a run, as `record.write_run` has it, as far as it is shown. versions: of libraries, by name."""

    options: RecordedOptions
    created: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LastRun:
    """How many images a run took, and in how many seconds."""

    images: int | None = None
    seconds: float | None = None

    @property
    def images_per_second(self) -> float | None:
        return self.images / self.seconds if self.images and self.seconds else None


@dataclass(frozen=True)
class RecordedStats:
    """The totals of an output, as `Manifest.write_stats` has them, as far as no row says them."""

    last_run: LastRun = LastRun()


def typed(kind: type[Kind], values: Any, place: str, name: str = "") -> Kind:
    """A JSON object as a dataclass; null, and what is not there, is the field's default.

    place: the object's file; name: the object's own there. Raises ShadeFastError, naming the field, for a value of
    another type.
    """
    if not isinstance(values, dict):
        raise _wrong(place, name, values, "an object")
    hints = get_type_hints(kind)
    given = {}
    for part in dataclasses.fields(kind):  # type: ignore[arg-type]
        value = _value(hints[part.name], values.get(part.name), place, f"{name}.{part.name}".lstrip("."))
        most = part.metadata.get("most")
        if most is not None and value is not None and not 0 <= value <= most:
            raise _wrong(place, f"{name}.{part.name}", value, f"a number from 0 to {most}")
        if value is not None:
            given[part.name] = value
    return kind(**given)


def _value(wanted: Any, value: Any, place: str, name: str) -> Any:
    """A value as a field's type has it; None for the field's default."""
    if get_origin(wanted) is tuple:
        if not isinstance(value, list):
            raise _wrong(place, name, value, "a list")
        kind = get_args(wanted)[0]
        return tuple(typed(kind, item, place, f"{name}[{index}]") for index, item in enumerate(value))
    if value is None:
        return None
    if dataclasses.is_dataclass(wanted):
        return typed(wanted, value, place, name)  # type: ignore[arg-type]
    if get_origin(wanted) is Mapping:
        if not isinstance(value, dict):
            raise _wrong(place, name, value, "an object")
        return {str(key): str(item) for key, item in value.items()}
    kinds = get_args(wanted) or (wanted,)
    if str in kinds:
        if not isinstance(value, str):
            raise _wrong(place, name, value, "a text")
        return value or None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(place, name, value, "a number")
    try:
        number = float(value)
    except OverflowError:
        raise _wrong(place, name, value, "a number of this size") from None
    if not math.isfinite(number):
        return None
    if int in kinds:
        if number < 0 or number != int(number):
            raise _wrong(place, name, value, "a whole number from 0")
        return int(number)
    return number


def _wrong(place: str, name: str, value: Any, wanted: str) -> ShadeFastError:
    return ShadeFastError(
        f"{place}: {name or 'the file'} is {repr(value)[:80]}, not {wanted}; fix it there or run `shade-fast archive` "
        "again"
    )
