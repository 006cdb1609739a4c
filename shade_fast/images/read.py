"""Image files to arrays and back: decoding that refuses by name what it would have to flatten, encoding that keeps
EXIF and XMP (without the pictures in them), an RGB ICC profile, orientation, resolution and alpha."""

from __future__ import annotations

import errno
import io
import math
import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from shade_fast.images.jpeg import JpegSettings
from shade_fast.images.previews import without_previews_exif, without_previews_xmp
from shade_fast.terms.errors import ShadeFastError

UInt8Array = npt.NDArray[np.uint8]
ImageLike = str | Path | Image.Image | UInt8Array

#: More pixels than this are refused as a decompression bomb; the engine holds about 60 bytes a pixel.
MAX_PIXELS = 100_000_000
#: Larger files are refused unread: no image within the limit of pixels takes as many bytes.
LARGEST_FILE = 2 << 30
#: What is read, in Pillow's names of formats.
INPUT_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
#: Endings of files that a folder is searched for.
INPUT_SUFFIXES = (".bmp", ".gif", ".jpg", ".jpeg", ".png", ".ppm", ".tif", ".tiff", ".webp")

_PLAIN_MODES = ("1", "L", "P", "RGB")
_ALPHA_MODES = ("LA", "PA", "RGBA", "RGBa")
_MODE_FIXES = {
    "CMYK": "a CMYK image; convert it to RGB with its own colour profile first",
    "YCbCr": "a YCbCr image; convert it to RGB first",
    "LAB": "a Lab image; convert it to RGB first",
    "HSV": "an HSV image; convert it to RGB first",
}
#: EXIF orientation -> how the stored pixels are turned upright, and how upright ones are turned back.
UPRIGHT = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_LEFT_RIGHT),
    3: (Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_180),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.FLIP_TOP_BOTTOM),
    5: (Image.Transpose.TRANSPOSE, Image.Transpose.TRANSPOSE),
    6: (Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_90),
    7: (Image.Transpose.TRANSVERSE, Image.Transpose.TRANSVERSE),
    8: (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270),
}
_EXIF_PREFIX = b"Exif\0\0"
#: The tags kept of a TIFF's directory; the others describe the layout of that one file.
_DESCRIPTIVE_TAGS = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Orientation,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """A decoded image: upright RGB pixels, and what has to be written back beside them.

    pixels: uint8 [H, W, 3], upright. alpha: uint8 [H, W], upright, or None. orientation: the EXIF tag, 1 to 8.
    format: Pillow's name of the file's format, None for an image that came from memory. jpeg: how a JPEG was made.
    previews: pictures inside the metadata that were removed: thumbnails and previews of what the file showed before.
    """

    name: str
    pixels: UInt8Array
    alpha: UInt8Array | None = None
    orientation: int = 1
    format: str | None = None
    exif: bytes | None = None
    icc_profile: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    jpeg: JpegSettings | None = None
    previews: int = 0

    def with_alpha(self, pixels: UInt8Array) -> UInt8Array:
        """`pixels` [H, W, 3] with this image's alpha as a fourth channel, where it has one."""
        return pixels if self.alpha is None else np.dstack([pixels, self.alpha])

    def has_alpha_of(self, other: DecodedImage) -> bool:
        """Whether both have the same alpha; a WebP file leaves out alpha that is opaque everywhere."""
        mine, theirs = (
            np.full(image.pixels.shape[:2], 255) if image.alpha is None else image.alpha for image in (self, other)
        )
        return np.array_equal(mine, theirs)


def is_image(name: str) -> bool:
    """Whether a file's name has an image's ending, and is not one of macOS's `._photo.jpg` files."""
    base = name.rpartition("/")[2]
    stem, dot, ending = base.rpartition(".")
    return f"{dot}{ending}".lower() in INPUT_SUFFIXES and stem.strip(".") != "" and not base.startswith("._")


def name_of(image: object) -> str:
    """What an image is called in results and messages: its path, or what it is."""
    if isinstance(image, Image.Image):
        filename = getattr(image, "filename", "")
        return os.fsdecode(filename) if filename and isinstance(filename, str | bytes | os.PathLike) else "PIL image"
    if isinstance(image, str | os.PathLike):
        return os.fsdecode(image)
    return "array" if isinstance(image, np.ndarray) else type(image).__name__


