"""What goes wrong with machines and files, on real processes, signals, disks and files."""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tarfile
import textwrap
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from shade_fast import Access, Limits
from shade_fast.archive import Manifest, Storage, archive_status
from shade_fast.images import decode
from tests.archive.outputs import SMALL, Command, Run, by_key, finish, images, twelve_images, wait_for_images

Start = Callable[..., "subprocess.Popen[str]"]
#: Steps enough that a test can do something while a run goes on.
LONGER = ("--steps", "100")


@pytest.fixture
def start(command: Command, many: Path, tmp_path: Path) -> Start:
    """`start(*more)`: a run over twelve images in shards of five, with an event for each in events.jsonl."""

    def call(*more: str | Path, out: str = "out", **options: Any) -> subprocess.Popen[str]:
        arguments = ("archive", many, "--out", tmp_path / out, "--shard-size", "5", *LONGER)
        return command(*arguments, "--events", tmp_path / "events.jsonl", *more, **options)

    return call


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, draw: Any) -> dict[str, bytes]:
    """What an undisturbed run makes of the twelve images."""
    folder = tmp_path_factory.mktemp("whole")
    twelve_images(folder / "many", draw)
    arguments = ["archive", folder / "many", "--out", folder / "out", *SMALL, *LONGER]
    subprocess.run([sys.executable, "-m", "shade_fast.cli", *map(str, arguments)], check=True, capture_output=True)
    return images(folder / "out")


def statuses(out: Path) -> dict[str, str]:
    rows = list(Manifest(Storage(out)).all_rows())
    assert len({row.key for row in rows}) == len(rows)
    return {row.key: row.status for row in rows}


def test_killed_at_random_moments_the_result_is_the_same(start: Start, whole: dict[str, bytes], tmp_path: Path) -> None:
    moments = random.Random(0)
    events = tmp_path / "events.jsonl"
    for _ in range(3):
        events.unlink(missing_ok=True)
        process = start()
        wait_for_images(process, events, 1)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.communicate()
        for name, data in images(tmp_path / "out").items():
            assert whole[name] == data, name
    before = len(images(tmp_path / "out"))
    code, printed, _ = finish(start())
    assert code == 0
    assert before > 3
    assert "12 images: 12 ok" in printed
    assert images(tmp_path / "out") == whole
    assert set(statuses(tmp_path / "out").values()) == {"ok"}
    left = [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".shade_fast-")]
    assert left == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_what_is_on_its_way(number: int, code: int, start: Start, tmp_path: Path) -> None:
    process = start()
    wait_for_images(process, tmp_path / "events.jsonl", 2)
    process.send_signal(number)
    ended, printed, errors = finish(process)
    assert ended == code, errors
    assert "interrupted; run the same again to go on" in errors
    assert "not finished" in printed
    done = statuses(tmp_path / "out")
    assert 2 <= len(done) < 12
    assert set(images(tmp_path / "out")) == set(done)
    assert not list((tmp_path / "out/_shade_fast/work").rglob("*.json"))
    assert json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])["interrupted"] is True
    assert finish(start())[0] == 0
    assert len(statuses(tmp_path / "out")) == 12


def test_a_second_run_on_one_output_is_refused_until_the_first_is_dead(start: Start, tmp_path: Path) -> None:
    first = start("--steps", "1000")
    wait_for_images(first, tmp_path / "events.jsonl", 1)
    code, _, errors = finish(start("--steps", "1000"))
    assert code == 2
    assert f"process {first.pid} on " in errors
    assert "is writing there; wait for it, or give another output" in errors
    first.kill()
    first.communicate()
    assert finish(start("--overwrite"))[0] == 0


def test_a_source_that_vanishes_and_comes_back(start: Start, many: Path, tmp_path: Path) -> None:
    process = start("--workers", "1")
    wait_for_images(process, tmp_path / "events.jsonl", 2)
    many.rename(tmp_path / "away")
    code, _, errors = finish(process)
    assert code == 2
    assert f"{many}: is not there any more; bring it back and run this again" in errors
    assert set(statuses(tmp_path / "out").values()) == {"ok"}
    (tmp_path / "away").rename(many)
    assert finish(start())[0] == 0
    assert len(statuses(tmp_path / "out")) == 12


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_up(start: Start, whole: dict[str, bytes], small_disk: Path) -> None:
    code, _, errors = finish(start(out="disk/out"))
    assert code == 2
    assert "No space left on device; make room or fix the disk, and run this again" in errors
    part = images(small_disk / "out")
    assert part.items() <= whole.items()
    assert len(part) < 12
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    assert finish(start(out="disk/out"))[0] == 0
    assert images(small_disk / "out") == whole
    assert len(statuses(small_disk / "out")) == 12


