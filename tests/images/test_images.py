from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin, TiffImagePlugin

from shade_fast import ShadeFastError
from shade_fast.images import MAX_PIXELS, DecodedImage, Output, decode, read_file

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
ORIENTATIONS = range(1, 9)


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def reopened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "Kamera"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FNumber] = 2.8
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    return exif.tobytes()


def png(header: tuple[int, int, int, int], rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file. header: width, height, bits a channel, colour type. rows: each with its filter byte."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    body = [
        (b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)),
        *chunks,
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in body)


def tiff(width: int, height: int, bits: int, samples: int, photometric: int) -> bytes:
    """An uncompressed little-endian TIFF file of zeros."""
    size = width * height * samples * bits // 8
    entries = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, samples, bits), (259, 3, 1, 1)),
        *((262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, samples), (278, 4, 1, height), (279, 4, 1, size)),
    ]
    extra = 8 + size + 2 + 12 * len(entries) + 4
    if samples > 2:
        entries[2] = (258, 3, samples, extra)
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    start = struct.pack("<2sHI", b"II", 42, 8 + size)
    return start + bytes(size) + directory + bytes(4) + struct.pack("<H", bits) * samples


@pytest.fixture
def pixels(draw: Any) -> npt.NDArray[np.uint8]:
    array: npt.NDArray[np.uint8] = draw(24, 40)
    return array


@pytest.fixture
def picture(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_decodes_to_what_pillow_shows(form: str, picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "photo"
    path.write_bytes(encoded(picture, form))
    expected = np.asarray(reopened(path.read_bytes()).convert("RGB"))
    for source in (path, str(path), path.read_bytes(), Image.open(path)):
        image = decode(source)
        assert np.array_equal(image.pixels, expected)
        assert image.pixels.dtype == np.uint8
        assert (image.alpha, image.orientation, image.format) == (None, 1, form)
    assert decode(path).name == str(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "PA"])
def test_modes_of_eight_bits_or_fewer_become_rgb_and_alpha(mode: str, picture: Image.Image) -> None:
    alpha = Image.linear_gradient("L").resize(picture.size)
    if mode == "PA":
        converted = picture.convert("P").convert("PA")
    elif mode in ("LA", "RGBA"):
        converted = picture.convert(mode)
        converted.putalpha(alpha)
    else:
        converted = picture.convert(mode)
    image = decode(converted)
    assert np.array_equal(image.pixels, np.asarray(converted.convert("RGBA"))[..., :3])
    if mode in ("LA", "RGBA"):
        assert image.alpha is not None
        assert np.array_equal(image.alpha, np.asarray(alpha))
    assert (image.alpha is None) == (mode in ("1", "L", "P"))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_small_bit_depths_of_png(bits: int) -> None:
    image = decode(png((8, 1, bits, 0), b"\0" + b"\xff" * bits))
    assert np.array_equal(image.pixels, np.full((1, 8, 3), 255))


def test_palette_with_transparency_keeps_it_as_alpha(picture: Image.Image) -> None:
    palette = picture.quantize(16)
    for transparency in (3, bytes(range(0, 256, 16))):
        data = encoded(palette, "PNG", transparency=transparency)
        image = decode(data)
        expected = np.asarray(reopened(data).convert("RGBA"))
        assert image.alpha is not None
        assert np.array_equal(image.alpha, expected[..., 3])
        assert len(np.unique(image.alpha)) > 1
        again = decode(Output("png").encode(image, image.pixels))
        assert np.array_equal(again.with_alpha(again.pixels), expected)


def test_colour_made_transparent_in_an_rgb_png_is_alpha() -> None:
    image = decode(png((2, 1, 8, 2), b"\0" + bytes([1, 2, 3, 4, 5, 6]), (b"tRNS", struct.pack(">HHH", 1, 2, 3))))
    assert image.alpha is not None
    assert image.alpha.tolist() == [[0, 255]]
    assert image.pixels.tolist() == [[[1, 2, 3], [4, 5, 6]]]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientations_are_shown_upright(form: str, orientation: int, picture: Image.Image) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(picture, form, exif=exif_of(orientation), **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert expected.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))
    assert np.array_equal(decode(data).pixels, expected)
    assert np.array_equal(decode(Image.open(io.BytesIO(data))).pixels, expected)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("written", ["png", "webp", "jpeg"])
