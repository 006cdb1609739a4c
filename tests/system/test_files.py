"""Local files that are there whole or not at all."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shade_fast.archive.record import locked
from shade_fast.archive.storage import Storage
from shade_fast.system.files import whole_file, write_whole
from shade_fast.terms.errors import ShadeFastError


def test_a_file_that_was_not_written_to_its_end_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "record.json"
    write_whole(path, b"before")
    with pytest.raises(RuntimeError, match="cut off"), whole_file(path) as file:
        file.write(b"half of")
        raise RuntimeError("cut off")
    assert path.read_bytes() == b"before"
    assert list(path.parent.iterdir()) == [path]


def test_many_write_the_same_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    contents = [bytes([number]) * 100_000 for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: write_whole(path, data), contents))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_may_be_read_by_whom_the_user_lets(tmp_path: Path) -> None:
    plain, whole = tmp_path / "plain", tmp_path / "whole"
    plain.write_bytes(b"")
    write_whole(whole, b"")
    assert whole.stat().st_mode == plain.stat().st_mode


def test_a_file_that_another_thread_makes_meanwhile_keeps_its_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_umask, seen = os.umask, []

    def watched(mask: int) -> int:
        seen.append(mask)
        return set_umask(mask)

    monkeypatch.setattr(os, "umask", watched)
    write_whole(tmp_path / "whole", b"")
    assert seen == []


def homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_an_output_behind_a_url_is_locked_for_a_user_without_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("SHADE_FAST_CACHE", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with locked(Storage("memory://out"), "run"):
        (lock,) = tmp_path.glob("shade_fast-*/locks/*-run")
        with pytest.raises(ShadeFastError, match="is writing there"), locked(Storage("memory://out"), "run"):
            pass
    assert not lock.exists()
