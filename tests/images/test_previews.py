"""No thumbnail or preview of the unprotected picture leaves with the metadata, and nothing else of it is lost."""

from __future__ import annotations

import base64
import io
import random
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from shade_fast.images import Output, decode
from shade_fast.images.previews import without_previews_exif, without_previews_xmp
from tests.metadata import block, encoded, jpeg_entries, shows, strip_entries

ORDERS = ("<", ">")


@pytest.fixture
def clean(draw: Any) -> bytes:
    """The unprotected picture, small, as a JPEG file."""
    return encoded(draw(24, 32, 77), "JPEG", quality=80)


def read(exif: bytes) -> tuple[dict[int, Any], dict[int, Any], dict[int, Any]]:
    """The tags of the picture, of Exif and of the next directory, as Pillow reads them."""
    tags = Image.Exif()
    tags.load(exif)
    return dict(tags), tags.get_ifd(ExifTags.IFD.Exif), tags.get_ifd(ExifTags.IFD.IFD1)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("entries", [jpeg_entries, strip_entries])
def test_a_thumbnail_goes_with_its_directory(entries: Any, prefix: bool, order: str, clean: bytes) -> None:
    stream = clean if entries is jpeg_entries else random.Random(0).randbytes(3000)
    exif = block(order, entries=entries(order, stream), stream=stream)[0 if prefix else 6 :]
    tags, details, thumbnail = read(exif)
    assert thumbnail
    without, count = without_previews_exif(exif)
    assert count == 1
    assert stream[:8] not in without
    left, left_details, nothing = read(without)
    assert nothing == {}
    assert (left, left_details) == (tags, details)
    assert (left[ExifTags.Base.Orientation], left[ExifTags.Base.Artist]) == (6, "Someone")
    assert without == block(order)[0 if prefix else 6 :]
    assert without_previews_exif(without) == (without, 0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("entries", [jpeg_entries, strip_entries])
def test_pictures_that_a_tag_points_to_go(entries: Any, order: str, clean: bytes) -> None:
    stream = clean if entries is jpeg_entries else random.Random(0).randbytes(3000)
    exif = block(order, entries=entries(order, stream), stream=stream, by_tag=True)
    without, count = without_previews_exif(exif)
    assert count == 1
    assert stream[:8] not in without
    assert read(without)[:2] == read(exif)[:2]


@pytest.mark.parametrize("order", ORDERS)
def test_a_preview_in_a_maker_note_becomes_zeros_where_it_stands(order: str, clean: bytes, draw: Any) -> None:
    previews = {
        "baseline": clean,
        "progressive": encoded(draw(24, 32, 7), "JPEG", progressive=True),
        "png": encoded(draw(24, 32, 7), "PNG"),
        "webp": encoded(draw(24, 32, 7), "WEBP"),
        "webp lossless": encoded(draw(24, 32, 7), "WEBP", lossless=True),
        "first byte overwritten": b"\x02" + clean[1:],
        "with a thumbnail of its own": encoded(
            draw(24, 32, 7), "JPEG", exif=block(entries=jpeg_entries("<", clean), stream=clean)
        ),
    }
    before, behind = b"Maker\0\x01\x02" + bytes(range(256)), bytes(range(255, 0, -1))
    for name, stream in previews.items():
        exif = block(order, maker=before + stream + behind)
        without, count = without_previews_exif(exif)
        assert count == 1, name
        start = exif.index(before) + len(before) + (name == "first byte overwritten")
        expected = exif[:start] + bytes(exif.index(behind) - start) + exif[exif.index(behind) :]
        assert without == expected, name


def test_a_thumbnail_and_previews_are_counted_one_by_one(clean: bytes, draw: Any) -> None:
    other = encoded(draw(24, 32, 7), "JPEG")
    exif = block(
        maker=b"one" + other + b"two" + other[:-2] + clean, entries=jpeg_entries("<", clean), stream=clean + b"end"
    )
    without, count = without_previews_exif(exif)
    assert count == 4
    assert len(without) == len(exif)
    assert (b"\xff\xd8" in without, without[-3:]) == (False, b"end")


def test_a_preview_cut_short_does_not_take_what_is_behind_it(clean: bytes) -> None:
    """The maker note ends in the middle of the preview; the date stands behind it, and is no part of it."""
    exif = block(maker=b"Maker" + clean[:-100])
    without, count = without_previews_exif(exif)
    assert count == 1
    assert clean[-150:-100] not in without
    assert read(without)[1][ExifTags.Base.DateTimeOriginal] == "2024:01:02 03:04:05"


def test_a_thumbnail_cut_short_goes(clean: bytes) -> None:
    """As where 64 KiB of a JPEG's segment were not enough."""
    exif = block(entries=jpeg_entries("<", clean), stream=clean)[:-100]
    without, count = without_previews_exif(exif)
    assert count == 1
    assert clean[:10] not in without
    assert clean[-150:-100] not in without


@pytest.mark.parametrize("order", ORDERS)
def test_xmp_and_photoshop_resources_inside_exif(order: str, clean: bytes) -> None:
    packet = b'<x a="' + base64.b64encode(clean) + b'"><kept/></x>'
    resource = b"8BIM\x04\x0c\0\0" + struct.pack(">I", 28 + len(clean)) + bytes(28) + clean
    more = ((0x02BC, 1, len(packet), packet), (0x8649, 7, len(resource), resource))
    exif = block(order, more=more)
    without, count = without_previews_exif(exif)
    assert (count, len(without)) == (2, len(exif))
    assert clean[:10] not in without
    tags = read(without)[0]
    assert ElementTree.fromstring(tags[0x02BC]).attrib["a"].strip() == ""
    assert tags[0x8649][:40] == resource[:40]


@pytest.mark.parametrize("order", ORDERS)
def test_exif_without_previews_comes_back_as_it_was(order: str) -> None:
    small = Image.Exif()
    small[ExifTags.Base.Orientation] = 6
    small.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    resolution = [(0x011A, 5, 1, struct.pack(order + "2I", 72, 1))]
    noise = bytearray(random.Random(1).randbytes(50_000))
    for start in range(0, 50_000, 250):
        noise[start : start + 4] = (b"\xff\xd8\xff\xe1", b"\xff\xd8\xff\xdb", b"RIFF", b"\x89PNG")[start // 250 % 4]
    stale = ((0x0111, 4, 2, struct.pack(order + "2I", 8, 100)), (0x0117, 4, 2, struct.pack(order + "2I", 200, 60_000)))
    for exif in (
        b"",
        b"Exif\0\0",
        b"no EXIF at all",
        small.tobytes(),
        block(order),
        block(order, maker=bytes(noise)),
        block(order, entries=lambda _: resolution),  # a directory that has no thumbnail
        block(order, more=stale),  # of the TIFF file that this was made from
    ):
        assert without_previews_exif(exif) == (exif, 0)


@pytest.mark.parametrize("order", ORDERS)
def test_directories_that_lead_astray(order: str, clean: bytes) -> None:
    good = block(order, entries=jpeg_entries(order, clean), stream=clean)
    exif_at = good.index(b"a maker note") - 6 - 30
    for following in (8, exif_at, 1, 7, len(good), 2**32 - 1):
        exif = block(order, following=following)
        assert without_previews_exif(exif) == (exif, 0)
    loop = bytearray(good)
    thumbnail_at = struct.unpack(order + "I", loop[52:56])[0]
    pointer = 6 + thumbnail_at + 2 + 12 * 3
    loop[pointer : pointer + 4] = struct.pack(order + "I", thumbnail_at)
    assert without_previews_exif(bytes(loop))[1] == 1
    # A thumbnail said to be the picture's own directory takes nothing with it.
    exif = block(order, entries=lambda _: [(0x0201, 4, 1, bytes(4)), (0x0202, 4, 1, b"\xff\xff\xff\xff")])
    assert without_previews_exif(exif) == (exif, 0)
    # Where nothing can be read, the files go all the same.
    assert without_previews_exif(b"Exif\0\0nonsense" + clean) == (b"Exif\0\0nonsense" + bytes(len(clean)), 1)


def test_damage_raises_nothing(clean: bytes) -> None:
    chance = random.Random(2)
    good = block(maker=b"Maker" + clean, entries=jpeg_entries("<", clean), stream=clean)
    for _ in range(2000):
        bad = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            bad[chance.randrange(len(bad) if chance.random() < 0.5 else 150)] = chance.choice((0, 1, 8, 255, 42))
        cut = bytes(bad[: chance.randint(0, len(bad))])
        without, count = without_previews_exif(cut)
        assert len(without) <= len(cut)
        assert (count == 0) == (without == cut)


def maze() -> bytes:
    """Sixty directories, each of which points to all of them many times, and has all of the block as its XMP."""
    size = 2 + 12 * 5 + 4
    targets = 8 + 60 * size
    pointers = [(tag, 4, 4096, targets) for tag in (0x8769, 0x8825, 0xA005, 0x014A)]
    words = b"A " * 2_000_000
    rows = [*pointers, (0x02BC, 1, targets + 4 * 4096 + len(words) - 8, 8)]
    directory = b"\x05\0" + b"".join(struct.pack("<HHII", *row) for row in rows) + bytes(4)
    offsets = [8 + size * (index % 60) for index in range(4096)]
    return b"II*\0\x08\0\0\0" + 60 * directory + struct.pack("<4096I", *offsets) + words


@pytest.mark.parametrize(
    "hostile",
    [
        b"\xff\xd8" + b"\xff\xe0\x00\x04\xff\xd8" * 300_000,
        b"\xff\xd8\xff\xe0" * 500_000,
        b"\xff\xd8" + b"\xff" * 2_000_000,
        b"\xff\xd8\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 200_000,
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 150_000,
        b"RIFF\xff\xff\xff\x7fWEBPVP8 " * 150_000,
        maze(),
        b"II*\0\x08\0\0\0" + b"\xe7\x03" * 1_000_000,
        b"MM\0*\0\0\0\x08"
        + b"\x03\xe7"
        + (b"\x01\x11\0\x04\0\1\0\0\0\0\0\0" + b"\x01\x17\0\x04\0\1\0\0\0\0\0\0") * 150_000,
    ],
    ids=["segments", "starts", "fill", "scans", "png", "webp", "maze", "tables", "strips"],
)
def test_hostile_exif_costs_time_in_proportion(hostile: bytes) -> None:
    started = time.process_time()
    without_previews_exif(hostile)
    assert time.process_time() - started < 8


def xmp(content: str) -> bytes:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/" '
        'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:xmpGImg="http://ns.adobe.com/xap/1.0/g/img/" '
        f'xmlns:GImage="http://ns.google.com/photos/1.0/image/">{content}<xmp:Label>kept</xmp:Label></x:xmpmeta>'
        '<?xpacket end="w"?>'
    ).encode()


@pytest.fixture
def streams(draw: Any, clean: bytes) -> dict[str, bytes]:
    array = draw(24, 32, 7)
    heif = b"\0\0\0\x20ftypheic\0\0\0\0mif1heic" + random.Random(3).randbytes(400)
    return {"HEIF": heif, "JPEG": clean} | {form: encoded(array, form) for form in ("PNG", "WEBP", "TIFF", "GIF")}


LAYOUTS: dict[str, Callable[[str], str]] = {
    "attribute": lambda text: f'<x:a GImage:Mime="image/jpeg" GImage:Data="{text}"/>',
    "element": lambda text: f"<xmpGImg:image>{text}</xmpGImg:image>",
    "escaped lines": lambda text: f"<xmpGImg:image>{'&#xA;'.join(cut(text))}</xmpGImg:image>",
    "escaped lines in an attribute": lambda text: f'<x:a xmpGImg:image="{"&#10;".join(cut(text))}&#10;"/>',
    "lines": lambda text: "<xmpGImg:image>\n   " + "\r\n   ".join(cut(text)) + "\n</xmpGImg:image>",
    "URL": lambda text: f"<x:a>data:image/jpeg;base64,{text}</x:a>",
    "behind words": lambda text: f"<x:a>The picture {text}</x:a>",
}


def cut(text: str) -> list[str]:
    return [text[start : start + 76] for start in range(0, len(text), 76)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_in_xmp_go_and_all_else_stays(layout: str, streams: dict[str, bytes]) -> None:
    for name, stream in streams.items():
        text = base64.b64encode(stream).decode()
        without, count = without_previews_xmp(xmp(LAYOUTS[layout](text)))
        assert count == 1, name
        empty = ElementTree.fromstring(xmp(LAYOUTS[layout]("")))
        tree = ElementTree.fromstring(without)
        assert [element.tag for element in tree.iter()] == [element.tag for element in empty.iter()]
        for element, other in zip(tree.iter(), empty.iter(), strict=True):
            assert (element.text or "").strip() == (other.text or "").strip(), name
            assert {key: value.strip() for key, value in element.attrib.items()} == {
                key: value.strip() for key, value in other.attrib.items()
            }, name
        assert without_previews_xmp(without) == (without, 0)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_pictures_in_xmp_of_two_bytes_a_letter(encoding: str, clean: bytes) -> None:
    text = base64.b64encode(clean).decode()
    whole, empty = (xmp(LAYOUTS["attribute"](picture)).decode().encode(encoding) for picture in (text, ""))
    assert without_previews_xmp(whole) == (empty, 1)


def test_several_pictures_in_one_packet(streams: dict[str, bytes]) -> None:
    items = "".join(LAYOUTS["element"](base64.b64encode(stream).decode()) for stream in streams.values())
    assert without_previews_xmp(xmp(items)) == (xmp("<xmpGImg:image></xmpGImg:image>" * len(streams)), len(streams))


def test_xmp_without_pictures_comes_back_as_it_was(clean: bytes) -> None:
    other = base64.b64encode(random.Random(4).randbytes(3000)).decode()
    short = base64.b64encode(clean[:100]).decode()
    words = "many words of a description without any mark between them " * 20
    for content in ("", f"<x:a>{other}</x:a>", f'<x:a xmp:b="{short}"/>', f"<x:a>{words}</x:a>"):
        assert without_previews_xmp(xmp(content)) == (xmp(content), 0)
    assert without_previews_xmp(b"") == (b"", 0)


@pytest.mark.parametrize(
    "hostile",
    [
        *(b"A" * 5_000_000, b"A " * 2_500_000, (b"A" * 31 + b"<") * 150_000, (b"A" * 40 + b"\0") * 120_000),
        *(b"/9j/" * 1_200_000, (b"/9j/" * 20 + b"=<") * 60_000, b"&#xA;" * 1_000_000, b"\0A" * 2_500_000),
    ],
    ids=["letters", "spaces", "short", "zeros", "heads", "many heads", "escapes", "two bytes"],
)
def test_hostile_xmp_costs_time_in_proportion(hostile: bytes) -> None:
    started = time.process_time()
    without_previews_xmp(hostile)
    assert time.process_time() - started < 4


def sources(array: Any, clean: bytes) -> dict[str, tuple[bytes, bytes, int]]:
    """Files that show `array` and have another picture somewhere else, that picture's bytes, and in how many places
    that are written again it is."""
    jpeg, png, webp = encoded(array, "JPEG"), encoded(array, "PNG"), encoded(array, "WEBP", lossless=True, exif=b"x")
    text = base64.b64encode(clean).decode()
    exif = block(entries=jpeg_entries("<", clean), stream=clean)
    maker = block(">", maker=b"Maker" + clean)
    pixels = Image.open(io.BytesIO(clean)).tobytes()
    strips = block(">", entries=strip_entries(">", pixels), stream=pixels)
    packet = xmp(LAYOUTS["escaped lines"](text))
    photoshop = b"8BIM\x04\x0c\0\0" + struct.pack(">I", 28 + len(clean)) + bytes(28) + clean
    extension = b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + packet
    mpo = io.BytesIO()
    Image.fromarray(array).save(mpo, "MPO", save_all=True, append_images=[Image.open(io.BytesIO(clean))])
    second = mpo.getvalue()[mpo.getvalue().rindex(b"\xff\xd8\xff") :]
    texts, profile, itxt = (PngImagePlugin.PngInfo() for _ in range(3))
    texts.add_text("Thumbnail", text)
    texts.add_text("Comment", text, zip=True)
    profile.add_text("Raw profile type exif", f"\nexif\n{len(exif)}\n{exif.hex()}", zip=True)
    itxt.add_itxt("XML:com.adobe.xmp", packet.decode(), zip=True)
    added = b"PRVW" + struct.pack("<I", len(clean)) + clean + bytes(len(clean) % 2)

    def segment(marker: int, content: bytes) -> bytes:
        return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content + jpeg[2:]

    def chunk(name: bytes, content: bytes) -> bytes:
        whole = struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        return png[:33] + whole + png[33:]

    return {
        "jpeg exif": (encoded(array, "JPEG", exif=exif), clean, 1),
        "jpeg maker note": (encoded(array, "JPEG", exif=maker), clean, 1),
        "jpeg strips": (encoded(array, "JPEG", exif=strips), pixels, 1),
        "jpeg exif and xmp": (encoded(array, "JPEG", exif=exif, xmp=packet), clean, 2),
        "jpeg xmp": (encoded(array, "JPEG", xmp=packet), clean, 1),
        "jpeg extended xmp": (segment(0xE1, extension), clean, 0),
        "jpeg jfxx": (segment(0xE0, b"JFXX\0\x10" + clean), clean, 0),
        "jpeg comment": (encoded(array, "JPEG", comment=clean), clean, 0),
        "jpeg photoshop": (segment(0xED, b"Photoshop 3.0\0" + photoshop), clean, 0),
        "jpeg flashpix": (segment(0xE2, b"FPXR\0" + clean), clean, 0),
        "jpeg second image": (mpo.getvalue(), second, 0),
        "jpeg behind its end": (jpeg + clean, clean, 0),
        "png exif": (encoded(array, "PNG", exif=exif), clean, 1),
        "png xmp": (encoded(array, "PNG", pnginfo=itxt), clean, 1),
        "png texts": (encoded(array, "PNG", pnginfo=texts), clean, 0),
        "png exif as digits": (encoded(array, "PNG", pnginfo=profile), clean, 0),
        "png exif as text": (chunk(b"tEXt", b"exif\0" + exif), clean, 1),
        "png chunk": (chunk(b"prVw", clean), clean, 0),
        "png behind its end": (png + clean, clean, 0),
        "webp exif": (encoded(array, "WEBP", lossless=True, exif=exif), clean, 1),
        "webp xmp": (encoded(array, "WEBP", lossless=True, xmp=packet), clean, 1),
        "webp chunk": (b"RIFF" + struct.pack("<I", len(webp) - 8 + len(added)) + webp[8:] + added, clean, 0),
        "gif comment": (encoded(array, "GIF", comment=text.encode()), clean, 0),
        "tiff photoshop": (encoded(array, "TIFF", tiffinfo={34377: photoshop}), clean, 0),
        "tiff xmp": (encoded(array, "TIFF", tiffinfo={700: packet}), clean, 1),
    }


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_no_place_of_a_file_lets_the_clean_picture_out(form: str, clean: bytes, draw: Any) -> None:
    array = draw(40, 48, 5)
    for name, (data, other, count) in sources(array, clean).items():
        assert shows(data, other), name
        image = decode(data)
        assert image.previews == count, name
        written = Output(form).encode(image, 255 - image.pixels)
        assert not shows(written, other), name
        if "exif" in name or "maker" in name:
            assert Image.open(io.BytesIO(written)).getexif()[ExifTags.Base.Artist] == "Someone", name
            assert image.orientation == decode(written).orientation == 6, name
            assert image.pixels.shape == decode(written).pixels.shape == (48, 40, 3), name
        if "xmp" in name and "extended" not in name:
            assert b"<xmp:Label>kept</xmp:Label>" in (decode(written).xmp or b""), name


def test_xmp_of_another_type_is_left_out(draw: Any) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[700] = 2
    tags[700], tags[ExifTags.Base.Orientation] = "text", 1
    image = decode(encoded(draw(24, 32), "TIFF", tiffinfo=tags))
    assert image.xmp is None
    Output("png").encode(image, image.pixels)