def test_orientation_and_exif_are_kept_and_the_layout_too(
    written: str, form: str, orientation: int, picture: Image.Image, pixels: npt.NDArray[np.uint8]
) -> None:
    exif = exif_of(orientation)
    source = decode(encoded(picture, form, exif=exif))
    changed = 255 - source.pixels
    data = Output(written, 100 if written == "jpeg" else None).encode(source, changed)
    stored, again = reopened(data), decode(data)
    assert stored.size == picture.size
    assert again.orientation == orientation
    assert again.exif == exif
    assert again.pixels.shape == changed.shape
    assert np.abs(again.pixels.astype(int) - changed).max() <= (0 if written != "jpeg" else 6)


def test_a_tiff_keeps_what_describes_it(picture: Image.Image) -> None:
    tags = {ExifTags.Base.Make: "Kamera", ExifTags.Base.Copyright: "Someone"}
    exif = Image.Exif()
    exif.update(tags)
    image = decode(encoded(picture, "TIFF", exif=exif, dpi=(300, 300)))
    kept = reopened(Output("png").encode(image, image.pixels))
    assert {tag: kept.getexif()[tag] for tag in tags} == tags
    assert set(kept.getexif()) == set(tags)
    assert kept.info["dpi"] == pytest.approx((300, 300), abs=0.02)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("written", ["png", "webp", "jpeg"])
def test_profile_xmp_and_resolution_are_kept(written: str, form: str, picture: Image.Image) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/">é</x:xmpmeta>'.encode()
    options: dict[str, Any] = {"icc_profile": profile, "xmp": xmp, "dpi": (300, 150)}
    if form == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", options.pop("xmp").decode())
    image = decode(encoded(picture, form, **options))
    kept = reopened(Output(written).encode(image, image.pixels))
    assert kept.info["icc_profile"] == profile
    assert kept.info["xmp"] == xmp
    if "WEBP" not in (form, written.upper()):
        assert kept.info["dpi"] == pytest.approx((300, 150), abs=0.02)


@pytest.mark.parametrize("written", ["png", "webp", "jpeg"])
def test_an_orientation_in_xmp_alone_stays_there(written: str, picture: Image.Image) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    source = decode(encoded(picture, "JPEG", xmp=xmp))
    data = Output(written).encode(source, source.pixels)
    assert "exif" not in reopened(data).info
    again = decode(data)
    assert (again.orientation, again.pixels.shape, again.xmp) == (6, (40, 24, 3), xmp)


def test_exif_that_a_png_holds_as_text_is_heeded(picture: Image.Image) -> None:
    exif = exif_of(6)
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{exif.hex()}\n")
    source = decode(encoded(picture, "PNG", pnginfo=text))
    assert source.pixels.shape == (40, 24, 3)
    again = decode(Output("png").encode(source, 255 - source.pixels))
    assert again.orientation == 6
    assert np.array_equal(again.pixels, 255 - source.pixels)


def test_a_grey_profile_is_not_put_on_an_rgb_file(picture: Image.Image) -> None:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = b"GRAY"
    assert decode(encoded(picture.convert("L"), "JPEG", icc_profile=bytes(profile))).icc_profile is None


