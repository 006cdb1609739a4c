"""Trials of whole archives, on images made from the project's photographs: JPEG, PNG and WebP of many sizes, some bad.

python -m benchmarks archive run            # an archive of 300, every row looked at, verified from the files
python -m benchmarks archive kills          # kill -9 at 20 random moments, and the same bytes in the end
python -m benchmarks archive memory         # the largest resident size at 30 and at 300 images
python -m benchmarks archive overhead       # what a run spends outside the engine, with its breakdown
"""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from benchmarks.photographs import FOLDER
from shade_fast import poison_archive, verify_archive
from shade_fast.archive import Manifest, Storage, find_images
from shade_fast.images import decode

SIZES = ((96, 128), (128, 96), (128, 128), (160, 120), (112, 176), (200, 150))
#: Of each hundred images, so many are truncated, empty, text, animated or CMYK.
BAD = 5


def arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("trial", choices=["run", "kills", "memory", "overhead"])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--view", default="64")
    parser.add_argument("--steps", default="10")
    parser.add_argument("--folder", type=Path, default=Path("build/archive"))


def run(options: Namespace) -> int:
    """The command."""
    return {"run": _whole, "kills": _kills, "memory": _memory, "overhead": _overhead}[options.trial](options)


def make(folder: Path, count: int, sizes: tuple[tuple[int, int], ...] = SIZES) -> Path:
    """An archive of `count` images, the same for the same count; photographs cut, turned and stored in turn."""
    if folder.exists():
        shutil.rmtree(folder)
    photographs = [Image.fromarray(decode(file.path).pixels) for file in find_images([FOLDER])]
    random_numbers = random.Random(0)
    for index in range(count):
        picture = photographs[index % len(photographs)]
        size = sizes[random_numbers.randrange(len(sizes))]
        left, top = (random_numbers.random() * 0.4 for _ in range(2))
        cut = picture.crop(
            tuple(
                round(side * share)
                for side, share in zip(picture.size * 2, (left, top, left + 0.6, top + 0.6), strict=True)
            )
        )
        small = ImageOps.fit(cut, size)
        form = ("JPEG", "PNG", "WEBP")[index % 3]
        path = folder / f"{index // 50:02}" / f"{index:05}.{form.lower().replace('jpeg', 'jpg')}"
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        small.save(buffer, form, quality=random_numbers.choice((85, 92, 96)), lossless=form == "WEBP")
        data = buffer.getvalue()
        if index % 100 < BAD:
            data = _spoilt(index % 100, data, small)
        path.write_bytes(data)
    return folder


def _spoilt(kind: int, data: bytes, picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    if kind == 3:
        picture.save(buffer, "GIF", save_all=True, append_images=[ImageOps.mirror(picture)])
    elif kind == 4:
        picture.convert("CMYK").save(buffer, "JPEG")
    return (data[: len(data) // 2], b"", b"<html>no image</html>", buffer.getvalue(), buffer.getvalue())[kind]


def _command(source: Path, out: Path, options: Namespace) -> list[str]:
    arguments = [
        "archive",
        source,
        "--out",
        out,
        "--target",
        "castle",
        "--view",
        options.view,
        "--steps",
        options.steps,
    ]
    return [sys.executable, "-m", "shade_fast.cli", *map(str, arguments), "--shard-size", "100", "--quiet"]


def _whole(options: Namespace) -> int:
    source, out = make(options.folder / "photographs", options.images), options.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    code = subprocess.run(_command(source, out, options), capture_output=True).returncode
    seconds = time.perf_counter() - started
    rows = list(Manifest(Storage(out)).all_rows())
    counts = Counter(row.status for row in rows)
    formats = Counter(f"{row.output_format}" for row in rows if row.output)
    print(f"exit {code}, {seconds:.0f} s: {len(rows)} rows, {dict(counts)}, {dict(formats)}")
    for reason, count in Counter(str(row.error).split(": ", 1)[1][:60] for row in rows if row.error).items():
        print(f"  {count} failed: {reason}")
    raised = sum(row.quality is not None and row.quality > 96 for row in rows)
    print(f"  JPEGs whose quality was raised above 96: {raised}")
    mismatches = verify_archive(out)
    print(f"verify: {len(mismatches)} mismatches {mismatches[:3]}")
    return int(bool(mismatches) or len(rows) != options.images)


def _kills(options: Namespace) -> int:
    source, whole = options.folder / "photographs", images(options.folder / "out")
    out, moments = options.folder / "killed", random.Random(1)
    shutil.rmtree(out, ignore_errors=True)
    for kill in range(options.kills):
        process = subprocess.Popen(_command(source, out, options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if kill % 4:  # a moment of the work; every fourth, of the start
            before = len(images(out))
            while process.poll() is None and len(images(out)) == before:
                time.sleep(0.05)
        time.sleep(moments.uniform(0.0, 5.0))
        process.kill()
        process.wait()
        written = images(out)
        wrong = [name for name, data in written.items() if whole.get(name) != data]
        print(f"kill {kill + 1}: {len(written)} of {len(whole)} images there, {len(wrong)} differ", flush=True)
    code = subprocess.run(_command(source, out, options), capture_output=True).returncode
    rows = list(Manifest(Storage(out)).all_rows())
    same = images(out) == whole
    twice = len(rows) - len({row.key for row in rows})
    left = [path for path in out.rglob("*") if path.name.startswith(".shade_fast-")]
    print(f"exit {code}: byte-identical {same}, {len(rows)} rows, {twice} twice, {len(left)} temporary files left")
    return int(not same or bool(twice or left))


def _memory(options: Namespace) -> int:
    peaks = []
    for count in (30, 300):
        source, out = make(options.folder / f"memory-{count}", count), options.folder / f"memory-out-{count}"
        shutil.rmtree(out, ignore_errors=True)
        arguments = _command(source, out, options)[3:]
        code = (
            f"import resource, sys; from shade_fast import cli; cli.main({arguments!r});"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.splitlines()[-1]) / 1024)
        print(f"{count} images: largest resident size {peaks[-1]:.0f} MB", flush=True)
    print(f"ratio {peaks[1] / peaks[0]:.3f}")
    return int(peaks[1] > 1.1 * peaks[0])


def _overhead(options: Namespace) -> int:
    """At a view and a size that are usual: files of 768x512, seen at `--view`, with the default 60 steps."""
    source, out = make(options.folder / "overhead", options.images, ((768, 512), (512, 768))), options.folder / "over"
    shutil.rmtree(out, ignore_errors=True)
    from shade_fast import View

    report = poison_archive(source, out, "castle", view=View(int(options.view)), steps=int(options.steps), workers=1)
    rows = list(report.rows())
    worked = {name: sum(getattr(row, name) for row in rows) / 1000 for name in ("decode_ms", "encode_ms")}
    outside = report.seconds - report.engine_seconds
    print(
        json.dumps(
            {
                "images": report.images,
                "seconds": round(report.seconds, 2),
                "engine": round(report.engine_seconds, 2),
                "outside the engine": round(outside, 2),
                "of these waiting for files": round(report.waiting_seconds, 2),
                "beside the engine, decoding and hashing": round(worked["decode_ms"], 2),
                "beside the engine, encoding and checking": round(worked["encode_ms"], 2),
                "share outside": f"{outside / report.seconds:.2%}",
                "median milliseconds an image": round(
                    float(np.median([row.optimize_ms for row in rows if row.output]))
                ),
            },
            indent=1,
        )
    )
    return 0


def images(folder: Path) -> dict[str, bytes]:
    """Every image of an output."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "_shade_fast" not in path.parts and path.name != "_stats.json"
    }
