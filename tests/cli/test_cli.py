from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shade_fast import Poisoner, __version__, cli, poison_archive, poison_batch
from shade_fast.archive import Manifest, Row, Storage, plan_archive
from shade_fast.archive.options import RunOptions
from shade_fast.cli import archive as cli_archive
from shade_fast.cli import exits
from shade_fast.cli.fit import evenly
from shade_fast.cli.program import parser
from shade_fast.images import decode
from shade_fast.protect.options import Options
from shade_fast.protect.options import bound as bound_of
from shade_fast.terms.options import given_options, names_of, of_flags

Poison = Callable[..., list[str]]


@pytest.fixture
def photos(tmp_path: Path, draw: Any) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, (name, height, width) in enumerate([("a.png", 32, 40), ("b.jpg", 40, 32)]):
        Image.fromarray(draw(height, width, seed)).save(folder / name)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, draw: Any) -> Path:
    folder = tmp_path_factory.mktemp("anchors")
    for seed, name in enumerate(["cat", "dog"], start=10):
        (folder / name).mkdir()
        Image.fromarray(draw(48, 48, seed)).save(folder / name / "1.png")
    return folder


@pytest.fixture
def poison(photos: Path, out: Path, encoder_folder: Path, library: Path) -> Poison:
    """`poison(*more)`: arguments of a run over the photographs that is all ok; a later option wins."""

    def build(*more: str | Path, sources: tuple[Path, ...] = (photos,), perceptual: str = "none") -> list[str]:
        options = {"--out": out, "--target": "cat", "--anchors": library, "--encoder": encoder_folder, "--view": 32}
        options |= {"--steps": 2, "--target-ratio": 1, "--perceptual": perceptual, "--output": "png"}
        if perceptual == "none":
            options["--lpips"] = "none"
        flat = [str(part) for option in options.items() for part in option]
        return ["archive", *map(str, sources), *flat, *map(str, more)]

    return build


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but a run's record."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "_shade_fast" not in path.parts and path.name != "_stats.json"
    }


def rows(out: Path) -> list[Row]:
    return list(Manifest(Storage(out)).all_rows())


