"""Outputs from elsewhere: what their records name is opened only where that was asked for."""

from __future__ import annotations

import builtins
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shade_fast import ShadeFastError, verify_archive, write_report
from shade_fast.api.poisoner import Poisoner
from shade_fast.archive import Manifest, Storage, read_pairs
from shade_fast.archive.record import is_own, read_run
from tests.archive.outputs import Command, Run, finish


@pytest.fixture
def poisoner(engine: dict[str, Any]) -> Poisoner:
    return Poisoner(**engine)


def opened_outside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files outside a folder that are opened from now on: a list that grows."""
    seen: list[str] = []
    real_open, os_open = builtins.open, os.open

    def note(path: Any) -> None:
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if text.endswith((".png", ".jpg", ".webp")) and not os.path.realpath(text).startswith(f"{folder}/"):
            seen.append(text)

    def watched(path: Any, *arguments: Any, **options: Any) -> Any:
        note(path)
        return real_open(path, *arguments, **options)

    def watched_os(path: Any, *arguments: Any, **options: Any) -> int:
        note(path)
        return os_open(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", watched)
    monkeypatch.setattr(os, "open", watched_os)
    return seen


def test_a_record_of_ones_own_is_followed(run: Run, many: Path, tmp_path: Path, poisoner: Poisoner) -> None:
    run(many)
    assert verify_archive(tmp_path / "out", poisoner=poisoner) == []
    assert len(list(read_pairs(tmp_path / "out"))) == 12


def test_one_from_elsewhere_is_not(
    run: Run, many: Path, tmp_path: Path, poisoner: Poisoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(many)
    received = tmp_path / "received"
    shutil.copytree(tmp_path / "out", received)
    with monkeypatch.context() as patched:
        seen = opened_outside(received, patched)
        for call in (lambda: verify_archive(received, poisoner=poisoner), lambda: next(read_pairs(received))):
            with pytest.raises(
                ShadeFastError, match=r"received: its record was not written by a run of yours .* ../many"
            ):
                call()
        assert seen == []
    assert verify_archive(received, poisoner=poisoner, trust=True) == []
    with pytest.raises(ShadeFastError, match=r"--trust-record"):
        verify_archive(tmp_path / "out", poisoner=poisoner, trust=False)


def test_a_record_that_was_changed_is_nobodys(run: Run, many: Path, tmp_path: Path) -> None:
    run(many)
    place = tmp_path / "out/_shade_fast/run.json"
    record = json.loads(place.read_text())
    assert is_own(Storage(tmp_path / "out"), record)
    for change in (
        {"options": record["options"] | {"source": ["/etc"]}},
        {"access": {"paths": ["/"]}},
        {"written_by": None},
    ):
        assert not is_own(Storage(tmp_path / "out"), record | change)


def test_without_a_key_of_ones_own_nothing_is_followed(
    run: Run, many: Path, tmp_path: Path, poisoner: Poisoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHADE_FAST_CACHE", "")
    assert run(many).ok == 12
    with pytest.raises(ShadeFastError, match="--trust-record"):
        verify_archive(tmp_path / "out", poisoner=poisoner)
    monkeypatch.setenv("SHADE_FAST_CACHE", str(tmp_path / "cache"))
    assert run(many).new == 0
    assert verify_archive(tmp_path / "out", poisoner=poisoner) == []
    assert (tmp_path / "cache/record.key").stat().st_mode & 0o777 == 0o600


def test_resuming_makes_a_record_ones_own(run: Run, many: Path, tmp_path: Path, poisoner: Poisoner) -> None:
    run(many, limit=5)
    received = tmp_path / "received"
    shutil.copytree(tmp_path / "out", received)
    record = read_run(Storage(received)) or {}
    assert not is_own(Storage(received), record)
    for name in ("written_by", "access", "cleared"):  # as earlier versions wrote it
        del record[name]
    (received / "_shade_fast/run.json").write_text(json.dumps(record))
    assert run(many, received).ok == 12
    assert verify_archive(received, poisoner=poisoner) == []


@pytest.mark.parametrize("inside", ["replaced", "temporary", "manifest", "begun/0-of-1.json.new", "work/00000-00000"])
@pytest.mark.parametrize("mode", ["resume", "overwrite"])
def test_a_record_with_a_link_in_it_is_refused(inside: str, mode: str, run: Run, many: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (victim / "1").mkdir(parents=True)
    (victim / "1/mine").write_text("mine")
    link = tmp_path / "out/_shade_fast" / inside
    link.parent.mkdir(parents=True)
    link.symlink_to(victim / "1/mine" if "." in inside else victim)
    with pytest.raises(ShadeFastError, match=r"is a link, which no record follows; remove it"):
        run(many, mode=mode)
    assert (victim / "1/mine").read_text() == "mine"
    assert [path.name for path in victim.rglob("*")] == ["1", "mine"]


def test_a_row_leads_no_further_than_the_runs_sources(
    run: Run, many: Path, tmp_path: Path, poisoner: Poisoner, draw: Any
) -> None:
    run(many, limit=11)
    secret = tmp_path / "private/diary.png"
    secret.parent.mkdir()
    Image.fromarray(draw(32, 32, 77)).save(secret)
    (row, *_) = Manifest(Storage(tmp_path / "out")).all_rows()
    forged = dataclasses.replace(row, source="../private/diary.png", source_sha256=None, index=500, key="forged.png")
    (tmp_path / "out/_shade_fast/run.json").write_text(
        json.dumps({**(read_run(Storage(tmp_path / "out")) or {}), "written_by": None})
    )
    Manifest(Storage(tmp_path / "out")).write_row(forged)
    run(many)
    seen: list[str | None] = []
    assert verify_archive(tmp_path / "out", poisoner=poisoner, on_row=lambda row, reason: seen.append(reason)) != []
    assert any("is not below" in str(reason) for reason in seen)
    page = write_report(tmp_path / "out").read_text()
    assert "outside this folder" in page


@pytest.mark.parametrize(
    "text", ['{"options": {}, "written_by": "\u00e9"}', "[" * 100_000, '{"options": ' + '{"a":' * 50_000, "[]", ""]
)
def test_a_record_that_is_none_is_an_error_of_its_own(text: str, many: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "out/_shade_fast").mkdir(parents=True)
    (tmp_path / "out/_shade_fast/run.json").write_text(text)
    for call in (lambda: verify_archive(tmp_path / "out"), lambda: run(many), lambda: write_report(tmp_path / "out")):
        with pytest.raises(ShadeFastError):
            call()


def test_what_others_left_as_begun_accuses_nobody(run: Run, many: Path, tmp_path: Path) -> None:
    begun = tmp_path / "out/_shade_fast/begun"
    begun.mkdir(parents=True)
    for number, text in enumerate(("[]", '{"a": null}', "[" * 100_000, "no json")):
        (begun / f"{number}.json").write_text(text)
    assert run(many).ok == 12


def test_commands_on_a_folder_from_elsewhere(
    command: Command, many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finish(command("archive", many, "--out", tmp_path / "out"))[0] == 0
    shutil.copytree(tmp_path / "out", tmp_path / "received")
    for name in ("verify", "survive"):
        code, _, errors = finish(command(name, tmp_path / "received", engine=False))
        assert code == 2
        assert "give --trust-record to open that" in errors
        assert finish(command(name, tmp_path / "received", "--trust-record", engine=False))[0] == 0
    assert finish(command("report", tmp_path / "received", engine=False))[0] == 0
    page = (tmp_path / "received/report.html").read_text()
    assert "outside this folder; shown with --trust-record" in page
    assert finish(command("report", tmp_path / "received", "--trust-record", engine=False))[0] == 0
    assert "outside this folder" not in (tmp_path / "received/report.html").read_text()
