from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import Any

import pytest
from PIL import Image

from shade_fast import ShadeFastError
from shade_fast.archive.files import SourceFile, find_images, write_whole
from shade_fast.images import Output


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("b.jpg", "a.PNG", "deep/er/c.webp", ".hidden.jpg", "notes.txt", "shade_fast.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "folder.jpg").mkdir()
    return folder


def relative(found: list[SourceFile]) -> list[str]:
    return [source.relative.as_posix() for source in found]


def test_a_folder_is_searched_through_in_order(photos: Path) -> None:
    assert relative(find_images([photos])) == [".hidden.jpg", "a.PNG", "b.jpg", "deep/er/c.webp"]
    assert [source.path for source in find_images([str(photos / "deep")])] == [photos / "deep/er/c.webp"]


def test_files_are_taken_as_they_are_and_each_once(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "link.jpg").symlink_to(photos / "b.jpg")
    sources = [photos / "notes.txt", photos / "b.jpg", photos / "deep/../b.jpg", tmp_path / "link.jpg", photos / "deep"]
    assert relative(find_images(sources)) == ["notes.txt", "b.jpg", "er/c.webp"]


def test_symlinks(photos: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.jpg"
    outside.touch()
    (photos / "linked.jpg").symlink_to(outside)
    (photos / "broken.jpg").symlink_to(tmp_path / "gone.jpg")
    (photos / "loop.jpg").symlink_to(photos / "loop.jpg")
    assert "linked.jpg" in relative(find_images([photos]))
    assert not {"broken.jpg", "loop.jpg"} & set(relative(find_images([photos])))
    with pytest.raises(ShadeFastError, match=r"loop.jpg: no such file"):
        find_images([photos / "loop.jpg"])


def test_the_output_folder_is_left_out(photos: Path, tmp_path: Path) -> None:
    (photos / "out").mkdir()
    (photos / "out" / "old.png").touch()
    assert "out/old.png" in relative(find_images([photos]))
    assert "out/old.png" not in relative(find_images([photos], exclude=photos / "out"))
    assert relative(find_images([photos / "out" / "old.png"], exclude=photos / "out")) == ["old.png"]
    for exclude in (photos, tmp_path):
        assert len(find_images([photos], exclude=exclude)) == 5


@pytest.mark.parametrize("source", ["missing.jpg", "missing/", "a" * 300])
def test_sources_that_are_not_there(source: str, tmp_path: Path) -> None:
    with pytest.raises(ShadeFastError, match=r": (no such file or folder|cannot be read: File name too long)"):
        find_images([tmp_path / source])


def test_no_images_at_all(tmp_path: Path) -> None:
    with pytest.raises(ShadeFastError, match=r": no images found \(.bmp, "):
        find_images([tmp_path])
    with pytest.raises(ShadeFastError, match=r": no images found"):
        find_images([])


@pytest.mark.parametrize(
    ("name", "form", "output"),
    [
        *(("a/b.jpg", "png", "a/b.png"), ("b.PNG", "png", "b.PNG"), ("b.jpeg", "jpeg", "b.jpeg")),
        *(("b.JPG", "jpeg", "b.JPG"), ("b.png", "jpeg", "b.jpg"), ("b.tar.bmp", "webp", "b.tar.webp")),
        *(("photo", "png", "photo.png"), ("b.webp", "webp", "b.webp")),
    ],
)
def test_output_names(name: str, form: str, output: str) -> None:
    assert SourceFile(Path(name), PurePath(name)).output(Output(form)).as_posix() == output


@pytest.mark.parametrize(
    ("name", "held", "output"),
    [
        *(("b.jpeg", "JPEG", "b.jpeg"), ("b.webp", "WEBP", "b.webp"), ("b.png", "PNG", "b.png")),
        *(
            ("b.bmp", "BMP", "b.png"),
            ("b.jpg", "PNG", "b.png"),
            ("b.png", "JPEG", "b.jpg"),
            ("b.jpg", "WEBP", "b.webp"),
        ),
    ],
)
def test_same_goes_by_what_the_file_holds(name: str, held: str, output: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / name, held)
    assert str(SourceFile(tmp_path / name, PurePath(name)).output(Output("same"))) == output


def test_same_for_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert str(SourceFile(tmp_path / "gone.jpg", PurePath("gone.jpg")).output(Output("same"))) == "gone.png"


def test_write_whole_makes_folders_replaces_and_follows_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.png"
    previous = os.umask(0o027)
    try:
        write_whole(path, b"first")
        assert path.stat().st_mode & 0o777 == 0o640
        write_whole(path, b"second")
    finally:
        os.umask(previous)
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_write_whole_replaces_a_link_not_what_it_points_to(tmp_path: Path) -> None:
    original, link = tmp_path / "original.png", tmp_path / "link.png"
    original.write_bytes(b"original")
    link.symlink_to(original)
    write_whole(link, b"new")
    assert (original.read_bytes(), link.read_bytes()) == (b"original", b"new")


@pytest.mark.parametrize("failing", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_crash_in_the_middle_leaves_what_was_there(
    failing: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.png"
    path.write_bytes(b"before")

    def crash(*_: Any) -> None:
        raise error

    monkeypatch.setattr(os if failing == "fsync" else Path, failing, crash)
    with pytest.raises(type(error)):
        write_whole(path, b"after")
    with pytest.raises(type(error)):
        write_whole(tmp_path / "other.png", b"after")
    monkeypatch.undo()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
