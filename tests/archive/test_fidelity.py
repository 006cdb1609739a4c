"""What of a file comes back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, JpegImagePlugin

from shade_fast import Budget, Poisoner
from shade_fast.archive import verify_archive
from shade_fast.images import Output, decode
from shade_fast.images.jpeg import JpegSettings
from tests.archive.outputs import Run, by_key

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rights>kept</rights></x:xmpmeta>'


@pytest.fixture
def save(tmp_path: Path, draw: Any) -> Any:
    """`save(name, **options)`: a picture of 48x40 with metadata, in a folder of its own."""
    exif = Image.Exif()
    exif[ExifTags.Base.Artist], exif[ExifTags.Base.Orientation] = "Someone", 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    def build(name: str, **options: Any) -> Path:
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        kept = {"exif": exif, "icc_profile": profile, "xmp": XMP, "dpi": (300, 300)}
        Image.fromarray(draw(40, 48, 3)).save(folder / name, **(kept | options))
        return folder

    return build


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_metadata_and_layout_are_kept(name: str, save: Any, run: Run, tmp_path: Path) -> None:
    folder = save(name)
    assert run(folder).ok == 1
    before, after = Image.open(folder / name), Image.open(tmp_path / "out" / name)
    assert (after.format, after.size, after.mode) == (before.format, before.size, before.mode)
    assert dict(after.getexif()) == dict(before.getexif())
    assert after.info["icc_profile"] == before.info["icc_profile"]
    if name != "a.png":  # Pillow writes no XMP into PNG files by this option
        assert b"<rights>kept</rights>" in after.info["xmp"]
    if name != "a.webp":  # WebP has no place for it but EXIF
        assert after.info["dpi"] == pytest.approx(before.info["dpi"], abs=0.01)


@pytest.mark.parametrize(("quality", "subsampling"), [(95, 2), (98, 0), (97, 1)])
def test_a_jpegs_tables_subsampling_and_scans_are_kept_where_they_do(
    quality: int, subsampling: int, save: Any, run: Run, tmp_path: Path
) -> None:
    folder = save("a.jpg", quality=quality, subsampling=subsampling, progressive=True)
    (row,) = run(folder, budget=Budget(40 / 255, None)).rows()
    before, after = Image.open(folder / "a.jpg"), Image.open(tmp_path / "out/a.jpg")
    assert isinstance(before, JpegImagePlugin.JpegImageFile)
    assert isinstance(after, JpegImagePlugin.JpegImageFile)
    assert after.info.get("progressive")
    if row.quality == quality:
        assert after.quantization == before.quantization
        assert row.subsampling == JpegImagePlugin.get_sampling(after) == subsampling
    else:
        assert row.quality is not None
        assert row.quality > quality


def test_settings_of_files_are_read_and_raised(save: Any) -> None:
    image = decode(save("a.jpg", quality=85, subsampling=2) / "a.jpg")
    assert image.jpeg is not None
    assert (image.jpeg.quality, image.jpeg.subsampling, image.jpeg.progressive) == (85, 2, False)
    attempts = Output("same").attempts(image)
    assert attempts[0] == image.jpeg
    assert [attempt.quality for attempt in attempts if attempt is not None] == sorted(
        {attempt.quality for attempt in attempts if attempt}
    )
    assert attempts[-1] == JpegSettings.of_quality(100)
    assert Output("jpeg", 60).attempts(image)[0] == JpegSettings.of_quality(60)
    data = Output("same").encode(image, image.pixels)
    again = decode(data)
    assert again.jpeg == image.jpeg
    assert np.abs(again.pixels.astype(int) - image.pixels).mean() < 2


def test_a_codec_that_breaks_a_small_budget_is_given_a_higher_quality(save: Any, run: Run, tmp_path: Path) -> None:
    folder = save("a.jpg", quality=30)
    (row,) = run(folder, budget=Budget(6 / 255, None)).rows()
    assert row.status in ("ok", "below_target")
    assert row.linf is not None
    assert row.linf <= 6 / 255
    assert row.quality is not None
    assert row.quality > 30
    clean, shown = decode(folder / "a.jpg").pixels.astype(int), decode(tmp_path / "out/a.jpg").pixels
    assert np.abs(clean - shown).max() == round(255 * row.linf)


def test_transparent_pixels_and_alpha_are_left_alone(run: Run, tmp_path: Path, draw: Any) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    alpha = np.zeros((48, 48), np.uint8)
    alpha[8:40, 12:30], alpha[:8] = 255, 77
    for name in ("a.png", "a.webp"):
        Image.fromarray(np.dstack([draw(48, 48, 1), alpha])).save(folder / name, lossless=True, exact=True)
    for row in run(folder).rows():
        clean, shown = decode(folder / row.key), decode(tmp_path / "out" / row.key)
        assert shown.alpha is not None
        assert np.array_equal(shown.alpha, alpha)
        change = np.abs(clean.pixels.astype(int) - shown.pixels).max(axis=2)
        assert not change[alpha == 0].any()
        assert change[alpha > 0].any()
        assert row.distance_after is not None
        assert row.distance_before is not None
        assert row.distance_after < row.distance_before


def test_what_would_have_to_be_flattened_is_refused_by_name(run: Run, tmp_path: Path, draw: Any) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    frames = [Image.fromarray(draw(32, 32, seed)) for seed in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:])
    frames[0].convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32)).save(folder / "deep.png")
    reasons = {key: str(row.error) for key, row in by_key(run(folder)).items()}
    assert "an animation of 3 frames" in reasons["moving.gif"]
    assert "an animation of 3 frames" in reasons["moving.webp"]
    assert "a CMYK image" in reasons["print.jpg"]
    assert "a 16-bit image" in reasons["deep.png"] or "16-bit or float" in reasons["deep.png"]


def test_alpha_that_is_opaque_everywhere_does_not_keep_a_webp_from_being_written(
    run: Run, tmp_path: Path, draw: Any, engine: dict[str, Any]
) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.dstack([draw(48, 48, 1), np.full((48, 48), 255, np.uint8)])).save(tmp_path / "in" / "a.png")
    (row,) = run(tmp_path / "in", output="webp").rows()
    assert row.error is None
    assert verify_archive(tmp_path / "out", poisoner=Poisoner(**engine)) == []