@pytest.mark.parametrize("written", ["png", "webp"])
def test_lossless_formats_keep_every_pixel_even_under_transparency(written: str) -> None:
    random = np.random.default_rng(0)
    array = random.integers(0, 256, (33, 17, 4), dtype=np.uint8)
    array[:16, :, 3] = 0
    image = decode(array)
    again = decode(Output(written).encode(image, array[..., :3]))
    assert np.array_equal(again.with_alpha(again.pixels), array)
    opaque = decode(array[..., :3])
    assert np.array_equal(decode(Output(written).encode(opaque, opaque.pixels)).pixels, array[..., :3])


def test_jpeg_keeps_colour_at_full_resolution(pixels: npt.NDArray[np.uint8]) -> None:
    image = decode(pixels)
    data = Output("jpeg", quality=95).encode(image, pixels)
    assert reopened(data).layer[0][1:3] == reopened(data).layer[1][1:3]  # type: ignore[attr-defined]
    assert len(data) > len(Output("jpeg", quality=50).encode(image, pixels))


@pytest.mark.parametrize(
    ("form", "source", "written"),
    [
        *(("same", "JPEG", "jpeg"), ("same", "WEBP", "webp"), ("same", "PNG", "png"), ("same", "TIFF", "png")),
        *(("same", None, "png"), ("png", "JPEG", "png"), ("jpeg", "PNG", "jpeg")),
    ],
)
def test_format_written(form: str, source: str | None, written: str) -> None:
    assert Output(form).format_of(source) == written


def test_what_a_format_cannot_hold_is_refused(pixels: npt.NDArray[np.uint8]) -> None:
    transparent = replace(decode(np.dstack([pixels, pixels[..., 0]])), name="logo.png")
    with pytest.raises(ShadeFastError, match=r"logo.png: has alpha, which JPEG cannot hold; write png or webp"):
        Output("jpeg").check(transparent)
    for written, side in (("webp", 16384), ("jpeg", 65501)):
        wide = decode(np.zeros((1, side, 3), np.uint8), "wide.png")
        with pytest.raises(ShadeFastError, match=rf"wide.png: {side}x1; {written} holds at most \d+ a side; write png"):
            Output(written).check(wide)
        Output(written).check(decode(np.zeros((1, side - 1, 3), np.uint8)))


@pytest.mark.parametrize("excess", ["exif", "xmp"])
def test_what_an_encoder_refuses_names_the_file(excess: str, pixels: npt.NDArray[np.uint8]) -> None:
    image = replace(decode(pixels, "long.png"), **{excess: b"Exif\0\0" + bytes(70000)})
    with pytest.raises(ShadeFastError, match=r"long.png: cannot be written as JPEG: .* too long; write png"):
        Output("jpeg").encode(image, pixels)


@pytest.mark.parametrize("quality", [0, 101, 95.5, True, "95"])
def test_qualities_refused(quality: Any) -> None:
    with pytest.raises(ShadeFastError, match=r"quality=.* whole number from 1 to 100"):
        Output("jpeg", quality)


def test_a_quality_is_a_number_of_any_kind_and_for_jpeg() -> None:
    quality = Output("same", np.int64(90)).quality  # type: ignore[arg-type]
    assert (quality, type(quality)) == (90, int)
    for form in ("png", "webp"):
        with pytest.raises(ShadeFastError, match=rf"quality=90: {form} is written lossless; leave it out"):
            Output(form, 90)


def test_unknown_output_format() -> None:
    with pytest.raises(ShadeFastError, match=r"'tiff': give one of same, png, jpeg, webp"):
        Output("tiff")


ANIMATED = {
    "GIF": {},
    "WEBP": {"lossless": True},
    "PNG": {},
    "TIFF": {},
}


@pytest.mark.parametrize("form", ANIMATED)
def test_animations_are_refused(form: str, picture: Image.Image) -> None:
    data = encoded(picture, form, save_all=True, append_images=[ImageOps.invert(picture)], **ANIMATED[form])
    with pytest.raises(ShadeFastError, match=r"moving.gif: an animation of 2 frames; extract the frames"):
        decode(data, "moving.gif")


