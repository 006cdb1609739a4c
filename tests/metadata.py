"""Metadata made by hand, with another picture in it, and the search for that picture in a file."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Callable
from typing import Any

from PIL import Image

Entry = tuple[int, int, int, bytes]


def encoded(array: Any, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form, **options)
    return buffer.getvalue()


def shows(data: bytes, stream: bytes) -> bool:
    """Whether any 24 bytes of a JPEG's data, or of pixels, are in a file as they are, as base64 or as hexadecimal
    digits, or in what Pillow reads from it (compressed text, for example)."""
    picture = Image.open(io.BytesIO(data))
    picture.load()
    read = [value.encode() if isinstance(value, str) else value for value in picture.info.values()]
    all_of_it = b"\n".join([data, *(value for value in read if isinstance(value, bytes))])
    starts = range(24 * (stream.rfind(b"\xff\xda") // 24 + 1), len(stream) - 24, 24)
    assert len(starts) > 3
    pieces = [stream[start : start + 24] for start in starts]
    return any(form in all_of_it for piece in pieces for form in (piece, base64.b64encode(piece), piece.hex().encode()))


def table(order: str, at: int, entries: list[Entry], following: int = 0) -> bytes:
    """A directory that stands at `at`, with the longer values behind it. entries: tag, type, count, value."""
    behind = at + 2 + 12 * len(entries) + 4
    rows, values = b"", b""
    for tag, kind, count, value in entries:
        field = value.ljust(4, b"\0")
        if len(value) > 4:
            field = struct.pack(order + "I", behind + len(values))
            values += value + bytes(len(value) % 2)
        rows += struct.pack(order + "HHI", tag, kind, count) + field
    return struct.pack(order + "H", len(entries)) + rows + struct.pack(order + "I", following) + values


def jpeg_entries(order: str, stream: bytes) -> Callable[[int], list[Entry]]:
    return lambda at: [
        (0x0103, 3, 1, struct.pack(order + "H", 6)),
        (0x0201, 4, 1, struct.pack(order + "I", at)),
        (0x0202, 4, 1, struct.pack(order + "I", len(stream))),
    ]


def strip_entries(order: str, stream: bytes) -> Callable[[int], list[Entry]]:
    """An uncompressed thumbnail, in two strips."""
    half = len(stream) // 2
    return lambda at: [
        (0x0103, 3, 1, struct.pack(order + "H", 1)),
        (0x0111, 4, 2, struct.pack(order + "2I", at, at + half)),
        (0x0117, 3, 2, struct.pack(order + "2H", half, len(stream) - half)),
    ]


def block(
    order: str = "<",
    maker: bytes = b"a maker note",
    entries: Callable[[int], list[Entry]] | None = None,
    stream: bytes = b"",
    *,
    by_tag: bool = False,
    following: int = 0,
    more: tuple[Entry, ...] = (),
) -> bytes:
    """An EXIF block of orientation 6 and an artist, with a maker note, and behind it a directory of `entries` with
    `stream`: the next one after the first or, `by_tag`, one that the first's SubIFDs tag points to."""

    def first(exif_at: int, next_at: int) -> bytes:
        tags: list[Entry] = [
            (0x0112, 3, 1, struct.pack(order + "H", 6)),
            (0x013B, 2, 8, b"Someone\0"),
            *([(0x014A, 4, 1, struct.pack(order + "I", next_at))] if by_tag else []),
            *more,
            (0x8769, 4, 1, struct.pack(order + "I", exif_at)),
        ]
        return table(order, 8, tags, following or (0 if by_tag else next_at))

    exif_at = 8 + len(first(0, 0))
    exif = table(order, exif_at, [(0x927C, 7, len(maker), maker), (0x9003, 2, 20, b"2024:01:02 03:04:05\0")])
    next_at = exif_at + len(exif)
    head = b"Exif\0\0" + (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    if entries is None:
        return head + first(exif_at, 0) + exif
    at = next_at + len(table(order, next_at, entries(0)))
    return head + first(exif_at, next_at) + exif + table(order, next_at, entries(at)) + stream
