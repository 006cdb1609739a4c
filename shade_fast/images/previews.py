"""Pictures inside a file's metadata: thumbnails and previews, which show the picture as it was, found and removed."""

from __future__ import annotations

import base64
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Span = tuple[int, int]

_PREFIX = b"Exif\0\0"
_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
#: bytes of one value of each of TIFF's types
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
#: tags that point to the directories of Exif, GPS and interoperability, and to those of other pictures
_PARTS, _OTHERS, _XMP = (0x8769, 0x8825, 0xA005), 0x014A, 0x02BC
#: tags of where a picture's bytes are and how many: a JPEG file's, strips', tiles'
_PICTURES = ((0x0201, 0x0202), (0x0111, 0x0117), (0x0144, 0x0145))
#: Far above what real files have: more is damage, which must not cost time.
_MOST_DIRECTORIES, _MOST_ENTRIES, _MOST_VALUES = 64, 1000, 4096

# Minolta's cameras overwrite the first byte of a preview.
_HEAD = re.compile(
    rb"\xff?\xd8\xff[\xc0-\xfe]|(?P<png>\x89PNG\r\n\x1a\n)\0\0\0\rIHDR|(?P<webp>RIFF)....WEBPVP8[ LX]", re.DOTALL
)
#: a JPEG's markers in its data, beside those that belong there
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_START, _END = 0xD8, 0xD9
#: JPEG's markers that have a length
_SEGMENTS = {*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE}

# UTF-16 has zeros between the letters.
_LETTERS = re.compile(rb"[A-Za-z0-9+/](?:\0{0,3}[A-Za-z0-9+/]){31}[A-Za-z0-9+/\0]*")
#: base64 up to its padding, across line breaks, escaped (&#xA;) or not
_BASE64 = re.compile(rb"[A-Za-z0-9+/\s\0&#;]+(?:=[\s\0]*){0,2}")
_SHORTEST = 200
_DECODED = re.compile(
    rb"\xff\xd8\xff[\xc0-\xfe]|\x89PNG\r\n\x1a\n|RIFF....WEBP|....ftyp|II[*+]\0|MM\0[*+]|GIF8[79]a", re.DOTALL
)


def without_previews_exif(exif: bytes) -> tuple[bytes, int]:
    """An EXIF block, with or without its `Exif` prefix, without the pictures in it, and how many there were.

    Thumbnails, the directories that describe them and JPEG, PNG and WebP files anywhere in the block become zeros where
    they stand, because maker notes hold offsets into it; only pictures at its end are cut off. All else stays, byte for
    byte. A block that cannot be read loses the files in it. Never raises.
    """
    block = _Block(exif)
    directories = block.directories()
    kept = [directory for directory in directories if directory.kept]
    tables = _merged([(0, block.base + 8), *(directory.span for directory in kept)] if kept else [])
    values = _merged([*tables, *(span for directory in kept for _, span in directory.values.values())])
    spans: list[Span] = []
    pointers: list[int] = []
    pictures = 0
    for directory in directories:
        shown = [span for span in block.pictures(directory) if not _overlap(values if directory.kept else tables, span)]
        if not shown:
            continue
        pictures += 1
        spans += shown
        if not directory.kept:
            own = (directory.span, *(span for _, span in directory.values.values()))
            spans += [span for span in own if not _overlap(values, span)]
            pointers += [directory.pointer] if directory.pointer else []
    declared = _merged(spans)
    for span in _streams(exif, values):
        pictures += not _overlap(declared, span)
        spans.append(span)
    packets = [directory.values[_XMP][1] for directory in kept[:1] if _XMP in directory.values]
    encoded = [(start + first, start + last) for start, end in packets for first, last in _encoded(exif[start:end])]
    pictures += len(encoded)
    if not pictures:
        return exif, 0
    clean = bytearray(exif)
    spans = _merged(spans)
    for start, end in spans:
        clean[start:end] = bytes(len(clean[start:end]))
    for start, end in encoded:
        clean[start:end] = b" " * (end - start)
    for pointer in pointers:
        clean[pointer : pointer + 4] = bytes(4)
    if kept and spans and spans[-1][1] >= len(clean):
        del clean[max(spans[-1][0], values[-1][1]) :]
    return bytes(clean), pictures


def without_previews_xmp(xmp: bytes) -> tuple[bytes, int]:
    """An XMP packet without the pictures in it, as base64: JPEG, PNG, WebP, HEIF, AVIF, TIFF and GIF; and how many
    there were. The elements and attributes that held them are empty. Never raises."""
    spans = list(_encoded(xmp))
    starts, ends = [0, *(end for _, end in spans)], [*(start for start, _ in spans), len(xmp)]
    return b"".join(xmp[start:end] for start, end in zip(starts, ends, strict=True)), len(spans)


@dataclass(frozen=True)
class _Directory:
    """span: its bytes, with the pointer to the next one. values: by tag, the bytes of one number, and where they are.
    kept: whether it describes the picture that the file shows. pointer: where the offset of this one is, at the end of
    the one before; 0 where a tag leads here."""

    span: Span
    values: dict[int, tuple[int, Span]]
    kept: bool
    pointer: int


