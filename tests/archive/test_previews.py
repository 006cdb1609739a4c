"""What the record says of thumbnails, and that no archive's output has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.archive.outputs import Run, by_key, images
from tests.metadata import block, encoded, jpeg_entries, shows


@pytest.fixture
def clean(photos: Path, draw: Any) -> bytes:
    """The thumbnail of a d.jpg among the photos."""
    stream = encoded(draw(24, 32, 77), "JPEG", quality=80)
    exif = block(entries=jpeg_entries("<", stream), stream=stream)
    Image.fromarray(draw(40, 48, 6)).save(photos / "d.jpg", exif=exif, quality=90)
    return stream


@pytest.mark.parametrize("output", ["same", "png"])
def test_a_thumbnail_is_recorded_and_gone(output: str, clean: bytes, photos: Path, run: Run, tmp_path: Path) -> None:
    assert shows((photos / "d.jpg").read_bytes(), clean)
    rows = by_key(run(photos, output=output))
    assert {key: row.previews for key, row in rows.items()} == {"a.png": 0, "b.jpg": 0, "d.jpg": 1, "more/c.webp": 0}
    written = images(tmp_path / "out")
    assert len(written) == 4
    for name, data in written.items():
        assert not shows(data, clean), name


def test_records_of_before_are_read(clean: bytes, photos: Path, run: Run, tmp_path: Path) -> None:
    before = by_key(run(photos))
    (record,) = (tmp_path / "out").rglob("*.parquet")
    table = pq.read_table(record)
    assert "previews" in table.column_names
    pq.write_table(table.drop_columns(["previews"]), record)
    after = by_key(run(photos))
    assert {row.previews for row in after.values()} == {0}
    assert {key: row.output_sha256 for key, row in after.items()} == {
        key: row.output_sha256 for key, row in before.items()
    }
