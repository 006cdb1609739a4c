"""Codecs as they are: processes that hostile files are given to, that are killed, stopped and left alone."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from shade_fast import ShadeFastError
from shade_fast.codecs import CodecDiedError, Codecs, DeadlineError, Interrupted, pool
from shade_fast.images import DecodedImage, Output, decode
from shade_fast.system.processes import start
from shade_fast.terms.limits import Limits
from tests.codecs import hostile
from tests.workers.processes import is_running, wait_until_gone, workers_of

ROOT = Path(__file__).resolve().parents[2]
PHOTOGRAPHS = ROOT / "tests/photographs"
#: Long enough that a test can look at a process that decodes it, if nothing ends that.
ENDLESS = hostile.jpeg(3000, 20000)


@pytest.fixture(scope="module")
def codecs() -> Iterator[Codecs]:
    with Codecs(Limits(), 2) as pool:
        yield pool


@pytest.fixture
def processes() -> Callable[[], list[int]]:
    """Those of codecs that a test has started, and that have not ended."""
    before = codecs_of(os.getpid())
    return lambda: [process for process in codecs_of(os.getpid()) if process not in before]


def codecs_of(parent: int) -> list[int]:
    return workers_of(parent, b"shade_fast.codecs")


def assert_same(image: DecodedImage, expected: DecodedImage) -> None:
    for entry in dataclasses.fields(DecodedImage):
        mine, theirs = getattr(image, entry.name), getattr(expected, entry.name)
        assert type(mine) is type(theirs), entry.name
        assert np.array_equal(mine, theirs) if isinstance(mine, np.ndarray) else mine == theirs, entry.name


def saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def files(draw: Any) -> dict[str, bytes]:
    picture = Image.fromarray(draw(40, 56))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "Kamera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    seen_through = picture.copy()
    seen_through.putalpha(Image.linear_gradient("L").resize(picture.size))
    return {
        "plain.png": saved(picture, "PNG", dpi=(300, 300), icc_profile=profile),
        "turned.jpg": saved(picture, "JPEG", exif=exif, xmp=b"<x:xmpmeta/>", progressive=True, quality=80),
        "alpha.webp": saved(seen_through, "WEBP", lossless=True),
        "odd \udcff.tif": saved(picture, "TIFF"),
    }


def test_files_are_what_they_are_in_process(codecs: Codecs, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        image, expected = codecs.decode(data, name), decode(data, name)
        assert_same(image, expected)
        image.pixels[0, 0] ^= 255
        shown = image.pixels[:, ::-1]
        output = Output("same")
        settings = output.attempts(image)[-1]
        assert codecs.encode(output, image, shown, settings) == output.encode(expected, shown, settings)


def test_what_is_refused_is_refused_in_the_same_words(codecs: Codecs, draw: Any) -> None:
    frames = [Image.fromarray(draw(8, 8, seed)) for seed in range(3)]
    bad = {
        "empty.png": b"",
        "text.jpg": b"no image",
        "moves.gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "cut.png": saved(frames[0], "PNG")[:-40],
        "https://user:secret@example.org/a.jpg?key=1": b"no image",
    }
    for name, data in bad.items():
        with pytest.raises(ShadeFastError) as expected:
            decode(data, name)
        with pytest.raises(ShadeFastError) as refused:
            codecs.decode(data, name)
        assert (type(refused.value), str(refused.value)) == (ShadeFastError, str(expected.value))
    image = dataclasses.replace(decode(frames[0]), alpha=np.zeros((8, 8), np.uint8), name="clear.png")
    with pytest.raises(ShadeFastError, match=r"clear\.png: has alpha, which JPEG cannot hold"):
        codecs.encode(Output("jpeg"), image, image.pixels)


def test_the_limit_of_pixels_is_the_callers() -> None:
    wide = saved(Image.new("1", (200, 50)), "PNG")
    with (
        Codecs(Limits(pixels=9999), 1) as few,
        pytest.raises(ShadeFastError, match=r"at most 9,999 pixels are handled"),
    ):
        few.decode(wide, "wide.png")
    # Over Pillow's own limit, which is 179 million.
    huge = saved(Image.new("1", (20000, 10001)), "PNG")
    with Codecs(Limits(pixels=200_000_000), 1) as many, pytest.raises(ShadeFastError, match=r"at most 200,000,000 pix"):
        many.decode(huge, "huge.png")


@pytest.mark.parametrize("file", [hostile.tiff(300), hostile.jpeg(3000, 2000)], ids=["tiff", "jpeg"])
def test_a_small_file_that_costs_much_is_ended_in_time(file: bytes, files: dict[str, bytes]) -> None:
    assert len(file) < 1_000_000
    with Codecs(Limits(decode_seconds=1), 1) as codecs:
        began = time.monotonic()
        with pytest.raises(DeadlineError) as late:
            codecs.decode(file, "slow")
        assert time.monotonic() - began < 10
        # By the clock where the machine has too much to do.
        words = (
            r"slow: decoding took over (1 s of processor time|3 s by the clock); give --max decode-seconds=2 or leave"
        )
        assert re.match(words, str(late.value))
        for name in files:
            assert_same(codecs.decode(files[name], name), decode(files[name], name))


def test_encoding_has_a_deadline_of_its_own(draw: Any) -> None:
    image = decode(draw(2000, 2000), "large")
    words = r"large: encoding took over 0\.\d+ s .*; give --max encode-seconds="
    with Codecs(Limits(encode_seconds=0.05), 1) as codecs, pytest.raises(DeadlineError, match=words):
        codecs.encode(Output("webp"), image, image.pixels)


def test_a_process_that_waits_instead_of_working_is_ended_by_the_clock(
    processes: Callable[[], list[int]], files: dict[str, bytes]
) -> None:
    with Codecs(Limits(decode_seconds=0.5), 1) as codecs:
        codecs.decode(files["plain.png"], "plain.png")
        (process,) = processes()
        os.kill(process, signal.SIGSTOP)
        with pytest.raises(DeadlineError, match=r"plain\.png: decoding took over 1\.5 s by the clock"):
            codecs.decode(files["plain.png"], "plain.png")
        assert not is_running(process)
        assert codecs.decode(files["plain.png"], "plain.png").name == "plain.png"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, r"ended by SIGKILL, as the system does where memory runs out; leave this image out"),
        (signal.SIGSEGV, r"ended by SIGSEGV; leave this image out"),
    ],
)
def test_a_process_that_dies_over_an_image(
    number: int, words: str, processes: Callable[[], list[int]], files: dict[str, bytes]
) -> None:
    with Codecs(Limits(), 1) as codecs, ThreadPoolExecutor() as threads:
        codecs.decode(files["plain.png"], "plain.png")
        (process,) = processes()
        decoding = threads.submit(codecs.decode, ENDLESS, "slow.jpg")
        wait_until_busy(process)
        os.kill(process, number)
        with pytest.raises(CodecDiedError, match=rf"slow\.jpg: .*{words}"):
            decoding.result(20)
        assert_same(codecs.decode(files["alpha.webp"], "a"), decode(files["alpha.webp"], "a"))


def test_a_process_that_died_while_it_was_idle_is_no_images_fault(
    processes: Callable[[], list[int]], files: dict[str, bytes]
) -> None:
    with Codecs(Limits(), 1) as codecs:
        codecs.decode(files["plain.png"], "plain.png")
        (process,) = processes()
        os.kill(process, signal.SIGKILL)
        wait_until_gone([process])
        time.sleep(0.5)  # its other threads end after the first
        assert codecs.decode(files["plain.png"], "plain.png").name == "plain.png"


def test_more_memory_than_there_may_be(files: dict[str, bytes]) -> None:
    large = saved(Image.new("RGB", (6000, 6000)), "PNG")
    with Codecs(Limits(decode_memory=64 << 20), 1) as codecs:
        words = r"large\.png: decoding needs more than 64 MiB of memory; give --max decode-memory="
        with pytest.raises(ShadeFastError, match=words) as refused:
            codecs.decode(large, "large.png")
        assert type(refused.value) is ShadeFastError
        with pytest.raises(ShadeFastError, match=r"file: decoding needs more than 64 MiB"):
            codecs.decode(bytes(100 << 20), "file")
        image = decode(np.zeros((4000, 4000, 3), np.uint8), "array")
        with pytest.raises(ShadeFastError, match=r"array: encoding needs more than 64 MiB"):
            codecs.encode(Output("webp"), image, image.pixels)
        assert_same(codecs.decode(files["plain.png"], "a"), decode(files["plain.png"], "a"))


def test_a_process_can_leave_nothing_behind_it(codecs: Codecs, files: dict[str, bytes]) -> None:
    codecs.decode(files["plain.png"], "plain.png")
    process = codecs_of(os.getpid())[0]
    assert resource.prlimit(process, resource.RLIMIT_CORE) == (0, 0)
    assert resource.prlimit(process, resource.RLIMIT_FSIZE) == (0, 0)
    assert "NoNewPrivs:\t1" in Path(f"/proc/{process}/status").read_text()


def test_stop_ends_what_runs_and_what_waits(processes: Callable[[], list[int]], files: dict[str, bytes]) -> None:
    stop = threading.Event()
    with Codecs(Limits(), 1) as codecs, ThreadPoolExecutor() as threads:
        codecs.decode(files["plain.png"], "plain.png")
        (process,) = processes()
        calls = [threads.submit(codecs.decode, ENDLESS, "slow.jpg", stop) for _ in range(2)]
        wait_until_busy(process)
        began = time.monotonic()
        stop.set()
        for call in calls:
            with pytest.raises(Interrupted):
                call.result(20)
        assert time.monotonic() - began < 1
        assert not is_running(process)
        assert codecs.decode(files["plain.png"], "plain.png").name == "plain.png"


def test_closing_ends_the_processes_and_the_calls(processes: Callable[[], list[int]], files: dict[str, bytes]) -> None:
    codecs = Codecs(Limits(), 2)
    with ThreadPoolExecutor() as threads:
        calls = [threads.submit(codecs.decode, ENDLESS, "slow.jpg") for _ in range(3)]
        until = time.monotonic() + 20
        while len(processes()) < 2:
            assert time.monotonic() < until
            time.sleep(0.02)
        codecs.close()
        assert processes() == []
        for call in calls:
            with pytest.raises(Interrupted):
                call.result(20)
    with pytest.raises(Interrupted):
        codecs.decode(files["plain.png"], "plain.png")
    codecs.close()


def test_threads_share_the_processes(processes: Callable[[], list[int]], draw: Any) -> None:
    arrays = [draw(50 + index % 7, 60, index) for index in range(40)]
    with Codecs(Limits(), 2) as codecs, ThreadPoolExecutor(6) as threads:
        images = list(threads.map(lambda array: codecs.decode(saved(Image.fromarray(array), "PNG"), "a"), arrays))
        assert len(processes()) == 2
        encoded = list(threads.map(lambda image: codecs.encode(Output("png"), image, image.pixels), images))
    for array, image, data in zip(arrays, images, encoded, strict=True):
        assert np.array_equal(image.pixels, array)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), array)


@pytest.mark.parametrize("what", ["idle", "busy"])
def test_a_parent_that_is_killed_leaves_no_process_behind(what: str, tmp_path: Path) -> None:
    (tmp_path / "slow").write_bytes(ENDLESS)
    doing = "sys.stdin.read()" if what == "idle" else "codecs.decode(pathlib.Path(sys.argv[1]).read_bytes(), 'slow')"
    code = f"""
        import pathlib, sys
        from shade_fast.codecs import Codecs
        from shade_fast.terms.limits import Limits
        codecs = Codecs(Limits(decode_seconds=1000), 1)
        try:
            codecs.decode(b"none", "none")
        except ValueError:
            print("begun", flush=True)
        {doing}
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "slow")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"begun\n"
        (process,) = codecs_of(parent.pid)
        if what == "busy":
            wait_until_busy(process)
    finally:
        parent.kill()
        parent.communicate()
    wait_until_gone([process], 5)