class _Block:
    """An EXIF block, read as far as it makes sense."""

    def __init__(self, data: bytes) -> None:
        self.data, self.base = data, 0
        while data.startswith(_PREFIX, self.base):
            self.base += len(_PREFIX)
        self.order = _ORDERS.get(data[self.base : self.base + 4])

    def directories(self) -> list[_Directory]:
        """All directories that can be reached; those to be kept come first, so that nothing else claims their bytes."""
        directories: list[_Directory] = []
        seen: set[int] = set()
        waiting = [(self._number(self.base + 4, 4), True, 0)] if self.order else []
        while waiting and len(seen) < _MOST_DIRECTORIES:
            offset, kept, pointer = waiting.pop(0)
            directory = None if offset in seen else self._directory(offset, kept, pointer)
            seen.add(offset)
            if directory is None:
                continue
            if kept:
                waiting[:0] = [(place, True, 0) for tag in _PARTS for place in self._numbers(directory, tag)[:1]]
            waiting += [(place, False, 0) for place in self._numbers(directory, _OTHERS)[:_MOST_DIRECTORIES]]
            # No directory follows one below the first, though some writers leave out the zero that says so.
            if not (kept and directories):
                following = directory.span[1] - 4
                waiting.append((self._number(following, 4), False, following))
            directories.append(directory)
        return directories

    def pictures(self, directory: _Directory) -> Iterator[Span]:
        """Where the pictures are that a directory points to, as far as the block holds them."""
        for offsets, sizes in _PICTURES:
            for offset, size in zip(self._numbers(directory, offsets), self._numbers(directory, sizes), strict=False):
                start = self.base + offset
                end = min(start + size, len(self.data))
                if start < end:
                    yield start, end

    def _directory(self, offset: int, kept: bool, pointer: int) -> _Directory | None:
        start = self.base + offset
        count = self._number(start, 2)
        end = start + 2 + 12 * count
        if offset < 8 or not 0 < count <= _MOST_ENTRIES or end > len(self.data):
            return None
        values: dict[int, tuple[int, Span]] = {}
        for entry in range(start + 2, end, 12):
            size = _SIZES.get(self._number(entry + 2, 2), 0)
            length = size * self._number(entry + 4, 4)
            at = entry + 8 if length <= 4 else self.base + self._number(entry + 8, 4)
            if length and at + length <= len(self.data):
                values.setdefault(self._number(entry, 2), (size, (at, at + length)))
        return _Directory((start, end + 4), values, kept, pointer)

    def _number(self, position: int, size: int) -> int:
        """The number at a place; 0 where the block ends before."""
        raw = self.data[position : position + size]
        return int.from_bytes(raw, self.order or "big") if len(raw) == size else 0

    def _numbers(self, directory: _Directory, tag: int) -> list[int]:
        size, (start, end) = directory.values.get(tag, (4, (0, 0)))
        return [self._number(position, size) for position in range(start, min(end, start + size * _MOST_VALUES), size)]


def _streams(data: bytes, kept: list[Span]) -> Iterator[Span]:
    """Where JPEG, PNG and WebP files are. One that lacks its end stops at the next bytes that are kept."""
    visited = bytearray(len(data))
    position = 0
    while head := _HEAD.search(data, position):
        if head["png"]:
            end, whole = _png_end(data, head.end("png"))
        elif head["webp"]:
            size = data[head.end("webp") : head.end("webp") + 4]
            end = max(head.end(), head.end("webp") + 4 + int.from_bytes(size, "little"))
            end, whole = min(end, len(data)), end <= len(data)
        else:
            end, whole = _jpeg_end(data, head.end() - 2, visited)
        if end:
            behind = bisect_left(kept, (head.start() + 1, 0))
            yield head.start(), end if whole or behind == len(kept) else min(end, kept[behind][0])
        position = end or head.end() - 2


def _png_end(data: bytes, position: int) -> tuple[int, bool]:
    """Where a PNG file ends whose first chunk is at `position`, and whether its last one is there."""
    while position + 12 <= len(data):
        kind = data[position + 4 : position + 8]
        if not kind.isalpha():
            return position, False
        position += 12 + int.from_bytes(data[position : position + 4], "big")
        if kind == b"IEND":
            break
    return min(position, len(data)), position <= len(data) and kind == b"IEND"


def _jpeg_end(data: bytes, position: int, visited: bytearray) -> tuple[int, bool]:
    """Where a JPEG file ends whose first marker is at `position`, and whether its end is there; 0 for what is none.

    `visited` marks bytes that were looked at and lead to no image, so that each costs its time once.
    """
    while data[position : position + 2] != b"\xff\xda":
        if position + 4 > len(data) or visited[position] or data[position] != 0xFF:
            return 0, False
        visited[position] = 1
        if data[position + 1] == 0xFF:
            position += 1
        elif data[position + 1] in _SEGMENTS:
            position += 2 + max(2, int.from_bytes(data[position + 2 : position + 4], "big"))
        else:
            return 0, False
    size, components = int.from_bytes(data[position + 2 : position + 4], "big"), data[position + 4 : position + 5]
    if not b"\1" <= components <= b"\4" or size != 6 + 2 * components[0]:
        return 0, False
    position, whole = position + 2 + size, True
    while marker := _MARKER.search(data, position):
        kind = marker[0][1]
        if kind == _END:
            return marker.end(), whole
        if kind == _START:
            return marker.start(), False
        position = marker.end()
        if kind in _SEGMENTS:
            position += int.from_bytes(data[position : position + 2], "big")
        else:
            whole = False
    return len(data), False


def _encoded(text: bytes) -> Iterator[Span]:
    """Where base64 of pictures is."""
    position = 0
    for letters in _LETTERS.finditer(text):
        start = letters.start()
        if start < position:
            continue
        first = letters[0][:128].replace(b"\0", b"")[:32]
        run = _BASE64.match(text, start) if _DECODED.match(base64.b64decode(first)) else None
        if run is not None and run.end() - start >= _SHORTEST:
            yield run.span()
            position = run.end()


def _merged(spans: Iterable[Span]) -> list[Span]:
    """The same bytes, in order, in spans that do not touch."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _overlap(merged: list[Span], span: Span) -> bool:
    behind = bisect_left(merged, (span[1], 0))
    return behind > 0 and merged[behind - 1][1] > span[0]