def test_a_phones_jpeg_with_a_second_picture_behind_it_is_a_jpeg(picture: Image.Image) -> None:
    second = picture.resize((8, 8)).convert("L")
    data = encoded(picture, "MPO", save_all=True, append_images=[second], exif=exif_of(6))
    assert Image.open(io.BytesIO(data)).format == "MPO"
    for source in (data, Image.open(io.BytesIO(data))):
        image = decode(source)
        assert (image.format, image.orientation, image.pixels.shape) == ("JPEG", 6, (40, 24, 3))
    again = reopened(Output("same").encode(image, image.pixels))
    assert (again.format, again.size) == ("JPEG", picture.size)


SIXTEEN_BITS = {
    "grey PNG": png((2, 1, 16, 0), b"\0" + bytes(4)),
    "RGB PNG": png((2, 1, 16, 2), b"\0" + bytes(12)),
    "grey and alpha PNG": png((2, 1, 16, 4), b"\0" + bytes(8)),
    "RGBA PNG": png((2, 1, 16, 6), b"\0" + bytes(16)),
    "grey TIFF": tiff(2, 2, 16, 1, 1),
    "RGB TIFF": tiff(2, 2, 16, 3, 2),
    "grey PPM": b"P5 2 1 65535\n" + bytes(4),
    "RGB PPM": b"P6 2 1 65535\n" + bytes(12),
    "plain RGB PPM": b"P3 1 1 1023\n1 2 3\n",
}


@pytest.mark.parametrize("kind", SIXTEEN_BITS)
def test_sixteen_bits_a_channel_are_refused_not_flattened(kind: str) -> None:
    Image.open(io.BytesIO(SIXTEEN_BITS[kind])).load()
    with pytest.raises(ShadeFastError, match=r"deep.png: a 16-bit.* image.*; convert it to 8 bits a channel first"):
        decode(SIXTEEN_BITS[kind], "deep.png")


def test_the_same_files_at_eight_bits_are_read() -> None:
    assert decode(png((2, 1, 8, 2), b"\0" + bytes(6))).pixels.shape == (1, 2, 3)
    assert decode(tiff(2, 2, 8, 3, 2)).pixels.shape == (2, 2, 3)
    assert decode(b"P6 2 1 255\n" + bytes(6)).pixels.shape == (1, 2, 3)


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_deep_pil_images_are_refused(mode: str) -> None:
    with pytest.raises(ShadeFastError, match=r"16-bit or float image .*convert it to 8 bits"):
        decode(Image.new(mode, (4, 4)))


OTHER_COLOURS = {
    "CMYK JPEG": (lambda: encoded(Image.new("CMYK", (8, 8)), "JPEG"), "CMYK"),
    "CMYK TIFF": (lambda: encoded(Image.new("CMYK", (8, 8)), "TIFF"), "CMYK"),
    "YCbCr TIFF": (lambda: encoded(Image.new("YCbCr", (8, 8)), "TIFF"), "YCbCr"),
    "Lab TIFF": (lambda: encoded(Image.new("LAB", (8, 8)), "TIFF"), "Lab"),
    "HSV": (lambda: Image.new("HSV", (8, 8)), "HSV"),
    "La": (lambda: Image.new("La", (8, 8)), "La"),
}


@pytest.mark.parametrize("kind", OTHER_COLOURS)
def test_other_colour_spaces_are_refused(kind: str) -> None:
    build, name = OTHER_COLOURS[kind]
    with pytest.raises(ShadeFastError, match=rf"print.jpg: .*{name}.*convert it to RGB"):
        decode(build(), "print.jpg")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_truncated_files_are_refused(form: str, share: float, picture: Image.Image, tmp_path: Path) -> None:
    data = encoded(picture, form)
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ShadeFastError) as caught:
        decode(path)
    assert str(path) in str(caught.value)
    assert "damaged" in str(caught.value)
    assert "object at 0x" not in str(caught.value)