def record(out: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((out / "_shade_fast/run.json").read_text())
    return read


def test_a_run_of_files(poison: Poison, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(photos)
    assert cli.main(poison(perceptual="st-alex")) == exits.EXIT_OK
    assert contents(photos) == before
    assert sorted(contents(out)) == ["a.png", "b.png"]
    printed, errors = capsys.readouterr()
    lines = printed.splitlines()
    assert lines[0].split() == ["image", "size", "status", "linf", "lpips", "latent", "distance"]
    assert [line.split()[:3] for line in lines[1:3]] == [["a.png", "40x32", "ok"], ["b.jpg", "32x40", "ok"]]
    assert lines[3] == "2 images: 2 ok, 0 below target, 0 failed"
    assert record(out)["options"]["perceptual"]["name"] == "st-alex"
    assert f"shade-fast report {out} draws it" in lines[-1]
    assert "Traceback" not in errors


def test_the_record_holds_the_options(poison: Poison, out: Path, encoder_folder: Path, photos: Path) -> None:
    assert cli.main(poison("--linf", "8/255", "--seed", "7", "--output", "webp")) == exits.EXIT_OK
    options = record(out)["options"]
    assert options["budget"] == {"linf": 8 / 255, "lpips": None}
    assert options["view"] == {"size": 32, "transforms": []}
    assert (options["target"], options["steps"], options["seed"]) == ("cat", 2, 7)
    assert (options["optimizer"], options["output"], options["target_ratio"]) == ("momentum", "webp", 1.0)
    assert options["encoder"][0]["spec"] == str(encoder_folder)
    assert options["version"] == __version__
    for row in rows(out):
        change = decode(out / str(row.output)).pixels.astype(int) - decode(photos / row.key).pixels
        assert np.abs(change).max() <= 8


def test_json_is_all_that_is_printed(poison: Poison, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(poison("--json")) == exits.EXIT_OK
    assert json.loads(capsys.readouterr().out) == json.loads((out / "_stats.json").read_text())


def test_some_below_target_is_code_1(poison: Poison, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(poison("--target-ratio", "0.001")) == exits.EXIT_SOME
    assert [row.status for row in rows(out)] == ["below_target"] * 2
    assert len(contents(out)) == 2
    assert "0 ok, 2 below target, 0 failed" in capsys.readouterr().out


def test_some_failed_is_code_1_and_says_why(
    poison: Poison, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "c.jpg").write_text("no image")
    assert cli.main(poison()) == exits.EXIT_SOME
    assert "failed: c.jpg: damaged, or not an image that can be read" in capsys.readouterr().out
    assert sorted(contents(out)) == ["a.png", "b.png"]


def test_all_failed_is_code_2(poison: Poison, photos: Path, out: Path) -> None:
    (photos / "a.png").write_text("no image")
    assert cli.main(poison(sources=(photos / "a.png",))) == exits.EXIT_NOTHING
    assert [row.status for row in rows(out)] == ["failed"]


def test_a_second_run_goes_on_and_takes_no_other_options(
    poison: Poison, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(poison("--limit", "1")) == exits.EXIT_OK
    assert "not finished: run the same again, in mode resume, to go on" in capsys.readouterr().out
    assert cli.main(poison()) == exits.EXIT_OK
    assert "2 images: 2 ok" in capsys.readouterr().out
    before = contents(out)
    assert cli.main(poison("--linf", "4/255")) == exits.EXIT_NOTHING
    assert "begun with other options: budget was" in capsys.readouterr().err
    assert cli.main(poison("--mode", "fail")) == exits.EXIT_NOTHING
    assert contents(out) == before
    assert cli.main(poison("--linf", "4/255", "--overwrite")) == exits.EXIT_OK
    assert contents(out)["a.png"] != before["a.png"]


def test_overwriting_and_another_mode_exclude_each_other(
    poison: Poison, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        cli.main(poison("--mode", "fail", "--overwrite"))
    assert refused.value.code == exits.EXIT_NOTHING
    assert "not allowed with argument --mode" in capsys.readouterr().err
    assert not out.exists()


def test_a_dry_run_writes_nothing(poison: Poison, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(photos)
    assert cli.main(poison("--dry-run")) == exits.EXIT_OK
    assert capsys.readouterr().out.splitlines() == [
        "a.png (40x32, seen at 40x32) -> a.png",
        "b.jpg (32x40, seen at 32x40) -> b.png",
    ]
    (photos / "c.jpg").write_text("no image")
    assert cli.main(poison("--dry-run", "--json")) == exits.EXIT_SOME
    planned = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["output"] for row in planned] == ["a.png", "b.png", "c.png"]
    assert [row["error"] is None for row in planned] == [True, True, False]
    assert cli.main(poison("--dry-run", "--target", "cta")) == exits.EXIT_NOTHING
    assert not out.exists()
    assert before.items() <= contents(photos).items()


def test_a_reader_who_has_seen_enough_ends_a_command_quietly() -> None:
    command = "from shade_fast.cli import main; raise SystemExit(main(['info']))"
    for unbuffered in ("", "1"):  # it is found out where the output is flushed, or where it is printed
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        with subprocess.Popen(
            [sys.executable, "-c", command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as running:
            assert running.stdout is not None and running.stderr is not None
            running.stdout.close()
            shown = running.stderr.read().decode()
        assert (running.returncode, "Traceback" in shown, "BrokenPipe" in shown) == (exits.EXIT_PIPE, False, False)


def test_a_command_without_standard_output_ends_as_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["info"]) == exits.EXIT_OK


@pytest.mark.parametrize("error", [BrokenPipeError(), ZeroDivisionError("by zero"), RecursionError(), MemoryError()])
def test_an_error_that_nobody_expected_has_a_code_of_its_own(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(_: object) -> int:
        error.add_note("a\x1b]0;b.png")
        raise error

    monkeypatch.setattr("shade_fast.cli.info.run", breaks)
    assert cli.main(["info"]) == exits.EXIT_FAULT == 70
    shown = capsys.readouterr().err
    assert shown.startswith(f"shade-fast: a\\x1b]0;b.png: unexpected error: {type(error).__name__}")
    assert "Traceback" not in shown
    monkeypatch.setenv("SHADE_FAST_TRACEBACK", "1")
    assert cli.main(["info"]) == exits.EXIT_FAULT
    assert "Traceback" in capsys.readouterr().err


def test_an_error_in_a_thread_of_a_run_names_the_image(
    poison: Poison, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from shade_fast.archive.recorder import Recorder

    def breaks(*_: object) -> None:
        raise RuntimeError("nobody expected this")

    monkeypatch.setattr(Recorder, "_make_room", breaks)
    assert cli.main(poison()) == exits.EXIT_FAULT
    shown = capsys.readouterr().err
    assert shown.startswith(("shade-fast: a.png: 00000", "shade-fast: b.jpg: 00000"))
    assert ": unexpected error: RuntimeError: nobody expected this;" in shown


def test_names_move_no_terminal(photos: Path, poison: Poison, capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b[2J\x1b]0;title\a\u202egnp.png"
    (photos / name).write_bytes(b"no image")
    (photos / f"link{name}.png").symlink_to("nowhere")
    for more in (["--dry-run"], [], ["--overwrite"]):
        cli.main(poison(*more))
        shown = capsys.readouterr()
        for text in (shown.out, shown.err):
            assert not set(text) & {"\x1b", "\a", "\u202e"}
        assert "\\x1b[2J" in shown.out


def test_a_dry_run_tells_what_the_same_run_would_still_do(
    poison: Poison, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def planned(*more: str) -> list[str]:
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        capsys.readouterr()
        assert cli.main(poison("--dry-run", *more)) == exits.EXIT_OK
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
        return [line.split(" ")[0] for line in capsys.readouterr().out.splitlines()]

    assert planned("--shard", "0/2") == ["b.jpg"]
    assert planned("--limit", "1") == ["a.png"]
    assert cli.main(poison("--limit", "1")) == exits.EXIT_OK
    assert planned() == ["b.jpg"]
    (out / "a.png").unlink()
    assert planned() == ["a.png", "b.jpg"]
    assert cli.main(poison()) == exits.EXIT_OK
    assert planned() == ["nothing:"]
    assert planned("--overwrite", "--steps", "3") == ["a.png", "b.jpg"]
    assert cli.main(poison("--dry-run", "--steps", "3")) == exits.EXIT_NOTHING
    assert "begun with other options: steps was 2, now 3" in capsys.readouterr().err


def test_status_and_verify(poison: Poison, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "c.jpg").write_text("no image")
    assert cli.main(poison("--output", "same")) == exits.EXIT_SOME
    capsys.readouterr()
    assert cli.main(["status", str(out)]) == exits.EXIT_SOME
    assert capsys.readouterr().out.startswith("3 images: 2 ok, 0 below target, 1 failed (0 duplicates)")
    assert cli.main(["status", str(out), "--json"]) == exits.EXIT_SOME
    assert json.loads(capsys.readouterr().out)["images"] == 3
    assert cli.main(["verify", str(out)]) == exits.EXIT_OK
    assert "2 images measured again, 0 mismatches" in capsys.readouterr().out
    (out / "a.png").write_bytes((photos / "a.png").read_bytes())
    assert cli.main(["verify", str(out)]) == exits.EXIT_SOME
    assert "a.png: its output has another sha256 than recorded" in capsys.readouterr().out
    for command in ("status", "verify"):
        assert cli.main([command, str(photos)]) == exits.EXIT_NOTHING
        assert "no run has been here" in capsys.readouterr().err


def test_names_that_are_no_text_are_printed_all_the_same(
    poison: Poison, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "b.jpg").rename(photos / "日本.jpg")
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (photos / "a.png").rename(photos / name)
    except OSError:
        pytest.skip("the file system takes only names that are text")
    for more in (("--dry-run",), ()):
        assert cli.main(poison(*more)) == exits.EXIT_OK
        assert "日本.jpg" in capsys.readouterr().out
    assert (out / name).is_file()
    assert rows(out)[0].output == "caf\\xe9.png"


def test_jpeg_output(poison: Poison, out: Path) -> None:
    assert cli.main(poison("--output", "jpeg", "--quality", "100")) == exits.EXIT_OK
    assert sorted(contents(out)) == ["a.jpg", "b.jpg"]
    assert Image.open(out / "a.jpg").format == "JPEG"


def test_an_ensemble(poison: Poison, out: Path, encoder_folder: Path) -> None:
    assert cli.main(poison("--encoder", encoder_folder)) == exits.EXIT_OK
    assert [encoder["spec"] for encoder in record(out)["options"]["encoder"]] == [str(encoder_folder)] * 2
    assert [row.distance_before for row in rows(out)] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("target", ["image", "folder"])
def test_targets_by_path(target: str, poison: Poison, out: Path, library: Path) -> None:
    path = library / "dog" / "1.png"
    assert cli.main(poison("--target", path if target == "image" else path.parent)) == exits.EXIT_OK
    assert {Path(str(row.anchor)) for row in rows(out)} == {path}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--target", "cta"], "did you mean 'cat'? the library has cat, dog"),
        (["--steps", "0"], "steps=0: give a whole number, at least 1"),
        (["--linf", "0"], "budget linf=0.0: give a number above 0"),
        (["--linf=-1/255"], "budget linf=-0.00392"),
        (["--linf", "16"], "budget linf=16.0: it is in [0, 1] units; for uint8 levels write 16.0/255"),
        (["--linf", "none"], "a budget needs linf, lpips or both"),
        (["--lpips", "0.05"], "needs a perceptual network"),
        (["--view", "0"], "view size=0"),
        (["--output", "jpeg", "--quality", "0"], "quality=0: give a whole number from 1 to 100"),
        (["--encoder", "nosuch"], "no encoder 'nosuch'"),
        (["--perceptual", "nosuch"], "'nosuch'"),
        (["--batch-size", "0"], "batch_size=0"),
        (["--seed", "-1"], "seed=-1"),
        (["--target-ratio", "nan"], "target_ratio=nan"),
        (["--devices", "tpu"], "devices='tpu'"),
        (["--backend", "cuda"], "backend 'cuda'"),
        (["--anchors", "nosuch"], "nosuch: not a folder"),
    ],
)
def test_bad_values_are_code_2_and_one_line(
    more: list[str], message: str, poison: Poison, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(poison(*more)) == exits.EXIT_NOTHING
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith("shade-fast: ")
    assert message in errors
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--linf", "big"], "'big': give a number, a fraction such as 16/255, or 'none'"),
        (["--linf", "1/0"], "'1/0': give a number"),
        (["--linf", "1e999"], "'1e999': give a number"),
        (["--lpips", "nan"], "'nan': give a number"),
        (["--view", "5.5"], "'5.5': give a whole number of pixels, or 'none'"),
        (["--batch-size", "many"], "'many': give a whole number, or 'auto'"),
        (["--steps", "few"], "invalid int value"),
        (["--optimizer", "adam"], "invalid choice: 'adam'"),
        (["--output", "tiff"], "invalid choice: 'tiff'"),
        (["--shard", "3"], "'3': give I/N, such as 0/8"),
        (["--nosuch"], "unrecognized arguments"),
    ],
)
def test_values_that_do_not_parse_are_code_2(
    more: list[str], message: str, poison: Poison, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(poison(*more))
    assert caught.value.code == exits.EXIT_NOTHING
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("arguments", [[], ["nosuch"], ["archive"], ["archive", "a.jpg"]])
def test_commands_that_are_incomplete(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == exits.EXIT_NOTHING
    assert "usage: shade-fast" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["archive", "--help"], ["verify", "--help"], ["report", "--help"], ["info", "--help"]]
)
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 0
    assert "usage: shade-fast" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(("count", "of"), [(48, 49), (48, 50), (48, 48), (48, 3), (1, 5), (5, 12)])
def test_as_many_images_as_were_asked_for_are_chosen_evenly(count: int, of: int) -> None:
    places = evenly(range(of), count)
    assert len(places) == len(set(places)) == min(count, of)
    gaps = [after - before for before, after in itertools.pairwise(places)]
    assert max(gaps, default=1) - min(gaps, default=1) <= 1
    assert places[0] == 0


@pytest.mark.parametrize("sources", ["missing", "empty"])
def test_sources_with_nothing_in_them(
    sources: str, poison: Poison, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert cli.main(poison(sources=(tmp_path / sources,))) == exits.EXIT_NOTHING
    message = "no such file or folder" if sources == "missing" else "no images found"
    assert f"shade-fast: {tmp_path / sources}: {message}" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "bound"), [("16/255", 16 / 255), ("0.05", 0.05), ("1e-1", 0.1), ("none", None), ("None", None)]
)
def test_bounds(text: str, bound: float | None) -> None:
    assert bound_of(text) == bound


def test_defaults_are_those_of_the_function() -> None:
    given = vars(parser().parse_args(["archive", "a.jpg", "--out", "out", "--target", "cat"]))
    defaults = inspect.signature(poison_batch).parameters
    for name, value in given_options(of_flags(Options, given)).items():
        assert value == ([defaults[name].default] if name == "encoder" else defaults[name].default), name
    run = given_options(of_flags(RunOptions, given))
    assert run == given_options(RunOptions()) | {"grace": 10.0}


def test_options_are_stated_once() -> None:
    """`poison_batch` repeats the names for editors and `help`; all else shows what the dataclasses state."""
    for function in (Poisoner, poison_archive, plan_archive):
        parameters = inspect.signature(function).parameters
        for field in dataclasses.fields(Options):
            assert parameters[field.name].default is field.default
    shown = inspect.signature(poison_batch).parameters
    assert [name for name in shown if name in names_of(Options)] == list(shown)[2:-1]
    assert {name: shown[name].default for name in names_of(Options)} == given_options(Options())
    with pytest.raises(TypeError, match="unexpected keyword argument 'step'"):
        poison_archive("a", "b", "cat", step=3)


def test_a_long_table_shows_what_is_not_ok(poison: Poison, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    monkeypatch.setattr(cli_archive, "LARGEST_TABLE", 2)
    monkeypatch.setattr("builtins.print", lambda *parts, **_: lines.extend(str(parts[0]).splitlines()))
    (photos / "c.jpg").write_text("no image")
    assert cli.main(poison()) == exits.EXIT_SOME
    assert [line.split()[:3] for line in lines[1:2]] == [["c.jpg", "0x0", "failed"]]
    assert lines[2] == "and 2 more"


def test_report(poison: Poison, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(poison())
    capsys.readouterr()
    assert cli.main(["report", str(out)]) == exits.EXIT_OK
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    assert "<html" in (out / "report.html").read_text()
    assert cli.main(["report", str(out), "--out", str(tmp_path / "page.html")]) == exits.EXIT_OK
    assert (tmp_path / "page.html").is_file()
    for folder in (tmp_path, tmp_path / "missing"):
        assert cli.main(["report", str(folder)]) == exits.EXIT_NOTHING
        assert f"{folder}: no run has been here" in capsys.readouterr().err


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == exits.EXIT_OK
    text = capsys.readouterr().out
    assert text.startswith(f"shade_fast {__version__}, Python {sys.version.split()[0]}")
    for title in ("packages", "devices", "backends", "perceptual networks", "anchors"):
        assert f"\n{title}\n" in text
    assert cli.main(["info", "--json"]) == exits.EXIT_OK
    facts = json.loads(capsys.readouterr().out)
    assert facts["devices"][0]["name"] == "cpu"
    assert set(facts["backends"]) == {"reference", "native", "cuda", "onnxruntime"}
    assert {"name", "found", "detail"} == set(facts["perceptual"][0])
    assert facts["packages"]["torch"]
    assert all(count >= 1 for count in facts["anchors"].values())


def command(arguments: list[str], **options: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "shade_fast.cli", *arguments], text=True, env=environment, **options)


def test_as_a_process_with_its_output_piped(poison: Poison, out: Path) -> None:
    with command(poison("--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        printed, errors = process.communicate(timeout=300)
    assert process.returncode == exits.EXIT_OK
    assert json.loads(printed) == json.loads((out / "_stats.json").read_text())
    assert "image/s" not in errors


def test_as_a_process_the_progress_bar_is_on_stderr_alone(poison: Poison, photos: Path) -> None:
    termios = pytest.importorskip("termios", reason="the machine has no terminals to show a progress bar on")
    import fcntl

    (photos / "c.jpg").write_text("no image")
    screen, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with command(poison(), stdout=subprocess.PIPE, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        while chunk := _read(screen):
            shown += chunk
        os.close(screen)
        printed, _ = process.communicate(timeout=300)
    assert process.returncode == exits.EXIT_SOME
    assert b"3/3" in shown
    assert b"image" in shown
    assert b"Traceback" not in shown
    assert "3/3" not in printed
    assert "3 images: 2 ok, 0 below target, 1 failed" in printed


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux's way to say that the other side is closed
        return b""


def test_the_command_is_installed() -> None:
    path = shutil.which("shade-fast", path=str(Path(sys.executable).parent))
    if path is None:
        pytest.skip("the package is not installed, so there is no shade-fast beside this Python")
    printed = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=300).stdout
    assert printed.strip() == __version__
