"""How runs end: by signals whatever hangs, over images that kill the process, and begun anew where one was cut off."""

from __future__ import annotations

import errno
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shade_fast import Limits
from shade_fast.api.poisoner import Poisoner
from shade_fast.archive import Manifest, Storage
from shade_fast.archive.bound import MemoryBound
from shade_fast.archive.storage import ArchiveStoppedError
from tests.archive.outputs import Command, Run, finish, images, wait_for_images
from tests.codecs.hostile import jpeg
from tests.workers.processes import workers_of

#: An encoder that kills its process, or sleeps for ever, over an image that is red; as a module of its own.
FATAL = """
    import os, signal, time
    import torch
    from torch import nn

    class Fatal(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.how = how
            self.convolution = nn.Conv2d(3, 4, 8, 8)
            nn.init.constant_(self.convolution.weight, 0.01)

        def forward(self, images):
            red = images.mean(dim=(0, 2, 3))
            if red.device.type == "cpu" and float(red[0] - red[1]) > 0.8:
                if self.how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(1000)
            return self.convolution(images)
"""
RUN = """
    import sys
    import torch
    from shade_fast import Budget, View, poison_archive
    from fatal import Fatal
    torch.manual_seed(0)
    report = poison_archive(
        sys.argv[1], sys.argv[2], "castle", encoder=Fatal(sys.argv[3]), perceptual=None, backend="reference",
        budget=Budget(16 / 255, None), steps=2, view=View(32), target_ratio=1.0
    )
    print(report.summary())
"""