@pytest.mark.parametrize("form", ["GIF", "TIFF"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_animations_cut_anywhere_are_refused(form: str, picture: Image.Image) -> None:
    data = encoded(picture, form, save_all=True, append_images=[ImageOps.invert(picture)])
    for length in range(0, len(data), 61):
        try:
            decode(data[:length], "cut.gif")
        except ShadeFastError as error:
            assert "cut.gif" in str(error)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("not an image\n" * 50)
    with pytest.raises(ShadeFastError, match=r"notes.jpg: damaged, or not an image that can be read; give one of BMP"):
        decode(text)
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(ShadeFastError, match=r"empty.png: the file is empty"):
        decode(empty)


@pytest.mark.parametrize("path", ["missing.jpg", "", "a" * 300 + ".jpg", "nul\0byte.jpg"])
def test_paths_that_cannot_be_read(path: str, tmp_path: Path) -> None:
    with pytest.raises(ShadeFastError, match=r": cannot be read: "):
        decode(tmp_path / path)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ShadeFastError, match=r"secret.jpg: cannot be read: Permission denied"):
        decode(tmp_path / "secret.jpg")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(ShadeFastError, match=rf"{path}: cannot be read: not a file"):
            decode(path)
    with pytest.raises(ShadeFastError, match=r"cannot be read: not a file"):
        decode(tmp_path)


def test_larger_files_than_may_be_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(bytes(1000))
    assert read_file(path, 1000) == bytes(1000)
    with pytest.raises(OSError, match=r"1000 bytes; at most 999 are read"):
        read_file(path, 999)
    os.truncate(path, 1 << 40)
    with pytest.raises(ShadeFastError, match=r"1099511627776 bytes; at most 2147483648 are read"):
        decode(path)
    # Says that it has none, as a file that grows does when it is looked at too early.
    assert read_file("/proc/self/cmdline")
    with pytest.raises(OSError, match=r"at most 3 are read"):
        read_file("/proc/self/cmdline", 3)


def test_the_most_pixels_are_the_callers(picture: Image.Image, pixels: npt.NDArray[np.uint8]) -> None:
    for source in (encoded(picture, "PNG"), picture, pixels):
        assert decode(source, max_pixels=960).pixels.shape == (24, 40, 3)
        with pytest.raises(ShadeFastError, match=r"40x24 pixels.*; at most 959"):
            decode(source, max_pixels=959)


def test_metadata_of_other_types_than_there_should_be(picture: Image.Image) -> None:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, kind, value in ((274, 3, 1), (700, 2, "text"), (34675, 4, 7)):
        directory.tagtype[tag] = kind
        directory[tag] = value
    image = decode(encoded(picture, "TIFF", tiffinfo=directory))
    assert (image.xmp, image.icc_profile) == (None, None)
    ratio = struct.pack("<2sHIHHHIIIII", b"II", 42, 8, 1, 274, 5, 1, 26, 0, 3, 1)
    image = decode(encoded(picture, "JPEG", exif=b"Exif\0\0" + ratio))
    assert (type(image.orientation), image.orientation) == (int, 3)


@pytest.mark.parametrize(("width", "height"), [(20000, 20000), (MAX_PIXELS // 1000 + 1, 1000)])
def test_decompression_bombs_are_refused_by_their_header(width: int, height: int) -> None:
    with pytest.raises(ShadeFastError, match=r"bomb.png: .*decompression bomb.* pixels"):
        decode(png((width, height, 8, 2), b""), "bomb.png")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 4000), (4000, 8)])
def test_extreme_shapes(height: int, width: int, draw: Any) -> None:
    array = draw(height, width)
    for written in ("png", "webp"):
        data = Output(written).encode(decode(array), array)
        assert np.array_equal(decode(data).pixels, array)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_does_not_lose_the_image(picture: Image.Image) -> None:
    for exif in (b"Exif\0\0nonsense", exif_of(6)[:20], b"Exif\0\0"):
        image = decode(encoded(picture, "JPEG", exif=exif))
        assert image.pixels.shape == (24, 40, 3)
        assert decode(Output("jpeg").encode(image, image.pixels)).pixels.shape == (24, 40, 3)


@pytest.mark.parametrize("orientation", [0, 9, 60000])
def test_orientations_that_mean_nothing_turn_nothing(orientation: int, picture: Image.Image) -> None:
    image = decode(encoded(picture, "JPEG", exif=exif_of(orientation)))
    assert (image.orientation, image.pixels.shape) == (1, (24, 40, 3))


@pytest.mark.parametrize("dpi", [(float("nan"), 72.0), (0, 0), (1e12, 1e12), "odd", (72,)])
def test_resolutions_that_mean_nothing_are_dropped(dpi: Any, picture: Image.Image) -> None:
    picture.info["dpi"] = dpi
    assert decode(picture).dpi is None


def test_arrays(pixels: npt.NDArray[np.uint8]) -> None:
    grey = pixels[..., 0]
    for array in (grey, grey[..., None]):
        assert np.array_equal(decode(array).pixels, np.repeat(grey[..., None], 3, axis=2))
    four = np.dstack([pixels, grey])
    image = decode(four)
    assert image.alpha is not None
    assert np.array_equal(image.with_alpha(image.pixels), four)
    flipped = pixels[::-1, ::2]
    assert np.array_equal(decode(flipped).pixels, flipped)
    assert decode(flipped).pixels.flags.c_contiguous


@pytest.mark.parametrize("source", ["array", "PNG", "RGBA"])
@pytest.mark.filterwarnings("error")
def test_decoded_pixels_are_the_callers_own(source: str, pixels: npt.NDArray[np.uint8]) -> None:
    pixels.flags.writeable = False
    picture = Image.fromarray(pixels)
    sources = {"array": pixels, "PNG": encoded(picture, "PNG"), "RGBA": picture.convert("RGBA")}
    image = decode(sources[source])
    torch.from_numpy(image.pixels).zero_()
    assert not image.pixels.any()
    assert pixels.any()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"dtype float32; give uint8 values"),
        (np.zeros((4, 4, 3), np.uint16), r"dtype uint16; give uint8 values"),
        (np.zeros((4, 4, 3), bool), r"dtype bool; give uint8 values"),
        (np.zeros((3, 4, 4), np.uint8)[..., :2], r"shape \(3, 4, 2\); give \[H, W\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"shape \(1, 4, 4, 3\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.broadcast_to(np.uint8(0), (20000, 20000, 3)), r"20000x20000 pixels; at most 100,000,000"),
    ],
)
def test_arrays_refused(array: npt.NDArray[Any], message: str) -> None:
    with pytest.raises(ShadeFastError, match=f"photo: {message}"):
        decode(array, "photo")


@pytest.mark.parametrize("source", [None, 5, torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_what_is_no_image_at_all(source: Any) -> None:
    with pytest.raises(ShadeFastError, match=r"an image is a path, bytes, a PIL image or a uint8 array; got "):
        decode(source)


def test_pil_images_that_turn_out_damaged(picture: Image.Image) -> None:
    lazy = Image.open(io.BytesIO(encoded(picture, "PNG")[:900]))
    with pytest.raises(ShadeFastError, match=r"PIL image: the image is truncated or damaged"):
        decode(lazy)
    closed = Image.open(io.BytesIO(encoded(picture, "PNG")))
    closed.close()
    with pytest.raises(ShadeFastError, match=r"PIL image: "):
        decode(closed)
    with pytest.raises(ShadeFastError, match=r"PIL image: 0x0 pixels"):
        decode(Image.new("RGB", (0, 0)))


def test_a_pil_image_is_named_by_its_file(picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    picture.save(path)
    for opened in (path, os.fsencode(path)):
        image = decode(Image.open(opened))
        assert isinstance(image, DecodedImage)
        assert image.name == str(path)