def decode(
    source: str | Path | bytes | Image.Image | UInt8Array, name: str | None = None, *, max_pixels: int = MAX_PIXELS
) -> DecodedImage:
    """Decode a path, an encoded file's bytes, a PIL image or a uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].

    Grey and palette images become RGB. Refused with a ShadeFastError that names the image, what it is and the fix:
    what cannot be read, animations, 16-bit and float images, CMYK and other colour spaces, and more than max_pixels.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, name or "array", max_pixels)
    if isinstance(source, Image.Image):
        return _from_pil(source, name or name_of(source), max_pixels)
    if isinstance(source, bytes):
        return _from_bytes(source, name or "bytes", max_pixels)
    if isinstance(source, str | Path):
        path = Path(source)
        try:
            data = read_file(path)
        except (OSError, ValueError) as error:  # ValueError: a path that cannot be one
            raise ShadeFastError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        return _from_bytes(data, name or str(path), max_pixels)
    raise ShadeFastError(f"an image is a path, bytes, a PIL image or a uint8 array; got {type(source).__name__}")


def read_file(path: str | os.PathLike[str], limit: int = LARGEST_FILE) -> bytes:
    """The bytes of a regular file.

    Raises OSError, also for what is no file (a pipe is not waited for) and for more than `limit` bytes; ValueError for
    a name that no file can have.
    """
    # Without the flag, opening a pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file")
    with open(descriptor, "rb") as file:  # noqa: PTH123
        size = status.st_size
        if size <= limit:
            data = file.read(size + 1)
            if len(data) > size:  # it grows, or its size is not reported
                data += file.read(limit + 1 - len(data))
            size = len(data)
    if size > limit:
        raise OSError(errno.EFBIG, f"{size} bytes; at most {limit} are read: --max image-bytes={size}")
    return data


def _from_bytes(data: bytes, name: str, max_pixels: int) -> DecodedImage:
    if not data:
        raise ShadeFastError(f"{name}: the file is empty; fetch it again")
    try:
        with warnings.catch_warnings():
            # `_refuse` alone judges the size.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=INPUT_FORMATS)
    except Image.DecompressionBombError as error:
        raise ShadeFastError(f"{name}: refused as a decompression bomb: {error}") from error
    except Exception as error:
        detail = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise ShadeFastError(
            f"{name}: damaged, or not an image that can be read{detail}; give one of {', '.join(INPUT_FORMATS)}"
        ) from error
    _refuse(picture, name, max_pixels)
    if _bits_per_sample(picture, data) > 8:
        raise ShadeFastError(f"{name}: a 16-bit image; convert it to 8 bits a channel first")
    return _from_pil(picture, name, max_pixels)


def _from_pil(picture: Image.Image, name: str, max_pixels: int) -> DecodedImage:
    _refuse(picture, name, max_pixels)
    try:
        # Before the orientation is read: Pillow turns a TIFF upright as it loads it, and takes the tag away.
        picture.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their parser stumbles over.
        raise ShadeFastError(f"{name}: the image is truncated or damaged ({error}); fetch it again") from error
    orientation, exif = _exif(picture)
    exif, in_exif = (None, 0) if exif is None else without_previews_exif(exif)
    xmp = picture.info.get("xmp")
    # A TIFF file's tag may be of any type.
    xmp, in_xmp = without_previews_xmp(xmp) if isinstance(xmp, bytes) else (None, 0)
    has_alpha = picture.mode in _ALPHA_MODES or "transparency" in picture.info
    upright = picture.convert("RGBA" if has_alpha else "RGB")
    if orientation in UPRIGHT:
        upright = upright.transpose(UPRIGHT[orientation][0])
    pixels = np.array(upright, dtype=np.uint8)
    icc_profile = picture.info.get("icc_profile")
    return DecodedImage(
        name=name,
        pixels=np.ascontiguousarray(pixels[..., :3]),
        alpha=np.ascontiguousarray(pixels[..., 3]) if has_alpha else None,
        orientation=int(orientation) if orientation in UPRIGHT else 1,
        format="JPEG" if picture.format == "MPO" else picture.format,
        exif=exif,
        icc_profile=icc_profile if isinstance(icc_profile, bytes) and icc_profile[16:20] == b"RGB " else None,
        xmp=xmp,
        dpi=_dpi(picture),
        jpeg=JpegSettings.of_file(picture),
        previews=in_exif + in_xmp,
    )


def _exif(picture: Image.Image) -> tuple[int, bytes | None]:
    try:
        exif = picture.getexif()
        orientation = exif.get(ExifTags.Base.Orientation, 1)
        if "exif" in picture.info:
            stored: bytes = picture.info["exif"]
            # WebP files hold EXIF without the prefix that JPEG's need.
            return orientation, stored if stored.startswith(_EXIF_PREFIX) else _EXIF_PREFIX + stored
        # Pillow reads an orientation from XMP too; it goes with the XMP, and other programs may not heed it there.
        from_xmp = "xmp" in picture.info and "Raw profile type exif" not in picture.info
        kept = Image.Exif()
        for tag in _DESCRIPTIVE_TAGS:
            if tag in exif and not (from_xmp and tag == ExifTags.Base.Orientation):
                kept[tag] = exif[tag]
        return orientation, kept.tobytes() if len(kept) else None
    except MemoryError:
        raise
    except Exception:  # A damaged EXIF block is no reason to leave the image unprotected; it cannot be carried over.
        return 1, None


def _dpi(picture: Image.Image) -> tuple[float, float] | None:
    try:
        horizontal, vertical = (float(value) for value in picture.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    sound = all(math.isfinite(value) and 0 < value < 65536 for value in (horizontal, vertical))
    return (horizontal, vertical) if sound else None


def _from_array(array: UInt8Array, name: str, max_pixels: int) -> DecodedImage:
    if array.dtype != np.uint8:
        raise ShadeFastError(f"{name}: dtype {array.dtype}; give uint8 values (0 to 255)")
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise ShadeFastError(f"{name}: shape {shape}; give [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]")
    if array.shape[0] * array.shape[1] > max_pixels:
        raise ShadeFastError(f"{name}: {array.shape[1]}x{array.shape[0]} pixels; at most {max_pixels:,} are handled")
    alpha = np.array(array[..., 3], order="C") if array.shape[2] == 4 else None
    pixels = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[..., :3]
    return DecodedImage(name=name, pixels=np.array(pixels, order="C"), alpha=alpha)


def _refuse(picture: Image.Image, name: str, max_pixels: int) -> None:
    if picture.width * picture.height > max_pixels:
        raise ShadeFastError(
            f"{name}: {picture.width}x{picture.height} pixels, refused as a decompression bomb; "
            f"at most {max_pixels:,} pixels are handled"
        )
    if picture.width * picture.height == 0:
        raise ShadeFastError(f"{name}: {picture.width}x{picture.height} pixels; leave this image out")
    try:
        # A phone's MPO is a JPEG with a depth or gain map behind it, which is left out.
        frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
    except Exception as error:  # Pillow counts by reading all of the file, and raises whatever it stumbles over.
        raise ShadeFastError(f"{name}: the image is truncated or damaged ({error}); fetch it again") from error
    if frames > 1:
        raise ShadeFastError(f"{name}: an animation of {frames} frames; extract the frames to be protected")
    if picture.mode.startswith(("I", "F")):
        raise ShadeFastError(
            f"{name}: a 16-bit or float image (mode {picture.mode}); convert it to 8 bits a channel first"
        )
    if picture.mode not in _PLAIN_MODES + _ALPHA_MODES:
        raise ShadeFastError(
            f"{name}: {_MODE_FIXES.get(picture.mode, f'mode {picture.mode}; convert it to RGB first')}"
        )


def _bits_per_sample(picture: Image.Image, data: bytes) -> int:
    """Bits a channel as stored; Pillow shows 16-bit RGB files as 8-bit ones, without a word."""
    if picture.format == "PNG":
        return data[24]
    if picture.format == "TIFF":
        bits = picture.tag_v2.get(258, (8,))  # type: ignore[attr-defined]
        return max(bits, default=8) if isinstance(bits, tuple) else int(bits)
    if picture.format == "PPM":
        # (raw mode, largest value) where the values are not plain bytes
        arguments = picture.tile[0].args  # type: ignore[attr-defined]
        return 16 if isinstance(arguments, tuple) and arguments[-1] > 255 else 8
    return 8
