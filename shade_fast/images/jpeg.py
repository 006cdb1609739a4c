"""How a JPEG file was made, read from the file: its quantisation tables, chroma subsampling and scan order."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image, JpegImagePlugin

#: Factors for the tables, tried in turn where a file loses too much; 0 is quality 100.
RAISES = (0.25, 0.0)

Table = tuple[int, ...]


@dataclass(frozen=True)
class JpegSettings:
    """A JPEG encoder's settings. luminance, chrominance: quantisation tables, 64 divisors each, row by row.
    subsampling: of chroma: 0 none (4:4:4), 1 halved across (4:2:2), 2 halved both ways (4:2:0)."""

    luminance: Table
    chrominance: Table
    subsampling: int = 0
    progressive: bool = False

    @classmethod
    def of_quality(cls, quality: int) -> JpegSettings:
        """The standard's tables at a quality from 1 to 100, chroma at full resolution."""
        return cls(*_tables(quality))

    @classmethod
    def of_file(cls, picture: Image.Image) -> JpegSettings | None:
        """The settings of an opened JPEG file; None for another format, and for tables of another count or precision.

        A grey file's one table serves chrominance too. A subsampling without a name (4:1:1 and others) becomes 4:2:0.
        """
        if not isinstance(picture, JpegImagePlugin.JpegImageFile):
            return None
        tables = [tuple(int(value) for value in table) for _, table in sorted(picture.quantization.items())]
        if not tables or any(len(table) != 64 or max(table) > 255 or min(table) < 1 for table in tables[:2]):
            return None
        subsampling = JpegImagePlugin.get_sampling(picture) if picture.mode != "L" else 0
        progressive = bool(picture.info.get("progressive"))
        return cls(
            tables[0], tables[min(1, len(tables) - 1)], subsampling if subsampling in (0, 1, 2) else 2, progressive
        )

    @property
    def quality(self) -> int:
        """The quality, 1 to 100, whose standard tables are nearest to these."""
        tables = self.luminance + self.chrominance

        def difference(quality: int) -> int:
            luminance, chrominance = _tables(quality)
            return sum(abs(a - b) for a, b in zip(tables, luminance + chrominance, strict=True))

        return min(range(100, 0, -1), key=difference)

    def raised(self) -> Iterator[JpegSettings]:
        """These settings, then finer and finer ones: smaller divisors, and chroma at full resolution."""
        yield self
        for factor in RAISES:
            luminance, chrominance = (
                tuple(max(1, round(factor * value)) for value in table) for table in (self.luminance, self.chrominance)
            )
            yield replace(self, luminance=luminance, chrominance=chrominance, subsampling=0)

    def options(self) -> dict[str, object]:
        """What Pillow's encoder is given."""
        return {
            "qtables": [list(self.luminance), list(self.chrominance)],
            "subsampling": self.subsampling,
            "progressive": self.progressive,
        }


@functools.cache
def _tables(quality: int) -> tuple[Table, Table]:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality)
    buffer.seek(0)
    written = JpegImagePlugin.JpegImageFile(buffer)
    luminance, chrominance = (tuple(int(value) for value in written.quantization[index]) for index in (0, 1))
    return luminance, chrominance