@pytest.fixture
def fatal(many: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`fatal(how)`: a run over twelve images and a red one, in a process of its own."""
    (tmp_path / "fatal.py").write_text(textwrap.dedent(FATAL))
    (tmp_path / "run.py").write_text(textwrap.dedent(RUN))
    Image.new("RGB", (32, 32), (255, 0, 0)).save(many / "05-red.png")

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "run.py", str(many), str(tmp_path / "out"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    return call


def test_an_image_that_kills_the_process_is_passed_by(fatal: Any, tmp_path: Path) -> None:
    assert [fatal("kill").returncode for _ in range(2)] == [-signal.SIGKILL] * 2
    third = fatal("kill")
    assert third.returncode == 0, third.stderr
    assert "13 images: 12 ok, 0 below target, 1 failed" in third.stdout
    (row,) = (row for row in Manifest(Storage(tmp_path / "out")).all_rows() if row.status == "failed")
    assert row.key == "05-red.png"
    assert "worker processes died over this image" in str(row.error)
    assert row.transient
    again = fatal("kill")
    assert again.returncode == 0
    assert "0 of them now" in again.stdout
    assert not (tmp_path / "out/_shade_fast/begun").exists()


def test_one_that_takes_the_process_apart_with_it_is_passed_by_too(fatal: Any, tmp_path: Path) -> None:
    for _ in range(2):
        fatal("kill")
    begun = tmp_path / "out/_shade_fast/begun/0-of-1.json"
    known = json.loads(begun.read_text())
    assert sorted(known.values()) == [2]
    begun.write_text(json.dumps(dict.fromkeys(known, 3)))
    last = fatal("kill")
    assert "12 ok, 0 below target, 1 failed" in last.stdout, last.stderr
    (row,) = (row for row in Manifest(Storage(tmp_path / "out")).all_rows() if row.status == "failed")
    assert "3 processes were killed over this image" in str(row.error)


def test_an_interruption_accuses_nobody(run: Run, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    for _ in range(4):
        with monkeypatch.context() as patched:
            patched.setattr(Poisoner, "submit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(many)
    assert run(many).ok == 12


def test_a_disk_that_is_full_as_an_image_is_begun_stops_the_run(
    run: Run, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    system = types.SimpleNamespace(replace=full, makedirs=os.makedirs, path=os.path)
    monkeypatch.setattr("shade_fast.archive.suspects.os", system)
    with pytest.raises(ArchiveStoppedError, match="No space left on device; make room"):
        run(many)


def test_images_that_were_there_when_somebody_else_killed_the_run_are_done(
    command: Command, many: Path, tmp_path: Path
) -> None:
    arguments = ("archive", many, "--out", tmp_path / "out", "--steps", "100", "--events", tmp_path / "events.jsonl")
    for count in range(1, 5):
        process = command(*arguments)
        wait_for_images(process, tmp_path / "events.jsonl", count)
        process.kill()
        process.communicate()
    code, printed, errors = finish(command(*arguments))
    assert code == 0, errors
    assert "12 images: 12 ok" in printed


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[str]:
    """The URL of a server that takes requests, writes a file `asked`, and never answers."""
    asked = tmp_path / "asked"
    stop = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.touch()
            stop.wait(300)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    stop.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("busy", ["decoding", "reading"])
def test_sigterm_ends_a_run_whatever_is_decoded_or_read(
    busy: str, command: Command, many: Path, silent: str, tmp_path: Path
) -> None:
    more: list[str] = []
    source = many
    if busy == "decoding":
        (many / "00-slow.jpg").write_bytes(jpeg(2000, 50_000))
        more = ["--max", "decode-seconds=1000"]
    else:
        source = tmp_path / "t.csv"
        names = [f"{silent}/a.png", *(f"many/{place:02}.png" for place in range(12))]
        source.write_text("path\n" + "\n".join(names) + "\n")
        more = ["--allow-protocols", "http", "--allow-private", "--timeout", "1000", "--max", "read-seconds=1000"]
    process = command("archive", source, "--out", tmp_path / "out", "--workers", "1", *more)
    until = time.monotonic() + 120
    while not (workers_of(process.pid, b"shade_fast.codecs") if busy == "decoding" else (tmp_path / "asked").exists()):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(2)
    assert process.poll() is None
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, _, errors = finish(process)
    assert time.monotonic() - started < 8
    assert code == 143, errors
    assert "interrupted; run the same again" in errors
    assert not [row for row in Manifest(Storage(tmp_path / "out")).all_rows() if row.status == "failed"]


def test_sigterm_ends_a_run_whose_engine_hangs(fatal: Any, many: Path, tmp_path: Path) -> None:
    run = (tmp_path / "run.py").read_text().replace("target_ratio=", "stop=stop, grace=2, target_ratio=")
    (tmp_path / "run.py").write_text(
        "import sys\nfrom shade_fast.cli.archive import stopping\nimport contextlib\n"
        "stack = contextlib.ExitStack()\nstop = stack.enter_context(stopping())\n" + run
    )
    process = subprocess.Popen(
        [sys.executable, "run.py", str(many), str(tmp_path / "out"), "sleep"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 60
    while len(images(tmp_path / "out")) < 5:
        assert time.monotonic() < until
        time.sleep(0.2)
    time.sleep(2)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, _, errors = finish(process)
    assert time.monotonic() - started < 8
    assert code == 143
    assert "ended after 2 s with an image unfinished; run the same again to go on" in errors
    assert json.loads((tmp_path / "out/_shade_fast/begun/0-of-1.json").read_text()) == {}


@pytest.mark.parametrize("moment", ["before", "between", "after"])
@pytest.mark.parametrize("place", ["folder", "url"])
def test_an_overwriting_run_that_is_killed_at_its_start_is_resumed(
    moment: str, place: str, run: Run, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out: Any = tmp_path / "out" if place == "folder" else f"memory://killed-{moment}/out"
    run(many, out, steps=2)
    first = {row.key: row.output_sha256 for row in Manifest(Storage(out)).all_rows()}

    class Killed(BaseException):
        pass

    moves = 0
    move = Storage.move_record

    def killed(self: Storage, name: str, to: str) -> None:
        nonlocal moves
        moves += 1
        if moment == "after":
            move(self, name, to)
        if moves == (1 if moment != "between" else 2):
            raise Killed
        if moment != "after":
            move(self, name, to)

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "move_record", killed)
        with pytest.raises(Killed):
            run(many, out, mode="overwrite", steps=3)
    report = run(many, out, steps=3)
    assert (report.new, report.ok, report.failed) == (12, 12, 0)
    second = {row.key: row.output_sha256 for row in Manifest(Storage(out)).all_rows()}
    assert all(first[key] != second[key] for key in first)
    assert not Storage(out).folders("_shade_fast/replaced")


def test_what_an_earlier_run_wrote_and_this_one_does_not_stays_known(run: Run, many: Path, tmp_path: Path) -> None:
    run(many)
    (many / "03.png").rename(tmp_path / "03.png")
    assert run(many, mode="overwrite", steps=2).ok == 11
    assert (tmp_path / "out/03.png").exists()
    (tmp_path / "03.png").rename(many / "03.png")
    assert run(many, mode="overwrite", steps=4).ok == 12


def test_waiting_images_are_bounded(run: Run, tmp_path: Path, draw: Any) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for place in range(30):
            buffer = io.BytesIO()
            Image.fromarray(draw(32, 32 + 8 * (place % 3), 0)).save(buffer, "PNG")
            member = tarfile.TarInfo(f"{place:02}.png")
            member.size = len(buffer.getvalue())
            tar.addfile(member, io.BytesIO(buffer.getvalue()))
    report = run(tmp_path / "a.tar", limits=Limits(waiting_bytes=1), workers=4)
    assert (report.ok, report.duplicates) == (30, 27)


def test_memory_is_free_again_as_objects_go() -> None:
    class Held:
        pass

    bound, stop, held = MemoryBound(10), threading.Event(), [Held(), Held()]
    for holder in held:
        bound.hold(holder, 8)
    waiting = threading.Thread(target=bound.wait, args=(stop,))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    assert bound.is_full
    held.pop()
    del holder
    waiting.join(2)
    assert not waiting.is_alive()


def test_duplicates_that_wait_are_bounded(
    run: Run, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shade_fast.archive import flow

    monkeypatch.setattr(flow, "WAITING_DUPLICATES", 3)
    for place in range(30):
        (many / f"copy-{place:02}.png").write_bytes((many / "00.png").read_bytes())
    report = run(many)
    assert (report.ok, report.duplicates) == (42, 30)


def test_what_killed_runs_leave_in_the_temporary_folder_is_removed(
    command: Command, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    arguments = ("archive", many, "--out", tmp_path / "out", "--events", tmp_path / "events.jsonl", "--steps", "100")
    process = command(*arguments)
    wait_for_images(process, tmp_path / "events.jsonl", 1)
    process.kill()
    process.communicate()
    assert len(list(temporary.glob("shade_fast-*"))) == 1
    time.sleep(5.5)  # younger ones may be about to be held
    assert finish(command(*arguments))[0] == 0
    assert list(temporary.glob("shade_fast-*")) == []


def test_permissions_and_times_are_the_sources(run: Run, many: Path, tmp_path: Path) -> None:
    many.chmod(0o700)
    (many / "sub").mkdir(mode=0o750)
    (many / "sub").chmod(0o750)
    (many / "00.png").rename(many / "sub/00.png")
    (many / "sub/00.png").chmod(0o640)
    for path in many.glob("*.png"):
        path.chmod(0o600)
        os.utime(path, (1_000_000_000, 1_000_000_000))
    out = tmp_path / "out"
    run(many, keep_times=True)
    modes = {
        path.relative_to(out).as_posix(): path.stat().st_mode & 0o777
        for path in (out, *out.glob("**/*.png"), out / "sub")
    }
    assert modes.pop(".") == 0o700
    assert modes.pop("sub") == 0o750
    assert modes.pop("sub/00.png") == 0o640
    assert set(modes.values()) == {0o600}
    assert (out / "01.png").stat().st_mtime == 1_000_000_000
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(many / "01.png", "01.png")
    (tmp_path / "a.tar").chmod(0o600)
    run(tmp_path / "a.tar", tmp_path / "tars")
    assert (tmp_path / "tars/a.tar").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "tars/a.tar").stat().st_mtime > 1_500_000_000


def test_locks_and_records_follow_no_links(run: Run, many: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "out/_shade_fast/locks").mkdir(parents=True)
    (tmp_path / "out/_shade_fast/locks/0-of-1").symlink_to(victim)
    with pytest.raises(ValueError, match="0-of-1: is a link, which no record follows"):
        run(many)
    assert victim.read_text() == "mine"
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/_shade_fast").symlink_to(tmp_path / "out")
    with pytest.raises(ValueError, match="is a link, which no record follows"):
        run(many, tmp_path / "linked")