def _without_privilege() -> None:
    """Let a process that root starts be refused what modes refuse: no CAP_DAC_OVERRIDE, no CAP_DAC_READ_SEARCH."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def test_a_folder_and_a_file_that_may_not_be_read(start: Start, many: Path, tmp_path: Path) -> None:
    (many / "locked").mkdir()
    (many / "locked/a.png").touch()
    (many / "00.png").chmod(0)
    (many / "locked").chmod(0)
    try:
        code, printed, errors = finish(start(preexec_fn=_without_privilege))
    finally:
        (many / "locked").chmod(0o700)
    assert code == 1, errors
    assert "12 images: " not in printed
    rows = {row.key: row for row in Manifest(Storage(tmp_path / "out")).all_rows()}
    assert len(rows) == 13
    for key in ("00.png", "locked/"):
        assert rows[key].status == "failed"
        assert "cannot be read: Permission denied" in str(rows[key].error)
    assert archive_status(tmp_path / "out")["ok"] == 11


def test_tasks_share_an_output_without_knowing_of_each_other(
    start: Start, whole: dict[str, bytes], tmp_path: Path
) -> None:
    tasks = [start("--shard", f"{task}/2") for task in range(2)]
    assert [finish(task)[0] for task in tasks] == [0, 0]
    assert images(tmp_path / "out") == whole
    assert json.loads((tmp_path / "out/_stats.json").read_text())["images"] == 12


def test_out_of_memory_is_one_failed_image(tmp_path: Path, many: Path) -> None:
    Image.new("RGB", (9000, 7000), (90, 120, 30)).save(many / "05-large.jpg")
    code = textwrap.dedent(f"""
        import re, resource, torch
        from shade_fast import Budget, View, poison_archive
        options = dict(budget=Budget(16 / 255, None), perceptual=None, view=View(32), steps=2, workers=1)
        poison_archive({str(many)!r}, {str(tmp_path / "first")!r}, "castle", limit=2, **options)
        size = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
        resource.setrlimit(resource.RLIMIT_AS, (size + (1100 << 20),) * 2)
        report = poison_archive({str(many)!r}, {str(tmp_path / "out")!r}, "castle", **options)
        print(report.summary())
        print([row.error for row in report.rows() if row.status == "failed"])
    """)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert "13 images: 12 ok, 0 below target, 1 failed" in ended.stdout
    assert "05-large.jpg" in ended.stdout
    assert resource.RLIMIT_AS  # the limit was set in the other process alone


def bomb() -> bytes:
    """A PNG of 40000x40000 pixels in a few hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_files_that_are_not_what_they_seem(run: Run, photos: Path, tmp_path: Path) -> None:
    data = (photos / "b.jpg").read_bytes()
    (photos / "bomb.png").write_bytes(bomb())
    (photos / "cut.jpg").write_bytes(data[: len(data) // 2])
    (photos / "zero.jpg").touch()
    (photos / "text.webp").write_text("<html>")
    (photos / "png-inside.jpg").write_bytes((photos / "a.png").read_bytes())
    (photos / "jpeg-inside.png").write_bytes(data)
    (photos / "folder.png").mkdir()
    (photos / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (photos / "round.png").symlink_to(photos / "round.png")
    os.mkfifo(photos / "pipe.png")
    rows = by_key(run(photos))
    reasons = {key: str(row.error) for key, row in rows.items() if row.status == "failed"}
    assert set(reasons) == {"bomb.png", "cut.jpg", "zero.jpg", "text.webp", "gone.png", "round.png", "pipe.png"}
    assert "decompression bomb" in reasons["bomb.png"]
    assert "truncated or damaged" in reasons["cut.jpg"]
    assert "empty" in reasons["zero.jpg"]
    assert "not an image" in reasons["text.webp"]
    assert "No such file" in reasons["gone.png"]
    assert "symbolic links" in reasons["round.png"]
    assert "not a file" in reasons["pipe.png"]
    assert (rows["png-inside.jpg"].source_format, rows["png-inside.jpg"].output_format) == ("PNG", "PNG")
    assert rows["jpeg-inside.png"].output_format == "JPEG"
    assert decode(tmp_path / "out/png-inside.jpg").format == "PNG"


def test_a_table_of_what_has_no_end(run: Run, photos: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "sparse.png").touch()
    os.truncate(tmp_path / "sparse.png", 1 << 40)
    names = ["pipe.png", "sparse.png", "/dev/zero", "photos", "photos/a.png"]
    (tmp_path / "t.csv").write_text("\n".join(["path", *names]))
    *bad, good = run(tmp_path / "t.csv", access=Access(paths=("/dev",))).rows()
    assert good.status == "ok"
    for row, words in zip(
        bad, ["not a file", "1099511627776 bytes; at most 536870912 are", "not a file", "not a file"], strict=True
    ):
        assert words in str(row.error)


@pytest.mark.parametrize("kind", ["folder", "tar", "url"])
def test_a_file_larger_than_any_image(kind: str, run: Run, many: Path, tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(many / "large.png")
    source: Path | str = many
    if kind == "tar":
        source = tmp_path / "a.tar"
        with tarfile.open(source, "w") as tar:
            tar.add(many / "00.png", "00.png")
            tar.add(many / "large.png", "large.png")
    elif kind == "url":
        source = "memory://large"
        fsspec.filesystem("memory").put(str(many), "/large", recursive=True)
    rows = by_key(run(source, limits=Limits(image_bytes=(many / "large.png").stat().st_size - 1)))
    (bad,) = (row for row in rows.values() if row.status == "failed")
    assert bad.key == "large.png"
    assert "bytes; at most" in str(bad.error)


def test_names_of_any_kind(run: Run, tmp_path: Path, draw: Any) -> None:
    folder = tmp_path / "names"
    longest = "é" * 125 + "a.png"
    names = ["a b.png", "new\nline.png", "-x.png", "back\\slash.png", "日本.png", "*?.png", longest, "x" * 251 + ".bmp"]
    names += [os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"bad\xff\\x41.png"), "%41.png", "a::b.png"]
    folder.mkdir()
    for seed, name in enumerate(names):
        Image.fromarray(draw(32, 32, seed)).save(folder / name)
    report = run(folder)
    rows = by_key(report)
    assert "failed" not in {row.status for row in rows.values()}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [name.replace(".bmp", ".png") for name in names] + ["_shade_fast", "_stats.json"]
    )
    assert run(folder).new == 0
    too_long = tmp_path / "long" / ("x" * 251 + ".png")
    too_long.parent.mkdir()
    Image.fromarray(draw(32, 32, 0)).save(too_long)
    (row,) = run(too_long.parent, tmp_path / "webp", output="webp").rows()
    assert row.status == "failed"
    assert "File name too long" in str(row.error)
