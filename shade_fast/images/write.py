"""Images to files: encoding that keeps EXIF and XMP (without the pictures in them), an RGB ICC profile, orientation,
resolution and alpha."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from PIL import Image, PngImagePlugin

from shade_fast.images.jpeg import JpegSettings
from shade_fast.images.read import INPUT_SUFFIXES, UPRIGHT, DecodedImage, UInt8Array
from shade_fast.terms.checks import whole
from shade_fast.terms.errors import ShadeFastError

#: What is written, with the ending of the file's name.
OUTPUT_FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


_LARGEST_SIDES = {"jpeg": 65500, "webp": 16383}


@dataclass(frozen=True)
class Output:
    """How files are written. format: `png` and `webp` (lossless), `jpeg`, or `same` (the source's, where it is one of
    these, else png). quality: JPEG's, 1 to 100, with chroma at full resolution; None keeps a JPEG source's own tables
    and subsampling, and is 98 for other sources. It is the quality to begin with: see `attempts`.

    Raises ShadeFastError for an unknown format, a quality outside its range, and one for a format without loss.
    """

    format: str = "png"
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.format != "same" and self.format not in OUTPUT_FORMATS:
            raise ShadeFastError(f"output format {self.format!r}: give one of same, {', '.join(OUTPUT_FORMATS)}")
        if self.quality is None:
            return
        quality = whole(self.quality)
        if quality is None or not 1 <= quality <= 100:
            raise ShadeFastError(f"quality={self.quality!r}: give a whole number from 1 to 100")
        if self.format in ("png", "webp"):
            raise ShadeFastError(
                f"quality={quality}: {self.format} is written lossless; leave it out, or give output jpeg"
            )
        object.__setattr__(self, "quality", quality)

    def format_of(self, source_format: str | None) -> str:
        """The format written for a source in `source_format` (Pillow's name)."""
        if self.format != "same":
            return self.format
        same = (source_format or "").lower()
        return same if same in OUTPUT_FORMATS else "png"

    def name_of(self, name: str) -> str:
        """The name of the file written for one of this name (a path with slashes), whatever that one holds.

        An ending that names the format already is kept, .jpeg for example; `same` keeps those of all formats written.
        """
        suffix = PurePosixPath(name).suffix
        written = OUTPUT_FORMATS.get(self.format, ".png")
        kept = (".jpeg", *OUTPUT_FORMATS.values()) if self.format == "same" else (written, f".{self.format}")
        if suffix.lower() in kept or (self.format == "same" and suffix.lower() not in INPUT_SUFFIXES):
            return name
        return (name.removesuffix(suffix) if suffix.lower() in INPUT_SUFFIXES else name) + written

    def is_lossy(self, image: DecodedImage) -> bool:
        return self.format_of(image.format) == "jpeg"

    def attempts(self, image: DecodedImage) -> list[JpegSettings | None]:
        """How to encode an image, and what to try where that breaks the budget or loses the shift; [None]: no loss."""
        if not self.is_lossy(image):
            return [None]
        first = image.jpeg if self.quality is None else None
        return list((first or JpegSettings.of_quality(self.quality or 98)).raised())

    def check(self, image: DecodedImage) -> None:
        """Raise ShadeFastError where the format cannot hold what the image has."""
        if image.alpha is not None and self.is_lossy(image):
            raise ShadeFastError(f"{image.name}: has alpha, which JPEG cannot hold; write png or webp")
        written = self.format_of(image.format)
        height, width = image.pixels.shape[:2]
        largest = _LARGEST_SIDES.get(written)
        if largest is not None and max(height, width) > largest:
            raise ShadeFastError(f"{image.name}: {width}x{height}; {written} holds at most {largest} a side; write png")

    def encode(self, image: DecodedImage, pixels: UInt8Array, jpeg: JpegSettings | None = None) -> bytes:
        """The bytes of a file that shows `pixels` (uint8 [H, W, 3], upright) and keeps the rest of `image`.

        jpeg: one of `attempts`, by default the first. The pixels are stored turned as the source's were, beside its
        orientation tag.
        """
        self.check(image)
        picture = Image.fromarray(image.with_alpha(pixels))
        if image.orientation in UPRIGHT:
            picture = picture.transpose(UPRIGHT[image.orientation][1])
        formats: dict[str, dict[str, Any]] = {
            "png": {"format": "PNG"},
            "webp": {"format": "WEBP", "lossless": True, "exact": True},
            "jpeg": {"format": "JPEG"},
        }
        options = formats[self.format_of(image.format)]
        if options["format"] == "JPEG":
            settings = jpeg or self.attempts(image)[0]
            options |= settings.options() if settings is not None else {}
        if image.exif is not None:
            options["exif"] = image.exif
        if image.icc_profile is not None:
            options["icc_profile"] = image.icc_profile
        if image.dpi is not None and options["format"] != "WEBP":
            options["dpi"] = image.dpi
        if image.xmp is not None and options["format"] == "PNG":
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_itxt("XML:com.adobe.xmp", image.xmp.decode("utf-8", "replace"))
        elif image.xmp is not None:
            options["xmp"] = image.xmp
        buffer = io.BytesIO()
        try:
            picture.save(buffer, **options)
        except Exception as error:  # Pillow's encoders raise whatever they stumble over: EXIF too long for JPEG, ...
            raise ShadeFastError(
                f"{image.name}: cannot be written as {options['format']}: {error}; write png"
            ) from error
        return buffer.getvalue()
