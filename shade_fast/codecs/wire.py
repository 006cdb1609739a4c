"""Requests to a codec's process and its answers, as JSON and raw bytes: nothing that is read can run code."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from shade_fast.images import DecodedImage, Output
from shade_fast.images.jpeg import JpegSettings

#: Bytes of a message's JSON, which holds neither pixels nor files.
LONGEST = 1 << 20

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Request:
    """A file to decode, or an image to encode; of the latter, `pixels` are those that the file is to show."""

    name: str
    file: bytes | None = None
    image: DecodedImage | None = None
    output: Output | None = None
    jpeg: JpegSettings | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """The image, the file, or why there is none; none of these from a process that says that it is ready."""

    image: DecodedImage | None = None
    file: bytes | None = None
    refused: str | None = None


class Stream(Protocol):
    """What messages are read from; both raise EOFError where it ends too early."""

    def read(self, size: int) -> bytes: ...

    def fill(self, buffer: memoryview) -> None: ...


def message(value: Any) -> list[memoryview]:
    """The parts to send, in order, for a dataclass of dataclasses, tuples, uint8 arrays, bytes, text, numbers and None:
    the length of its JSON, the JSON, then the bytes and arrays, whose sizes the JSON holds."""
    buffers: list[memoryview] = []
    header = json.dumps(_plain(value, buffers)).encode()
    return [memoryview(len(header).to_bytes(8, "big")), memoryview(header), *buffers]


def receive(stream: Stream, kind: type[Value], room: float = math.inf) -> Value:
    """The value of that type that a `message` holds. room: the most bytes that its arrays and files may have together.

    Raises EOFError, and ValueError for anything but such a message.
    """
    length = int.from_bytes(stream.read(8), "big")
    if length > LONGEST:
        raise ValueError("a longer message than there are")
    left = room

    def sized(size: int) -> int:
        nonlocal left
        if type(size) is not int or not 0 <= size <= left:
            raise ValueError("no size, or a larger one than there may be")
        left -= size
        return size

    try:
        value: Value = _value(kind, json.loads(stream.read(length)), stream, sized)
    except (TypeError, LookupError, RecursionError) as error:
        raise ValueError("values of other types") from error
    return value


def _plain(value: Any, buffers: list[memoryview]) -> Any:
    if isinstance(value, bytes):
        buffers.append(memoryview(value))
        return len(value)
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8:
            raise TypeError(f"an array of {value.dtype}; give uint8")
        buffers.append(np.ascontiguousarray(value).reshape(-1).data)
        return value.shape
    if isinstance(value, tuple):
        return [_plain(item, buffers) for item in value]
    if dataclasses.is_dataclass(value):
        return {entry.name: _plain(getattr(value, entry.name), buffers) for entry in dataclasses.fields(value)}
    return value


def _value(hint: Any, plain: Any, stream: Stream, sized: Callable[[int], int]) -> Any:
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if plain is None:
            return None
        (hint,) = (argument for argument in arguments if argument is not types.NoneType)
        return _value(hint, plain, stream, sized)
    if origin is bytes:
        return stream.read(sized(plain))
    if origin is np.ndarray:
        if not isinstance(plain, list) or not all(type(side) is int and side > 0 for side in plain):
            raise TypeError("no shape")
        array = np.empty(sized(math.prod(plain)), np.uint8)
        stream.fill(array.data)
        return array.reshape(plain)
    if origin is tuple:
        kinds = arguments[:1] * len(plain) if arguments[-1] is Ellipsis else arguments
        return tuple(_value(kind, item, stream, sized) for kind, item in zip(kinds, plain, strict=True))
    if dataclasses.is_dataclass(origin):
        hints = typing.get_type_hints(origin)
        names = [entry.name for entry in dataclasses.fields(origin)]
        return hint(**{name: _value(hints[name], plain[name], stream, sized) for name in names})
    if type(plain) is not origin and not (origin is float and type(plain) is int):
        raise TypeError(f"{type(plain).__name__}, not {origin.__name__}")
    return origin(plain)
