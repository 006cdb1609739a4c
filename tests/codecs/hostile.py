"""Small files that cost a decoder much, as others make them on purpose."""

from __future__ import annotations

import io
import struct

from PIL import Image

ENTRIES = 65535
#: tag, value: an 8x8 grey picture
PICTURE = ((256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, 64))


def tiff(directories: int) -> bytes:
    """A TIFF file whose directories of 65535 entries overlap, each beginning an entry after the one before.

    A directory's count is the upper half of an entry's value, and the place of the next one an entry's tag and type.
    """
    entries = [(40000, 0)] * (ENTRIES - len(PICTURE)) + list(PICTURE)
    body = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, ENTRIES) for tag, value in entries)
    places = [8 + 12 * index for index in range(1, directories)] + [0]
    ends = b"".join(struct.pack("<IIHH", place, 0, 0, ENTRIES) for place in places)
    return struct.pack("<2sHIH", b"II", 42, 8, ENTRIES) + body + ends


def jpeg(side: int, scans: int) -> bytes:
    """A progressive JPEG file whose last scan, some bytes for all of a one-coloured picture, is repeated."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    begin, end = data.rindex(b"\xff\xda"), len(data) - 2
    return data[:begin] + data[begin:end] * scans + data[end:]
