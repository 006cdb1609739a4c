from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import nn

from shade_fast import AnchorLibrary, Budget, PoisonedImage, ShadeFastError, View
from shade_fast.archive import MANIFEST_NAME, find_images, plan_files, poison_files
from shade_fast.archive import run as run_module
from shade_fast.archive.manifest import Row
from shade_fast.images import Output, decode
from shade_fast.perceptual import load_perceptual
from shade_fast.poison import Poisoner

MakePoisoner = Callable[..., Poisoner]
OPTIONS = {"target": "dog", "encoder": ["tiny"], "steps": 3, "seed": 0}
IMAGE_KEYS = {
    *("source", "output", "target", "anchor", "status", "error", "width", "height", "linf", "lpips"),
    *("distance_before", "distance_after", "steps", "seconds", "history", "survival", "encoder_distances"),
}


@pytest.fixture(scope="module")
def make_poisoner(tiny_module: nn.Module, draw: Any) -> MakePoisoner:
    library = AnchorLibrary({"dog": [draw(48, 48, seed=9)]})

    def build(**options: Any) -> Poisoner:
        defaults = {"encoder": tiny_module, "perceptual": None, "budget": Budget(16 / 255, None), "steps": 3}
        return Poisoner(**{"view": View(size=32), "anchors": library, "target_ratio": 1.0} | defaults | options)

    return build


@pytest.fixture(scope="module")
def poisoner(make_poisoner: MakePoisoner) -> Poisoner:
    return make_poisoner()


