"""Image files to arrays and back. Loads no torch."""

from shade_fast.images.jpeg import JpegSettings
from shade_fast.images.read import (
    INPUT_FORMATS,
    INPUT_SUFFIXES,
    LARGEST_FILE,
    MAX_PIXELS,
    DecodedImage,
    ImageLike,
    UInt8Array,
    decode,
    is_image,
    name_of,
    read_file,
)
from shade_fast.images.write import OUTPUT_FORMATS, Output

__all__ = [
    "INPUT_FORMATS",
    "INPUT_SUFFIXES",
    "LARGEST_FILE",
    "MAX_PIXELS",
    "OUTPUT_FORMATS",
    "DecodedImage",
    "ImageLike",
    "JpegSettings",
    "Output",
    "UInt8Array",
    "decode",
    "is_image",
    "name_of",
    "read_file",
]