LIAR = """
import json, socket, struct
from shade_fast.codecs.wire import Answer, message, receive, Request
from shade_fast.codecs.process import _Stream
from shade_fast.images import DecodedImage
from shade_fast.images import JpegSettings
from shade_fast.terms.limits import Limits
import numpy as np

def image(**changes):
    sound = {"name": "a", "pixels": np.zeros((4, 5, 3), np.uint8), "format": "PNG"}
    return b"".join(message(Answer(image=DecodedImage(**sound | changes))))

def main(descriptor, parent):
    connection = socket.socket(fileno=descriptor)
    stream = _Stream(connection.makefile("rb"))
    receive(stream, Limits)
    connection.sendall(b"".join(message(Answer())))
    receive(stream, Request)
    connection.sendall({lie})
    receive(stream, Request)
"""
LIES = {
    "none": "",
    "a pickle": "b'\\x80\\x05' * 99",
    "no JSON": "struct.pack('>Q', 4) + b'{{{{'",
    "deep": "struct.pack('>Q', 200000) + b'[' * 200000",
    "nothing": "b''.join(message(Answer()))",
    "a file instead of an image": "b''.join(message(Answer(file=b'123')))",
    "another name": "image(name='b')",
    "text for pixels": "image(pixels='b')",
    "grey": "image(pixels=np.zeros((4, 5), np.uint8))",
    "other alpha": "image(alpha=np.zeros((4, 4), np.uint8))",
    "orientation": "image(orientation=9)",
    "format": "image(format='AVIF')",
    "tables": "image(jpeg=JpegSettings((1,), (1,)))",
    "more pixels": "image(pixels=np.zeros((20, 20, 3), np.uint8))",
    "too large": "(lambda header: struct.pack('>Q', len(header)) + header)"
    "(json.dumps({'image': None, 'file': 1 << 40, 'refused': None}).encode())",
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_process_that_answers_nonsense_counts_as_died(
    lie: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, processes: Callable[[], list[int]]
) -> None:
    (tmp_path / "liar.py").write_text(LIAR.replace("{lie}", lie or "image()"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(pool, "start", lambda module, *arguments: start("liar", *arguments))
    with Codecs(Limits(decode_seconds=5, pixels=399), 1) as codecs:
        if not lie:
            assert codecs.decode(b"123", "a").pixels.shape == (4, 5, 3)
            return
        with pytest.raises(CodecDiedError, match=r"a: decoding ended in an answer that makes no sense"):
            codecs.decode(b"123", "a")
        assert processes() == []


def wait_until_busy(process: int) -> None:
    """Until it has used more processor time than its start takes."""

    def ticks() -> int:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11])

    before, until = ticks(), time.monotonic() + 20
    while ticks() < before + 20:
        assert time.monotonic() < until
        time.sleep(0.02)