@pytest.fixture
def photos(tmp_path: Path, draw: Any) -> Path:
    """a.png 40x32, b.jpg 48x40 with an orientation and a name in its EXIF, more/c.webp 32x32 with alpha."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    Image.fromarray(draw(32, 40, 1)).save(folder / "a.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Artist] = 6, "Someone"
    Image.fromarray(draw(40, 48, 2)).save(folder / "b.jpg", exif=exif, quality=90)
    alpha = draw(32, 32, 4)[..., :1]
    Image.fromarray(np.dstack([draw(32, 32, 3), alpha])).save(folder / "more" / "c.webp", lossless=True, exact=True)
    return folder


def run(photos: Path | list[Path], out: Path, poisoner: Poisoner, **options: Any) -> dict[str, Any]:
    sources = find_images([photos] if isinstance(photos, Path) else photos, exclude=out)
    return poison_files(sources, out, "dog", poisoner, options=OPTIONS, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_record_is_what_was_measured_on_the_files(
    make_poisoner: MakePoisoner, photos: Path, tmp_path: Path
) -> None:
    perceptual = load_perceptual("st-alex")
    poisoner = make_poisoner(perceptual=perceptual, budget=Budget(16 / 255, 0.05))
    out = tmp_path / "out"
    record = run(photos, out, poisoner)
    assert record == json.loads((out / MANIFEST_NAME).read_text())
    assert [row["output"] for row in record["images"]] == ["a.png", "b.png", "more/c.png"]
    assert sorted(contents(out)) == ["a.png", "b.png", "more/c.png", MANIFEST_NAME]
    encoder = poisoner.encoders[0]
    for row in record["images"]:
        assert set(row) == IMAGE_KEYS
        assert (row["target"], row["status"], row["error"], row["steps"]) == ("dog", "ok", None, 3)
        clean, shown = decode(out / row["source"]), decode(out / row["output"])
        assert shown.pixels.shape == (row["height"], row["width"], 3)
        change = np.abs(shown.pixels.astype(int) - clean.pixels.astype(int)).max()
        assert row["linf"] == change / 255
        assert 0 < change <= 16
        plan = poisoner.view.plan(row["height"], row["width"], poisoner.factor)
        views = [plan.apply(torch.from_numpy(image.pixels).permute(2, 0, 1)[None] / 255) for image in (clean, shown)]
        assert row["lpips"] == pytest.approx(float(perceptual(views[1], views[0])), abs=1e-5)
        assert row["lpips"] <= 0.05
        anchor = poisoner.anchors["dog"].latents(encoder, plan.crop)
        for key, view in zip(("distance_before", "distance_after"), views, strict=True):
            assert row[key] == pytest.approx(float((encoder.encode(view) - anchor).norm()), rel=1e-4)
        assert row["history"][0] == pytest.approx(row["distance_before"], abs=1e-3)
        assert len(row["history"]) == 3


def test_what_the_record_says_of_the_run(poisoner: Poisoner, photos: Path, tmp_path: Path) -> None:
    record = run(photos, tmp_path / "out", poisoner)
    assert record["options"] == OPTIONS
    encoder = poisoner.encoders[0]
    sha256 = encoder.sha256
    assert record["encoder"] == {
        "spec": "tiny",
        "name": "Sequential",
        "factor": 8,
        "channels": 4,
        "sha256": sha256,
    }
    assert (record["perceptual"], record["backend"], record["device"]) == (None, poisoner.backend, "cpu")
    assert record["seconds"] > 0
    assert record["images_per_second"] == pytest.approx(3 / record["seconds"], rel=0.05)
    assert record["created"].endswith("+00:00")


def test_an_ensemble_is_recorded_as_a_list(
    make_poisoner: MakePoisoner, tiny_module: nn.Module, photos: Path, tmp_path: Path
) -> None:
    poisoner = make_poisoner(encoder=[tiny_module, tiny_module])
    sources = find_images([photos / "a.png"])
    record = poison_files(
        sources, tmp_path / "out", "dog", poisoner, options=OPTIONS | {"encoder": ["first", "second"]}
    )
    assert [encoder["spec"] for encoder in record["encoder"]] == ["first", "second"]


def test_orientation_exif_and_alpha_reach_the_files(poisoner: Poisoner, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = run(photos, out, poisoner, output=Output("png"))
    turned = Image.open(out / "b.png")
    assert turned.size == Image.open(photos / "b.jpg").size
    assert (record["images"][1]["width"], record["images"][1]["height"]) == turned.size[::-1]
    assert turned.getexif()[ExifTags.Base.Orientation] == 6
    assert turned.getexif()[ExifTags.Base.Artist] == "Someone"
    with Image.open(photos / "more/c.webp") as before, Image.open(out / "more/c.png") as after:
        assert np.array_equal(np.asarray(after)[..., 3], np.asarray(before)[..., 3])


def test_jpeg_output_holds_linf_on_its_decoded_bytes(poisoner: Poisoner, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = run([photos / "a.png", photos / "b.jpg"], out, poisoner, output=Output("jpeg", quality=95))
    for row in record["images"]:
        assert Image.open(out / row["output"]).format == "JPEG"
        change = np.abs(
            decode(out / row["output"]).pixels.astype(int) - decode(out / row["source"]).pixels.astype(int)
        ).max()
        assert change <= 16
        assert row["linf"] == change / 255
        assert row["distance_after"] < row["distance_before"]


def test_a_jpeg_that_breaks_the_budget_by_itself_fails(
    make_poisoner: MakePoisoner, photos: Path, tmp_path: Path
) -> None:
    poisoner = make_poisoner(budget=Budget(2 / 255, None))
    row = run([photos / "a.png"], tmp_path / "out", poisoner, output=Output("jpeg", quality=30))["images"][0]
    assert (row["status"], row["output"]) == ("failed", None)
    assert "raise the quality, or write png or webp" in row["error"]
    assert contents(tmp_path / "out").keys() == {MANIFEST_NAME}


def test_same_keeps_each_files_format(poisoner: Poisoner, photos: Path, tmp_path: Path) -> None:
    (photos / "a.png").rename(photos / "a.jpg")
    record = run(photos, tmp_path / "out", poisoner, output=Output("same"))
    assert [row["output"] for row in record["images"]] == ["a.png", "b.jpg", "more/c.webp"]
    formats = [Image.open(tmp_path / "out" / row["output"]).format for row in record["images"]]
    assert formats == ["PNG", "JPEG", "WEBP"]


def test_bad_images_among_good_ones(poisoner: Poisoner, photos: Path, tmp_path: Path) -> None:
    (photos / "a-notes.jpg").write_text("no image")
    (photos / "a-empty.png").touch()
    (photos / "b-cut.jpg").write_bytes((photos / "b.jpg").read_bytes()[:700])
    Image.new("RGB", (1, 1)).save(photos / "c-dot.png")
    Image.new("CMYK", (32, 32)).save(photos / "d-print.jpg")
    rows = []
    record = run(photos, tmp_path / "out", poisoner, on_image=rows.append)
    assert [row.outcome.status for row in rows] == [row["status"] for row in record["images"]]
    failed = {Path(row["source"]).name: row for row in record["images"] if row["status"] == "failed"}
    assert set(failed) == {"a-notes.jpg", "a-empty.png", "b-cut.jpg", "c-dot.png", "d-print.jpg"}
    for name, row in failed.items():
        assert name in row["error"]
        assert (row["output"], row["linf"], row["distance_after"], row["history"]) == (None, None, None, [])
    assert (failed["c-dot.png"]["width"], failed["c-dot.png"]["height"]) == (1, 1)
    assert sorted(contents(tmp_path / "out")) == ["a.png", "b.png", "more/c.png", MANIFEST_NAME]


def test_results_do_not_depend_on_the_bad_neighbours(poisoner: Poisoner, photos: Path, tmp_path: Path) -> None:
    run(photos / "more", tmp_path / "alone", poisoner)
    (photos / "b.jpg").write_text("no image")
    run(photos, tmp_path / "together", poisoner)
    assert (tmp_path / "alone/c.png").read_bytes() == (tmp_path / "together/more/c.png").read_bytes()


def test_batches_keep_the_order_and_the_results(make_poisoner: MakePoisoner, tmp_path: Path, draw: Any) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(6):
        Image.fromarray(draw(32, 40 if index == 4 else 32, index)).save(folder / f"{index}.png")
    (folder / "1.png").write_text("no image")
    together = run(folder, tmp_path / "together", make_poisoner(batch_size=3))
    alone = run(folder, tmp_path / "alone", make_poisoner(batch_size=1))
    assert [row["source"][-5:] for row in together["images"]] == [f"{index}.png" for index in range(6)]
    assert [row["status"] for row in together["images"]] == ["ok", "failed", "ok", "ok", "ok", "ok"]
    for first, second in zip(together["images"], alone["images"], strict=True):
        if first["status"] == "ok":
            pixels = [decode(tmp_path / name / first["output"]).pixels for name in ("together", "alone")]
            assert (pixels[0] == pixels[1]).mean() >= 0.999
            assert first["distance_after"] == pytest.approx(second["distance_after"], abs=1e-3)


def test_two_files_of_one_output_name(poisoner: Poisoner, photos: Path, tmp_path: Path) -> None:
    Image.open(photos / "a.png").convert("RGB").save(photos / "a.bmp")
    record = run(photos, tmp_path / "out", poisoner)
    first, second = record["images"][:2]
    assert (first["status"], first["output"]) == ("ok", "a.png")
    assert second["status"] == "failed"
    assert f"{photos / 'a.png'}: its output a.png is that of {photos / 'a.bmp'} too" in second["error"]


def test_a_source_is_never_replaced(poisoner: Poisoner, photos: Path) -> None:
    before = contents(photos)
    record = run(photos, photos, poisoner, overwrite=True)
    after = contents(photos)
    assert {name: after[name] for name in before} == before
    assert [row["status"] for row in record["images"]] == ["failed", "ok", "ok"]
    assert "would take the place of" in record["images"][0]["error"]
    again = run(photos, photos, poisoner, overwrite=True)
    assert {name: contents(photos)[name] for name in before} == before
    assert all(row["status"] == "failed" for row in again["images"])


def test_a_source_is_not_replaced_through_a_link(poisoner: Poisoner, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.png").symlink_to(photos / "a.png")
    (out / "linked").symlink_to(photos)
    before = contents(photos)
    record = run(photos, out, poisoner, overwrite=True)
    assert contents(photos) == before
    assert record["images"][1]["status"] == "failed"
    assert len(run([photos / "b.jpg"], out / "linked", poisoner)["images"]) == 1
    assert before.items() <= contents(photos).items()


def test_nothing_is_overwritten_unless_asked(poisoner: Poisoner, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"mine")
    record = run(photos, out, poisoner)
    assert "a.png exists; give another folder, or --overwrite" in record["images"][0]["error"]
    assert (out / "a.png").read_bytes() == b"mine"
    before = contents(out)
    with pytest.raises(ShadeFastError, match=r"out: holds an earlier run; give another folder, or --overwrite"):
        run(photos, out, poisoner)
    assert contents(out) == before
    record = run(photos, out, poisoner, overwrite=True)
    assert [row["status"] for row in record["images"]] == ["ok"] * 3
    assert (out / "a.png").read_bytes() != b"mine"


def test_output_folders_that_cannot_be(
    poisoner: Poisoner, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ShadeFastError, match=r"file: is a file; give a folder"):
        run(photos, file, poisoner)
    with pytest.raises(ShadeFastError, match=r"file/below: cannot be written: "):
        run(photos, file / "below", poisoner)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shade_fast.archive.manifest.write_whole", refuse)
    monkeypatch.setattr(poisoner, "protect", lambda *_: pytest.fail("images were worked on first"))
    with pytest.raises(ShadeFastError, match=r"out: cannot be written: Permission denied"):
        run(photos, tmp_path / "out", poisoner)


def test_a_file_that_cannot_be_written_fails_alone(poisoner: Poisoner, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "more").touch()
    (out / "a.png").mkdir()
    record = run(photos, out, poisoner, overwrite=True)
    assert [row["status"] for row in record["images"]] == ["failed", "ok", "failed"]
    for row in (record["images"][0], record["images"][2]):
        assert ": cannot be written: " in row["error"]
        assert row["output"] is None
    assert sorted(contents(out)) == ["b.png", "more", MANIFEST_NAME]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_run_leaves_its_record(
    interruption: type[BaseException], poisoner: Poisoner, photos: Path, tmp_path: Path
) -> None:
    def stop_after_two(row: Row) -> None:
        if row.source.name == "b.jpg":
            raise interruption

    out = tmp_path / "out"
    with pytest.raises(interruption):
        run(photos, out, poisoner, on_image=stop_after_two)
    record = json.loads((out / MANIFEST_NAME).read_text())
    assert [row["output"] for row in record["images"]] == ["a.png", "b.png"]
    assert sorted(contents(out)) == ["a.png", "b.png", MANIFEST_NAME]


def test_an_interruption_while_a_file_is_written_leaves_no_part_of_it(
    poisoner: Poisoner, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = run_module.write_whole

    def interrupted(path: Path, data: bytes) -> None:
        if path.name == "b.png":
            with monkeypatch.context() as context:
                context.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
                write(path, data)
        write(path, data)

    monkeypatch.setattr(run_module, "write_whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path / "out", poisoner)
    assert sorted(contents(tmp_path / "out")) == ["a.png", MANIFEST_NAME]


def test_what_concerns_the_whole_run_stops_it_before_it_starts(
    poisoner: Poisoner, photos: Path, tmp_path: Path
) -> None:
    sources = find_images([photos])
    with pytest.raises(ShadeFastError, match=r"'dgo'.* did you mean 'dog'\?"):
        poison_files(sources, tmp_path / "out", "dgo", poisoner, options=OPTIONS)
    damaged = tmp_path / "anchor.png"
    damaged.write_bytes((photos / "a.png").read_bytes()[:900])
    for target in (damaged, tmp_path):
        with pytest.raises(ShadeFastError, match=r"anchor.png: the image is truncated or damaged"):
            poison_files(sources, tmp_path / "out", target, poisoner, options=OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_plan_says_what_would_be_and_writes_nothing(poisoner: Poisoner, photos: Path, tmp_path: Path) -> None:
    (photos / "d.jpg").write_text("no image")
    out = tmp_path / "out"
    sources = find_images([photos])
    rows = plan_files(sources, out, poisoner, output=Output("jpeg"), overwrite=False)
    assert not out.exists()
    assert [row["output"] for row in rows] == ["a.jpg", "b.jpg", "d.jpg", "more/c.jpg"]
    assert rows[0] | {"source": None} == {
        **{"source": None, "output": "a.jpg", "error": None, "width": 40, "height": 32, "view": [32, 40]}
    }
    assert (rows[1]["width"], rows[1]["height"]) == (40, 48)
    assert "d.jpg" in rows[2]["error"]
    assert "has alpha" in rows[3]["error"]
    json.dumps(rows)
    run(photos, out, poisoner)
    with pytest.raises(ShadeFastError, match=r"holds an earlier run"):
        plan_files(sources, out, poisoner, output=Output(), overwrite=False)
    assert plan_files(sources, out, poisoner, output=Output(), overwrite=True)[0]["error"] is None


def test_a_record_is_json_whatever_was_measured(tmp_path: Path) -> None:
    outcome = PoisonedImage(
        image=None,
        status="failed",
        error="not finite",
        linf=0.1,
        distance_after=math.nan,
        lpips=math.inf,
        history=(1.0, math.nan),
    )
    row = Row(tmp_path / "a.png", None, "dog", 8, 8, outcome).to_dict(tmp_path / "out")
    json.dumps(row, allow_nan=False)
    assert (row["distance_after"], row["lpips"], row["history"], row["linf"]) == (None, None, [1.0], 0.1)
    assert row["source"] == "../a.png"
