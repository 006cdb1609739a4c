from __future__ import annotations

import errno
import io
import json
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from shade_fast import ShadeFastError, verify_archive
from shade_fast.api.poisoner import Poisoner
from shade_fast.archive.storage import ArchiveStoppedError, Storage
from tests.archive.outputs import Run, by_key, images


def encoded(pixels: Any, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = len(data), 1_700_000_000, 0o640
            tar.addfile(member, io.BytesIO(data))
    return path


def read_tar(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


@pytest.fixture
def shards(tmp_path: Path, draw: Any) -> Path:
    """Shards 00.tar and 01.tar of four samples each: a picture, a caption, a JSON record and a segmentation mask."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2):
        members: dict[str, bytes] = {}
        for index in range(4):
            key = f"{shard}{index:03}"
            seed = 10 * shard + index
            form = ("JPEG", "PNG", "WEBP", "BMP")[index]
            members[f"{key}.{form.lower().replace('jpeg', 'jpg')}"] = encoded(draw(32, 40, seed), form)
            members[f"{key}.txt"] = f"picture {seed}".encode()
            members[f"{key}.json"] = json.dumps({"seed": seed}).encode()
            members[f"{key}.seg.png"] = encoded(draw(32, 40, seed)[..., 0], "PNG")
        write_tar(folder / f"{shard:02}.tar", members)
    return folder


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Callable[[int], None]], None]:
    """`watch(path, before)`: `before` is given the place of each read of one file."""

    def begin(path: Path, before: Callable[[int], None]) -> None:
        class Watched(io.FileIO):
            def read(self, size: int | None = -1, /) -> bytes:
                before(self.tell())
                return super().read(size)

        plain = Storage.open

        def watched(storage: Storage, name: str = "") -> Any:
            return Watched(path) if storage.path(name) == str(path) else plain(storage, name)

        monkeypatch.setattr(Storage, "open", watched)

    return begin


def test_shards_keep_names_keys_and_other_members(
    run: Run, shards: Path, tmp_path: Path, engine: dict[str, Any]
) -> None:
    report = run(f"{shards}/{{00..01}}.tar")
    out = tmp_path / "out"
    assert (report.images, report.ok) == (8, 8)
    assert list(images(out)) == ["00.tar", "01.tar"]
    for name in ("00.tar", "01.tar"):
        before, after = read_tar(shards / name), read_tar(out / name)
        assert [member.replace(".bmp", ".png") for member in before] == list(after)
        for member, data in before.items():
            is_image = member.split(".", 1)[1] in ("jpg", "png", "webp", "bmp")
            assert (after[member.replace(".bmp", ".png")] != data) == is_image
    with tarfile.open(out / "00.tar") as tar:
        assert {(member.mtime, member.mode) for member in tar} == {(1_700_000_000, 0o640)}
    samples = list(webdataset.WebDataset(str(out / "00.tar"), shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == ["0000", "0001", "0002", "0003"]
    assert samples[0]["json"] == {"seed": 0}
    assert samples[0]["jpg"].size == (40, 32)
    assert verify_archive(out, poisoner=Poisoner(**engine)) == []
    assert run(f"{shards}/{{00..01}}.tar").new == 0


def test_a_tar_gives_the_bytes_that_its_files_give(run: Run, shards: Path, tmp_path: Path) -> None:
    with tarfile.open(shards / "00.tar") as tar:
        tar.extractall(tmp_path / "files", filter="data")
    for mask in (tmp_path / "files").glob("*.seg.png"):
        mask.unlink()
    run(shards / "00.tar", tmp_path / "tar")
    run(tmp_path / "files", tmp_path / "folder")
    members = read_tar(tmp_path / "tar/00.tar")
    for name, data in images(tmp_path / "folder").items():
        assert members[name] == data


def test_packed_shards_and_repeats_give_the_same_bytes(run: Run, tmp_path: Path, draw: Any) -> None:
    members = {f"{index}.png": encoded(draw(32, 32, index), "PNG") for index in range(2)}
    packed = write_tar(tmp_path / "a.tar.gz", members, "w:gz")
    for name in ("one", "two"):
        run(packed, tmp_path / name)
    assert (tmp_path / "one/a.tar.gz").read_bytes() == (tmp_path / "two/a.tar.gz").read_bytes()
    assert list(read_tar(tmp_path / "one/a.tar.gz")) == list(members)


def test_an_interrupted_shard_goes_on(run: Run, shards: Path, tmp_path: Path) -> None:
    run(shards / "00.tar", tmp_path / "whole")
    assert run(shards / "00.tar", limit=3).interrupted
    assert images(tmp_path / "out") == {}
    report = run(shards / "00.tar")
    assert (report.new, report.images) == (1, 4)
    assert images(tmp_path / "out") == images(tmp_path / "whole")
    assert not list((tmp_path / "out/_shade_fast").rglob("*.bin"))


def test_overwriting_a_shard(run: Run, shards: Path, tmp_path: Path) -> None:
    run(shards / "00.tar")
    first = images(tmp_path / "out")
    report = run(shards / "00.tar", mode="overwrite", steps=2)
    assert (report.new, report.images) == (4, 4)
    assert images(tmp_path / "out") != first
    run(shards / "00.tar", tmp_path / "anew", steps=2)
    assert images(tmp_path / "out") == images(tmp_path / "anew")


def test_overwriting_shards_that_was_killed_between_them_goes_on(run: Run, shards: Path, tmp_path: Path) -> None:
    both = f"{shards}/{{00..01}}.tar"
    run(both)
    assert run(both, mode="overwrite", steps=2, limit=4).interrupted
    (tmp_path / "out/_shade_fast/manifest/01.tar.partial.parquet").unlink()
    assert run(both, steps=2).ok == 8
    run(both, tmp_path / "anew", steps=2)
    assert images(tmp_path / "out") == images(tmp_path / "anew")


def test_a_shard_that_no_run_has_written_is_never_overwritten(run: Run, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/00.tar").touch()
    with pytest.raises(ShadeFastError, match=r"out/00.tar: exists and no run's record names it; move it away"):
        run(shards / "00.tar", mode="overwrite")
    assert (tmp_path / "out/00.tar").read_bytes() == b""
    (tmp_path / "out/00.tar").unlink()
    assert run(shards / "00.tar", mode="overwrite").ok == 4
    assert len(read_tar(tmp_path / "out/00.tar")) == 16


def test_duplicates_across_shards(run: Run, tmp_path: Path, draw: Any) -> None:
    data = encoded(draw(32, 32, 0), "PNG")
    write_tar(tmp_path / "a.tar", {"1.png": data})
    write_tar(tmp_path / "b.tar", {"2.png": data, "3.png": data})
    report = run([tmp_path / "a.tar", tmp_path / "b.tar"])
    assert report.duplicates == 2
    written = read_tar(tmp_path / "out/b.tar")
    assert written["2.png"] == written["3.png"] == read_tar(tmp_path / "out/a.tar")["1.png"]


def test_threads_that_copy_from_one_shard_get_their_own_members(
    run: Run, tmp_path: Path, draw: Any, watch: Any
) -> None:
    members = {f"{index}.png": encoded(draw(32, 32, index), "PNG") for index in range(8)}
    shards = [write_tar(tmp_path / name, members) for name in ("a.tar", "b.tar")]
    watch(tmp_path / "out/a.tar", lambda place: time.sleep(0.002))
    assert run(shards, workers=4).duplicates == 8
    assert read_tar(tmp_path / "out/b.tar") == read_tar(tmp_path / "out/a.tar")


def test_a_duplicate_of_a_member_that_is_gone_is_done_for_itself(run: Run, tmp_path: Path, draw: Any) -> None:
    data = encoded(draw(32, 32, 0), "PNG")
    write_tar(tmp_path / "a.tar", {"1.png": data})
    write_tar(tmp_path / "b.tar", {"2.png": data})
    both = [tmp_path / "a.tar", tmp_path / "b.tar"]
    assert run(both, limit=1).interrupted
    written = read_tar(tmp_path / "out/a.tar")
    (tmp_path / "out/a.tar").unlink()
    report = run(both)
    assert (report.ok, report.duplicates) == (2, 0)
    assert read_tar(tmp_path / "out/b.tar")["2.png"] == written["1.png"]


def test_names_with_more_dots_are_told_of(
    run: Run, tmp_path: Path, draw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["0.png", "._0.v1.png", "notes.v1.txt", "IMG.v2.png", "2024.01.05.png"]
    members = {name: encoded(draw(32, 32, 0), "PNG") for name in names}
    assert run(write_tar(tmp_path / "a.tar", members)).images == 1
    written = read_tar(tmp_path / "out/a.tar")
    assert [name for name in names if written[name] != members[name]] == ["0.png"]
    (message,) = (record.getMessage() for record in caplog.records if record.name == "shade_fast.archive.tars")
    assert "a.tar: IMG.v2.png is copied unprotected" in message
    assert "rename what is to be protected" in message


def test_members_that_would_escape_or_are_no_files(run: Run, tmp_path: Path, draw: Any) -> None:
    data = encoded(draw(32, 32, 0), "PNG")
    names = ["../up.png", "/absolute.png", "a/../../b.png", "good.png", "-dash and space.png", "new\nline.png"]
    write_tar(tmp_path / "a.tar", dict.fromkeys(names, data))
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("hard.txt", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    rows = by_key(run(tmp_path / "a.tar"))
    assert {key for key, row in rows.items() if row.status == "ok"} == set(names[3:])
    assert "a name that leads out of its folder; it is left out" in str(rows["../up.png"].error)
    assert "an absolute name" in str(rows["/absolute.png"].error)
    assert "a link" in str(rows["link.png"].error)
    assert "a link" in str(rows["hard.txt"].error)
    assert "a device or pipe" in str(rows["pipe.png"].error)
    assert list(read_tar(tmp_path / "out/a.tar")) == names[3:]


def test_names_that_are_no_text_or_long(run: Run, tmp_path: Path, draw: Any) -> None:
    names = [os.fsdecode(b"caf\xe9.png"), "x" * 200 + ".png", "dir/" + "é" * 120 + ".png"]
    write_tar(tmp_path / "a.tar", {name: encoded(draw(32, 32, seed), "PNG") for seed, name in enumerate(names)})
    rows = by_key(run(tmp_path / "a.tar"))
    assert "caf\\xe9.png" in rows
    assert {row.status for row in rows.values()} == {"ok"}
    assert list(read_tar(tmp_path / "out/a.tar")) == names


@pytest.mark.parametrize("cut", ["member", "header", "before the end"])
def test_a_truncated_tar(cut: str, run: Run, tmp_path: Path, draw: Any, engine: dict[str, Any]) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{index}.png": encoded(draw(32, 32, index), "PNG") for index in range(3)})
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
        places = {
            "member": last.offset_data + 700,
            "header": last.offset + 100,
            "before the end": last.offset_data + (last.size + 511) // 512 * 512,
        }
    path.write_bytes(path.read_bytes()[: places[cut]])
    report = run(path)
    rows = by_key(report)
    good = ["0.png", "1.png", "2.png"] if cut == "before the end" else ["0.png", "1.png"]
    assert [key for key, row in rows.items() if row.status == "ok"] == good
    (bad,) = (row for row in rows.values() if row.status == "failed")
    assert "truncated or damaged here" in str(bad.error)
    assert list(read_tar(tmp_path / "out/a.tar")) == good
    assert verify_archive(tmp_path / "out", poisoner=Poisoner(**engine)) == []


def test_a_tar_truncated_in_what_is_no_image(run: Run, tmp_path: Path, draw: Any) -> None:
    path = write_tar(tmp_path / "a.tar", {"0.png": encoded(draw(32, 32, 0), "PNG"), "0.mp4": bytes(90_000)})
    path.write_bytes(path.read_bytes()[:60_000])
    assert [row.status for row in run(path).rows()] == ["ok", "failed"]
    assert list(read_tar(tmp_path / "out/a.tar")) == ["0.png"]


def test_a_damaged_header_is_not_taken_for_the_end(run: Run, tmp_path: Path, draw: Any) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{index}.png": encoded(draw(32, 32, index), "PNG") for index in range(3)})
    with tarfile.open(path) as tar:
        place = tar.getmembers()[1].offset
    data = bytearray(path.read_bytes())
    data[place + 148 : place + 156] = b"9999999\0"
    path.write_bytes(data)
    rows = by_key(run(path))
    assert [row.status for row in rows.values()] == ["ok", "failed"]


@pytest.mark.parametrize("number", [1, 2], ids=["protected", "written"])
def test_a_read_error_that_passes_is_no_damage(number: int, run: Run, tmp_path: Path, draw: Any, watch: Any) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{index}.png": encoded(draw(32, 32, index), "PNG") for index in range(6)})
    run(path, tmp_path / "whole")
    begun = []

    def fail_once(place: int) -> None:
        if place == 0:
            begun.append(place)
        elif len(begun) == number and place > 10_000:
            begun.clear()
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    watch(path, fail_once)
    with pytest.raises(ArchiveStoppedError, match=r"a.tar: cannot be read: Connection timed out; fix that and run th"):
        run(path)
    begun.extend(range(3))
    report = run(path)
    assert (report.images, report.ok) == (6, 6)
    assert images(tmp_path / "out") == images(tmp_path / "whole")


def test_a_tar_that_changes_before_its_end_is_not_finished(run: Run, tmp_path: Path, draw: Any) -> None:
    members = {f"{index}.png": encoded(draw(32, 32, index), "PNG") for index in range(4)}
    path = write_tar(tmp_path / "a.tar", members)
    assert run(path, limit=3).interrupted
    write_tar(path, dict(list(members.items())[:2]))
    with pytest.raises(ShadeFastError, match=r"a.tar: holds other images than when they were protected; bring it"):
        run(path)
    write_tar(path, members)
    assert run(path).ok == 4
    assert list(read_tar(tmp_path / "out/a.tar")) == list(members)
    assert run(path, tmp_path / "two", limit=3).interrupted
    write_tar(path, dict(reversed(members.items())))
    with pytest.raises(ShadeFastError, match=r"a.tar: holds other images than when they were protected; .* overwrite"):
        run(path, tmp_path / "two")


def test_a_damaged_tar_that_is_mended_before_its_end(run: Run, tmp_path: Path, draw: Any) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{index}.png": encoded(draw(32, 32, index), "PNG") for index in range(3)})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ArchiveStoppedError, match=r"truncated or damaged here"):
        run(path, on_error="stop")
    path.write_bytes(data)
    with pytest.raises(ShadeFastError, match=r"a.tar: holds other images than when they were protected; bring it"):
        run(path)
    assert run(path, mode="overwrite").ok == 3


def test_what_tars_are_refused(run: Run, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ShadeFastError, match=r"02.tar: no such file"):
        run(f"{shards}/{{00..02}}.tar")
    (tmp_path / "other").mkdir()
    write_tar(tmp_path / "other/00.tar", {})
    with pytest.raises(ShadeFastError, match=r"another shard is named 00.tar"):
        run([shards / "00.tar", tmp_path / "other/00.tar"])
    with pytest.raises(ShadeFastError, match=r"holds the source"):
        run(shards / "00.tar", shards)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/00.tar").touch()
    with pytest.raises(ShadeFastError, match=r"out/00.tar: exists and is none of this run's"):
        run(shards / "00.tar")
