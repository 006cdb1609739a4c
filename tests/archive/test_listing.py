"""Listing folders that are not as a person would lay them out: webs of links, loops, great depth, stores that lie."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from shade_fast.archive import folders
from shade_fast.archive.folders import Folder, SourceFile
from shade_fast.archive.reading import Reader
from shade_fast.images import Output
from shade_fast.terms.limits import Access, Limits


def listed(*sources: Any, **limits: int) -> list[SourceFile]:
    return list(Folder(sources, None, Output(), 1, Reader(Limits(**limits), Access())).listing())


def names(files: list[SourceFile]) -> list[str]:
    return [file.relative for file in files]


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that the system was asked to list."""
    seen: list[str] = []
    scandir = os.scandir

    def counted(path: Any) -> Any:
        seen.append(os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", counted)
    return seen


def touch(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def web(folder: Path, count: int) -> Path:
    """So many folders, each with an image and links to all the others."""
    for index in range(count):
        touch(folder, f"{index}/{index}.png")
    for index in range(count):
        for other in range(count):
            if other != index:
                (folder / str(index) / f"to{other}").symlink_to(folder / str(other))
    return folder


def test_a_web_of_links_is_listed_in_as_many_steps_as_it_has_links(
    tmp_path: Path, scans: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = Folder([web(tmp_path / "web", 7)], None, Output(), 1, Reader(Limits(), Access()))
    scans.clear()
    listing = names(list(folder.listing()))
    assert len(scans) == 1 + 7 + 42
    assert [name for name in listing if name.count("/") == 1] == [f"{index}/{index}.png" for index in range(7)]
    assert {name for name in listing if name.count("/") == 2} == {
        f"{index}/to{other}/{other}.png" for index in range(7) for other in range(7) if other != index
    }
    assert len(listing) == 7 + 42
    # Each of 42 links led to a folder with 6: one of those is to where it came from, which is above.
    (message,) = [record.getMessage() for record in caplog.records if record.name == "shade_fast.archive.folders"]
    assert message.startswith("210 links to folders are not followed")
    assert message.endswith(str(tmp_path / "web/0/to1/to2"))
    assert names(list(folder.listing())) == listing
    assert folder.count() == len(listing)
    assert len([record for record in caplog.records if record.name == "shade_fast.archive.folders"]) == 1


def test_a_web_outside_the_source_is_listed_once_for_each_link_to_it(tmp_path: Path, scans: list[str]) -> None:
    web(tmp_path / "web", 7)
    photos = touch(tmp_path / "photos", "a.png")
    for name in ("x", "y"):
        (photos / name).symlink_to(tmp_path / "web")
    folder = Folder([photos], None, Output(), 1, Reader(Limits(), Access()))
    scans.clear()
    expected = [f"{name}/{index}/{index}.png" for name in ("x", "y") for index in range(7)]
    assert names(list(folder.listing())) == ["a.png", *expected]
    assert len(scans) == 1 + 2 * 8


def test_a_link_that_leads_on_to_a_new_place_is_followed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "photos/a.png", "one/b.png", "two/c.png")
    (tmp_path / "photos/first").symlink_to(tmp_path / "one")
    (tmp_path / "photos/second").symlink_to(tmp_path / "one")
    (tmp_path / "one/on\x1b[2J").symlink_to(tmp_path / "two")
    listing = names(listed(tmp_path / "photos"))
    assert listing == ["a.png", "first/b.png", "first/on\x1b[2J/c.png", "second/b.png"]
    assert r"on\x1b[2J" in caplog.text
    assert "\x1b" not in caplog.text


def test_the_latest_of_several_folders_is_listed_under_both_names(tmp_path: Path) -> None:
    touch(tmp_path, "2024-10/a.png", "2024-11/b.png", "2024-11/more/c.png")
    (tmp_path / "latest").symlink_to("2024-11")
    (tmp_path / "2024-11/back").symlink_to("..")
    assert names(listed(tmp_path)) == [
        *("2024-10/a.png", "2024-11/b.png", "2024-11/more/c.png"),
        *("latest/b.png", "latest/more/c.png"),
    ]


def test_a_link_to_what_holds_the_source_ends(tmp_path: Path, scans: list[str]) -> None:
    touch(tmp_path, "all/photos/a.png", "all/beside/b.png")
    (tmp_path / "all/photos/up").symlink_to(tmp_path / "all")
    (tmp_path / "all/beside/up").symlink_to(tmp_path / "all/beside")
    assert names(listed(tmp_path / "all/photos")) == ["a.png", "up/beside/b.png"]
    assert len(scans) < 10


def test_the_order_is_that_of_names_with_each_folder_in_its_place(tmp_path: Path) -> None:
    touch(tmp_path, "b/z.png", "b/a/y.png", "a.png", "c.png", "B.png", "b.png", "b-/x.png", "notes.txt", "b/_.PNG")
    assert names(listed(tmp_path)) == [
        *("B.png", "a.png", "b/_.PNG", "b/a/y.png", "b/z.png", "b-/x.png", "b.png", "c.png"),
    ]


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """3000 folders below one another, of which the last cannot be named by a path any more."""
    top = touch(tmp_path / "deep", "first.png")
    here = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    touch(top, "last.png")
    yield top
    # Half by half: what removes a tree is recursive too.
    while True:
        upper = top.joinpath(*["d"] * 500)
        if not upper.exists():
            break
        upper.rename(tmp_path / "lower")
        shutil.rmtree(top)
        (tmp_path / "lower").rename(top)


def test_three_thousand_folders_below_one_another(deep: Path) -> None:
    listing = listed(deep)
    assert names(listing) == ["d/" * 65, "first.png", "last.png"]
    assert "more than 64 folders below one another" in str(listing[0].error)
    assert "--max depth=128" in str(listing[0].error)
    further = listed(deep, depth=5000)
    assert [file.relative for file in further if file.error is None] == ["first.png", "last.png"]
    assert "cannot be read: File name too long" in str(further[0].error)


def test_more_folders_and_images_than_the_limits_end_the_source_with_a_row_that_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "one/a/1.png", "one/b/2.png", "one/c/3.png", "two/4.png")
    listing = listed(tmp_path / "one", tmp_path / "two", folders=3)
    assert names(listing) == ["a/1.png", "b/2.png", "c/", "4.png"]
    assert str(listing[2].error).startswith(f"{tmp_path}/one/c: the source has more than 3 folders")
    assert "--max folders=6" in str(listing[2].error)
    listing = listed(tmp_path / "one", tmp_path / "two", files=2)
    assert names(listing) == ["a/1.png", "b/2.png", "c/", "4.png"]
    assert "more than 2 images" in str(listing[2].error)
    assert "--max files=4" in str(listing[2].error)


class Lying(fsspec.AbstractFileSystem):
    """A store whose every folder holds what `shows` says of it, by the folder's path."""

    protocol = "lying"
    cachable = False
    asked: ClassVar[list[str]] = []
    shows: ClassVar[Any] = staticmethod(lambda path: [])

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[dict[str, Any]]:
        self.asked.append(path)
        return [
            {"name": name, "size": None, "type": "directory" if name.endswith("/") else "file"}
            for name in self.shows(path)
        ]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": None, "type": "directory"}


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> type[Lying]:
    fsspec.register_implementation("lying", Lying, clobber=True)
    monkeypatch.setattr(Lying, "asked", [])
    return Lying


def test_a_store_that_lists_itself_and_what_is_above_it_ends(
    lying: type[Lying], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = ["a/", "/", "a/../", "/a/b/", "a/b/a/", "b/x.png", "a/./", "a/..", "a/x.png", "a/b/", "a/b/y.png"]
    monkeypatch.setattr(lying, "shows", staticmethod(lambda path: shown))
    listing = listed("lying://a")
    assert names(listing) == ["b/y.png", "x.png"]
    assert set(lying.asked) == {"a", "a/b", "a/b/a"}


def test_a_store_whose_every_folder_holds_another_ends_at_the_depth(
    lying: type[Lying], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lying, "shows", staticmethod(lambda path: [f"{path}/a/", f"{path}/x.png"]))
    listing = listed("lying://a")
    assert len(lying.asked) < 300
    assert len([file for file in listing if file.error is None]) == 65
    assert listing[0].relative == "a/" * 65
    assert "--max depth=128" in str(listing[0].error)


def test_a_store_that_branches_for_ever_ends_at_its_folders(
    lying: type[Lying], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lying, "shows", staticmethod(lambda path: [f"{path}/{name}/" for name in "abc"]))
    listing = listed("lying://a", folders=1000, depth=8)
    assert "more than 1000 folders" in str(listing[-1].error)
    assert len(lying.asked) <= 1000 + 10


def test_a_store_that_raises_what_is_no_error_of_a_system_is_a_failed_row(
    lying: type[Lying], monkeypatch: pytest.MonkeyPatch
) -> None:
    def shows(path: str) -> list[str]:
        if path == "a/b":
            raise RuntimeError("bad gateway")
        return ["a/b/", "a/c.png"]

    monkeypatch.setattr(lying, "shows", staticmethod(shows))
    listing = listed("lying://a")
    assert names(listing) == ["b/", "c.png"]
    assert listing[0].error == "lying://a/b: cannot be read: RuntimeError: bad gateway"


def test_a_store_that_says_the_truth_is_listed_whole() -> None:
    store = MemoryFileSystem()
    for name in ("b.png", "a/d.png", "a/c 1.png", "a%20b/e.png"):
        store.pipe_file(f"/listing/{name}", b"")
    try:
        assert names(listed("memory://listing")) == ["a/c 1.png", "a/d.png", "a%20b/e.png", "b.png"]
        assert names(listed("memory://listing/b.png")) == ["b.png"]
    finally:
        store.rm("/listing", recursive=True)
