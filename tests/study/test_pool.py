"""Pools: every shape that images and captions come in gives the same pairs."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shade_fast.study import pool as pools
from shade_fast.study import read_captions, read_pool
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.limits import Limits
from tests.study.conftest import picture, png

CAPTIONS = {"lake/0.png": "a lake at dawn", "lake/1.png": "a photo of a lake", "meadow/0.png": "a photo of a meadow"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pool"
    for number, name in enumerate(CAPTIONS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(picture(name.split("/")[0], number)))
    (root / "lake/0.txt").write_text("a lake at dawn\n")
    return root


def test_a_folder_takes_captions_from_text_files_or_from_its_names(folder: Path) -> None:
    pairs = list(read_pool(folder))
    assert {pair.key: pair.caption for pair in pairs} == CAPTIONS
    assert [pair.concept for pair in pairs] == ["lake", "lake", "meadow"]
    assert pairs[0].read() == (folder / "lake/0.png").read_bytes()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_of_paths_reads_as_the_folder_does(folder: Path, kind: str) -> None:
    table = folder / f"pairs.{kind}"
    with table.open("w", newline="") as file:
        if kind == "csv":
            writer = csv.writer(file)
            writer.writerows([["path", "caption"], *CAPTIONS.items()])
        else:
            file.writelines(json.dumps({"path": path, "caption": text}) + "\n" for path, text in CAPTIONS.items())
    pairs = list(read_pool(table))
    assert {pair.key: pair.caption for pair in pairs} == CAPTIONS
    assert pairs[2].read() == (folder / "meadow/0.png").read_bytes()


def test_a_webdataset_tar_puts_members_of_one_key_together(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "pool.tar"
    with tarfile.open(path, "w") as tar:
        for number, (name, caption) in enumerate(CAPTIONS.items()):
            members = [("png", (folder / name).read_bytes()), ("json", json.dumps({"caption": caption}).encode())]
            for ending, data in members[:: -1 if number else 1]:
                info = tarfile.TarInfo(f"{number:03d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    pairs = list(read_pool(path))
    assert [pair.caption for pair in pairs] == list(CAPTIONS.values())
    assert pairs[1].read() == (folder / "lake/1.png").read_bytes()


def test_captions_alone_are_read_without_images(pool: Path, tmp_path: Path) -> None:
    text = tmp_path / "captions.txt"
    text.write_text("a lake\n\n two meadows \n")
    assert list(read_captions(text)) == ["a lake", "two meadows"]
    assert next(iter(read_captions(pool))) == "a photo of a cherry, number 0"


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_captions_alone_need_no_images(kind: str, tmp_path: Path) -> None:
    table = tmp_path / f"captions.{kind}"
    rows = [{"caption": "a lake"}, {"caption": "two meadows"}]
    comma = "\t" if kind == "tsv" else ","
    lines = ["caption" + comma + "id", *(f"{row['caption']}{comma}1" for row in rows)]
    table.write_text("\n".join(map(json.dumps, rows) if kind == "jsonl" else lines))
    assert list(read_captions(table)) == ["a lake", "two meadows"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_row_without_a_caption_is_left_out_and_counted(
    kind: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    captions = {"meadow/0.png": None, **CAPTIONS, "lake/0.png": ""}
    rows = [{"path": path, "caption": caption} for path, caption in captions.items()]
    table = folder / f"pairs.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), table)
    elif kind == "csv":
        table.write_text("path,caption\n" + "".join(f"{row['path']},{row['caption'] or ''}\n" for row in rows))
    else:
        table.write_text("\n".join(map(json.dumps, [{"path": "lake/1.png"}, *rows])))
    kept = {path: caption for path, caption in captions.items() if caption}
    assert {pair.key: pair.caption for pair in read_pool(table)} == kept
    assert f"{len(rows) - len(kept) + (kind == 'jsonl')} rows without a caption" in caplog.text
    assert list(read_captions(table)) == list(kept.values())


def test_a_tar_takes_the_text_of_a_sample_before_its_json(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "pool.tar"
    members = [
        ("0.png", (folder / "lake/0.png").read_bytes()), ("0.json", b'{"caption": "from json"}'), ("0.txt", b"text"),
        ("1.png", (folder / "lake/1.png").read_bytes()), ("2.txt", b"no image"), ("1.txt", b"apart"),
        ("3.png", (folder / "lake/1.png").read_bytes()), ("3.txt", b"alone"), ("3.json", b"{damaged"),
    ]  # fmt: skip
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert [pair.caption for pair in read_pool(path)] == ["text", "apart", "alone"]


def test_tars_in_braces_have_concepts_and_what_has_no_caption_is_counted(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = (folder / "lake/0.png").read_bytes()
    for shard in range(2):
        members = [("0.png", image), ("0.json", b'{"label": "lake"}'), ("1.png", image), ("1.json", b"{}")]
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    pairs = list(read_pool(tmp_path / "{0..1}.tar"))
    assert [(pair.concept, pair.caption) for pair in pairs] == [("lake", "a photo of a lake")] * 2
    assert caplog.text.count("1 images without a caption are left out") == 2
    assert list(read_captions(tmp_path / "{0..1}.tar")) == ["a photo of a lake"] * 2
    (folder / "alone.png").write_bytes(image)
    assert len(list(read_pool(folder))) == 3
    assert f"{folder}: 1 images without a caption are left out" in caplog.text


def test_an_image_that_is_not_there_is_named_by_its_reader(tmp_path: Path) -> None:
    (tmp_path / "pool.csv").write_text("path,caption\nnowhere.png,a lake\n")
    (pair,) = read_pool(tmp_path / "pool.csv")
    with pytest.raises(ShadeFastError, match=r"nowhere\.png: cannot be read"):
        pair.read()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShadeFastError, match="nowhere: no such file"):
        list(read_pool(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShadeFastError, match="no image with a caption"):
        list(read_pool(tmp_path / "empty"))
    (tmp_path / "broken.parquet").write_bytes(b"no table")
    with pytest.raises(ShadeFastError, match=r"broken\.parquet: cannot be read"):
        list(read_pool(tmp_path / "broken.parquet"))
    with pytest.raises(ShadeFastError, match=r"broken\.parquet: cannot be read"):
        list(read_captions(tmp_path / "broken.parquet"))
    (tmp_path / "plain.csv").write_text("path\nlake.png\n")
    with pytest.raises(ShadeFastError, match="no captions; name a column"):
        list(read_pool(tmp_path / "plain.csv"))


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("captioned", ["never", "at the end"])
def test_images_that_wait_for_captions_are_not_held(
    mode: str, captioned: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [(f"{number:03d}.png", bytes(1 << 20)) for number in range(40)]
    last = [] if captioned == "never" else [(f"{number:03d}.txt", b"a lake") for number in range(40)]
    path = write_tar(tmp_path / "pool.tar", [*images, ("beside.png", b"image"), ("beside.txt", b"beside"), *last], mode)
    tracemalloc.start()
    captions = [pair.caption for pair in read_pool(path)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    # The way back in a compressed tar is from its start, so what is apart there is left out.
    if mode == "w" and captioned == "at the end":
        assert captions == ["beside"] + ["a lake"] * 40
        assert read_all(path)["007"] == bytes(1 << 20)
    else:
        assert captions == ["beside"] and "40 images without a caption" in caplog.text


def read_all(path: Path) -> dict[str, bytes]:
    return {pair.key: pair.read() for pair in read_pool(path)}


def test_no_more_wait_in_a_tar_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pools, "WAITING", 3)
    members = [(f"{number}.png", b"image") for number in range(5)] + [(f"{number}.txt", b"text") for number in range(5)]
    assert sorted(read_all(write_tar(tmp_path / "pool.tar", members))) == ["0", "1", "2"]
    assert "2 images without a caption are left out" in caplog.text


def test_members_that_are_too_large_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "pool.tar"
    text = b"a lake " * (1 << 18)
    write_tar(path, [("0.txt", text), ("0.png", b"a"), ("1.json", b'{"caption": "' + text + b'"}'), ("1.png", b"b")])
    with tarfile.open(path, "a") as tar:
        large = tarfile.TarInfo("2.png")
        large.size = Limits().image_bytes + 1
        tar.addfile(large)
        tar.fileobj.seek(-(-large.size // 512) * 512 - 512, os.SEEK_CUR)  # type: ignore[union-attr]
        tar.fileobj.write(bytes(512))  # type: ignore[union-attr]
        tar.offset += -(-large.size // 512) * 512
        for name, data in (("2.txt", b"too large"), ("3.txt", b"text"), ("3.png", b"image")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert read_all(path) == {"3": b"image"}
    assert "3 members that are too large are left out" in caplog.text
    assert "2 images without a caption are left out" in caplog.text


def test_an_extended_header_larger_than_any_name_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "pool.tar", [("0.png", b"image")])
    info = tarfile.TarInfo("1.png")
    info.pax_headers = {"comment": "x" * (2 << 20)}
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    with pytest.raises(ShadeFastError, match=r"pool\.tar: cannot be read as a pool .*an extended header of 2097"):
        list(read_pool(path))


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_json_as_deep_as_it_likes_is_an_error_or_ignored(ending: str, tmp_path: Path) -> None:
    deep = b"[" * 200_000
    path = tmp_path / f"pool.{ending}"
    if ending == "json":
        path = write_tar(tmp_path / "pool.tar", [("0.png", b"image"), ("0.txt", b"text"), ("0.json", deep)])
        assert list(read_all(path)) == ["0"]
        write_tar(path, [("0.png", b"image"), ("0.json", deep)])
    else:
        path.write_bytes(deep)
    with pytest.raises(ShadeFastError, match="cannot be read as a pool"):
        list(read_pool(path))


def test_headers_nested_without_end_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "pool.tar"
    extended = tarfile.TarInfo("x")
    extended.type, extended.size = tarfile.XHDTYPE, 512
    record = b"12 comment=x".ljust(512, b"\0")
    path.write_bytes((extended.tobuf(tarfile.USTAR_FORMAT) + record) * 5000)
    with pytest.raises(ShadeFastError, match=r"pool\.tar: cannot be read as a pool"):
        list(read_pool(path))


def test_links_in_a_circle_end_and_captions_and_images_have_their_bounds(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "lake/round").symlink_to("..")
    (folder / "meadow/round").symlink_to("../meadow")
    (folder / "lake/2.png").write_bytes(b"image")
    (folder / "lake/2.txt").write_bytes(b"x" * ((1 << 20) + 1))
    assert {pair.key: pair.caption for pair in read_pool(folder)} == CAPTIONS
    assert "1 images with a caption of more than 1 MiB are left out" in caplog.text
    os.mkfifo(folder / "meadow/1.png")
    (pair,) = (pair for pair in read_pool(folder) if pair.key == "meadow/1.png")
    with pytest.raises(ShadeFastError, match=r"1\.png: is no file"):
        pair.read()
    monkeypatch.setattr(pools, "LIMITS", Limits(image_bytes=10))
    with pytest.raises(ShadeFastError, match=r"0\.png: \d+ bytes; at most 10 are read"):
        next(iter(read_pool(folder))).read()


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl"])
def test_a_line_has_a_bound(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "LIMITS", Limits(image_bytes=100))
    path = tmp_path / f"captions.{kind}"
    path.write_text(json.dumps({"caption": "x" * 200}) if kind == "jsonl" else "caption\n" + "x" * 200)
    with pytest.raises(ShadeFastError, match=rf"captions\.{kind}: a line of more than 100 characters"):
        list(read_captions(path))
