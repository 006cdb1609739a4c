from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image
from torch import nn

from shade_fast import AnchorLibrary, Budget, ShadeFastError, View, fit_start
from shade_fast.api.poisoner import Poisoner
from shade_fast.archive import Manifest, Storage, archive_status, find_images, verify_archive
from shade_fast.archive.archive import Archive
from shade_fast.archive.names import from_text, legible, to_text
from shade_fast.archive.options import RunOptions
from shade_fast.archive.storage import ArchiveStoppedError
from shade_fast.images import decode
from shade_fast.perceptual import load_perceptual
from shade_fast.protect.batch import Protector
from shade_fast.protect.options import Options
from tests.archive.outputs import Run, by_key, images


@pytest.fixture
def poisoner(engine: dict[str, Any]) -> Poisoner:
    return Poisoner(**engine)


def test_an_archive_comes_back_in_the_same_shape(run: Run, photos: Path, tmp_path: Path, poisoner: Poisoner) -> None:
    (photos / "notes.txt").write_text("not an image")
    report = run(photos)
    assert (report.images, report.ok, report.new, report.interrupted) == (3, 3, 3, False)
    assert list(images(tmp_path / "out")) == ["a.png", "b.jpg", "more/c.webp"]
    assert [Image.open(tmp_path / "out" / name).format for name in images(tmp_path / "out")] == ["PNG", "JPEG", "WEBP"]
    rows = by_key(report)
    assert list(rows) == ["a.png", "b.jpg", "more/c.webp"]
    assert (rows["b.jpg"].width, rows["b.jpg"].height, rows["b.jpg"].source_format) == (40, 48, "JPEG")
    assert rows["b.jpg"].output_format == "JPEG"
    assert rows["b.jpg"].quality is not None
    assert rows["b.jpg"].quality >= 90
    for row in rows.values():
        clean, shown = decode(photos / row.key), decode(tmp_path / "out" / row.key)
        change = np.abs(clean.pixels.astype(int) - shown.pixels).max()
        assert 0 < change <= 16
        assert row.linf == change / 255
        before, after, _ = poisoner.measure(clean.pixels, shown.pixels, poisoner.anchor("dog"))
        assert (row.distance_before, row.distance_after) == pytest.approx((before, after), rel=1e-4)
        assert row.distance_after is not None
        assert row.distance_before is not None
        assert row.distance_after < row.distance_before
        assert len(row.history) == row.steps == 3
    assert verify_archive(tmp_path / "out", poisoner=poisoner) == []
    stats = json.loads((tmp_path / "out/_stats.json").read_text())
    assert (stats["images"], stats["ok"], stats["open_shards"]) == (3, 3, [])
    assert archive_status(tmp_path / "out")["finished_shards"] == 1


def test_the_lpips_bound_holds_on_the_files(run: Run, photos: Path, tmp_path: Path, engine: dict[str, Any]) -> None:
    network = load_perceptual("st-alex")
    options = {"perceptual": network, "budget": Budget(16 / 255, 0.02)}
    report = run(photos, **options)
    assert all(row.lpips is not None and row.lpips <= 0.02 for row in report.rows())
    assert verify_archive(tmp_path / "out", poisoner=Poisoner(**(engine | options))) == []


def test_verify_finds_what_is_not_as_recorded(run: Run, photos: Path, tmp_path: Path, poisoner: Poisoner) -> None:
    run(photos)
    out = tmp_path / "out"
    Image.open(out / "a.png").convert("L").save(out / "a.png")
    (out / "more/c.webp").unlink()
    Image.open(photos / "b.jpg").save(photos / "b.jpg", quality=80)
    mismatches = {mismatch.key: mismatch.reason for mismatch in verify_archive(out, poisoner=poisoner)}
    assert mismatches["a.png"] == "its output has another sha256 than recorded"
    assert mismatches["b.jpg"] == "its source has another sha256 than recorded"
    assert "c.webp" in mismatches["more/c.webp"]
    (photos / "later.png").write_bytes((photos / "a.png").read_bytes())
    with pytest.raises(ShadeFastError, match="no run has been here"):
        verify_archive(photos)


def test_verify_measures_even_where_the_record_is_consistent(
    run: Run, photos: Path, tmp_path: Path, poisoner: Poisoner
) -> None:
    """A manifest whose figures are flattering, with right hashes, is found out."""
    import dataclasses

    report = run(photos / "a.png")
    manifest = Manifest(Storage(tmp_path / "out"))
    (row,) = report.rows()
    assert row.distance_after is not None
    for fields in ({"distance_after": 0.5 * row.distance_after}, {"linf": 1 / 255}):
        manifest.write(row.shard, [dataclasses.replace(row, **fields)], whole=True)  # type: ignore[arg-type]
        (mismatch,) = verify_archive(tmp_path / "out", poisoner=poisoner)
        assert f"{next(iter(fields))} is" in mismatch.reason


def test_reruns_do_nothing_and_additions_are_taken_up(run: Run, many: Path, tmp_path: Path, draw: Any) -> None:
    first = run(many, shard_size=5)
    before = images(tmp_path / "out")
    again = run(many, shard_size=5)
    assert (first.new, again.new, again.images) == (12, 0, 12)
    Image.fromarray(draw(32, 32, 99)).save(many / "03b.png")
    grown = run(many, shard_size=5)
    assert (grown.new, grown.images) == (1, 13)
    assert {name: data for name, data in images(tmp_path / "out").items() if name != "03b.png"} == before
    by_key(grown)


def test_the_same_bytes_whatever_the_workers_shards_and_neighbours(run: Run, many: Path, tmp_path: Path) -> None:
    run(many, tmp_path / "one", workers=1)
    run(many, tmp_path / "two", workers=4, shard_size=3)
    for task in range(3):
        run(many, tmp_path / "three", shard=(task, 3), shard_size=2)
    run(many / "07.png", tmp_path / "alone")
    expected = images(tmp_path / "one")
    assert len(expected) == 12
    assert images(tmp_path / "two") == expected
    assert images(tmp_path / "three") == expected
    assert images(tmp_path / "alone")["07.png"] == expected["07.png"]
    assert archive_status(tmp_path / "three")["images"] == 12


def test_a_folder_that_grows_between_the_tasks_of_an_array_job_is_done_whole(
    run: Run, many: Path, tmp_path: Path, draw: Any
) -> None:
    files = sorted(path.name for path in many.iterdir())
    for task in range(3):
        run(many, shard=(task, 3))
        Image.fromarray(draw(32, 32, 99 + task)).save(many / f"{task:02d}a.png")
    rows = [row.key for row in Manifest(Storage(tmp_path / "out")).all_rows()]
    assert set(files) <= set(rows)
    assert len(rows) == len(set(rows))


def test_other_options_are_refused_by_name(run: Run, many: Path, tmp_path: Path) -> None:
    run(many, limit=2)
    with pytest.raises(ShadeFastError, match=r"begun with other options: steps was 3, now 4\. Give those again"):
        run(many, steps=4)
    with pytest.raises(ShadeFastError, match=r'output was "same", now "png"'):
        run(many, output="png")
    with pytest.raises(ShadeFastError, match=r"tasks was 1, now 2"):
        run(many, shard=(0, 2))
    with pytest.raises(ShadeFastError, match=r"holds an earlier run; give another output, or mode resume"):
        run(many, mode="fail")
    report = run(many, steps=4, mode="overwrite")
    assert (report.new, report.images) == (12, 12)
    assert {row.steps for row in report.rows()} == {4}


def test_a_limit_and_a_stop_leave_the_rest_to_the_next_run(run: Run, many: Path, tmp_path: Path) -> None:
    whole = run(many, tmp_path / "whole")
    part = run(many, limit=5, shard_size=4)
    assert (part.new, part.images, part.interrupted) == (5, 5, True)
    (tmp_path / "out/04.png").unlink()
    stop = threading.Event()
    seen: list[str] = []

    def on_row(row: Any) -> None:
        seen.append(row.key)
        stop.set()

    stopped = run(many, stop=stop, on_row=on_row, shard_size=4)
    assert stopped.interrupted
    assert stopped.images == 4 + len(seen) < 12
    assert archive_status(tmp_path / "out")["images"] == stopped.images
    rest = run(many, shard_size=4)
    assert (rest.images, rest.interrupted, archive_status(tmp_path / "out")["open_shards"]) == (12, False, [])
    assert images(tmp_path / "out") == images(tmp_path / "whole")
    assert {row.output_sha256 for row in rest.rows()} == {row.output_sha256 for row in whole.rows()}


def test_duplicates_are_done_once_and_copied(
    run: Run, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("00b.png", "05b.png", "zz/00.png"):
        (many / name).parent.mkdir(exist_ok=True)
        (many / name).write_bytes((many / f"{name.split('/')[-1][:2]}.png").read_bytes())
    optimized: list[str] = []
    protect = Protector._protect

    def watched(self: Protector, works: Any, output: Any, clean: Any) -> Any:
        optimized.extend(work.image.name for work in works)
        return protect(self, works, output, clean)

    monkeypatch.setattr(Protector, "_protect", watched)
    report = run(many, shard_size=6)
    assert sorted(optimized) == [f"{index:02}.png" for index in range(12)]
    rows = by_key(report)
    assert {key: row.duplicate_of for key, row in rows.items() if row.duplicate_of} == {
        "00b.png": "00.png",
        "05b.png": "05.png",
        "zz/00.png": "00.png",
    }
    written = images(tmp_path / "out")
    assert written["zz/00.png"] == written["00b.png"] == written["00.png"]
    assert report.duplicates == 3


@pytest.mark.parametrize("change", ["removed", "changed"])
def test_a_duplicate_of_a_result_that_is_gone_is_done_for_itself(
    change: str, run: Run, many: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "alike"
    folder.mkdir()
    (folder / "00.png").write_bytes((many / "00.png").read_bytes())
    run(folder)
    output = tmp_path / "out/00.png"
    data = output.read_bytes()
    if change == "removed":
        output.unlink()
    else:
        output.write_bytes(data[:-1] + b"?")
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes((many / "00.png").read_bytes())
    report = run(folder)
    rows = by_key(report)
    assert (report.new, report.ok) == (2, 3)
    # Which of the two is read again first, and leads, is left to the threads.
    assert (rows["a.png"].duplicate_of, rows["b.png"].duplicate_of) in ((None, "a.png"), ("b.png", None))
    assert (tmp_path / "out/a.png").read_bytes() == (tmp_path / "out/b.png").read_bytes() == data


def test_an_image_that_may_not_be_written_takes_none_of_its_duplicates_with_it(
    run: Run, many: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "alike"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes((many / "00.png").read_bytes())
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").write_bytes(b"mine")
    rows = by_key(run(folder, workers=1))  # so that all are read before one is written
    assert [row.status for row in rows.values()] == ["failed", "ok", "ok"]
    assert [row.duplicate_of for row in rows.values()] == [None, None, "b.png"]
    assert (tmp_path / "out/a.png").read_bytes() == b"mine"
    assert run(folder, tmp_path / "measured", output="dummy").duplicates == 2
    (folder / "d.png").write_bytes((many / "00.png").read_bytes())
    assert run(folder, tmp_path / "measured", output="dummy").duplicates == 3  # of an earlier run's, without a file


def test_duplicates_of_an_image_that_fails_fail_as_it_does(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "alike"
    folder.mkdir()
    for name in ("a.png", "b.png"):  # decoded, and too small for the engine
        Image.new("RGB", (1, 1)).save(folder / name)
    assert ": as a.png, its duplicate: " in str(by_key(run(folder))["b.png"].error)


def test_bad_images_are_rows_with_their_reason(run: Run, photos: Path, tmp_path: Path) -> None:
    (photos / "a-notes.jpg").write_text("no image")
    (photos / "a-empty.png").touch()
    (photos / "b-cut.jpg").write_bytes((photos / "b.jpg").read_bytes()[:700])
    Image.new("RGB", (1, 1)).save(photos / "c-dot.png")
    Image.new("CMYK", (32, 32)).save(photos / "d-print.jpg")
    (photos / "e-copy.jpg").write_text("no image")
    report = run(photos)
    failed = {key: row for key, row in by_key(report).items() if row.status == "failed"}
    assert set(failed) == {"a-notes.jpg", "a-empty.png", "b-cut.jpg", "c-dot.png", "d-print.jpg", "e-copy.jpg"}
    for key, row in failed.items():
        assert row.error is not None
        assert key in row.error
        assert (row.output, row.linf, row.output_sha256) == (None, None, None)
    assert list(images(tmp_path / "out")) == ["a.png", "b.jpg", "more/c.webp"]
    with pytest.raises(ShadeFastError, match=r"stopped at the first image that failed: a-(empty|notes)"):
        run(photos, tmp_path / "strict", on_error="stop")


def test_two_sources_of_one_output_name(run: Run, photos: Path, tmp_path: Path) -> None:
    Image.open(photos / "a.png").save(photos / "a.bmp")
    report = run(photos, shard_size=1)
    rows = by_key(report)
    assert (rows["a.bmp"].status, rows["a.bmp"].output) == ("ok", "a.png")
    assert rows["a.png"].status == "failed"
    assert "its output a.png is that of" in str(rows["a.png"].error)
    assert "a.bmp too; rename one" in str(rows["a.png"].error)
    assert run(photos, shard_size=1).new == 0


def test_what_is_there_already_is_not_replaced(run: Run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"mine")
    (out / "b.jpg").mkdir()
    rows = by_key(run(photos))
    assert "exists and is none of this run's" in str(rows["a.png"].error)
    assert "b.jpg is a folder" in str(rows["b.jpg"].error)
    assert (out / "a.png").read_bytes() == b"mine"
    (row,) = (row for row in run(photos, mode="overwrite").rows() if row.key == "a.png")
    assert "exists and no run's record names it; move it away" in str(row.error)
    assert (out / "a.png").read_bytes() == b"mine"


def test_an_error_may_name_a_file_whose_name_is_no_text(run: Run, many: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    for folder in ("photos", "out"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes((many / "00.png").read_bytes())
    (row,) = run(tmp_path / "photos").rows()
    assert row.error is not None
    assert f"{tmp_path}/out/caf\\xe9.png exists and is none of this run's" in row.error


@pytest.mark.parametrize("name", ["a.png", "é.png", "a\\x41.png", "new\nline", os.fsdecode(b"\xff\\.png")])
def test_names_come_back_from_their_text(name: str) -> None:
    assert from_text(to_text(name)) == name
    assert to_text(name).encode()
    assert legible(legible(name)) == legible(name)


def test_a_name_that_no_file_can_have_is_text_too() -> None:
    assert to_text("\ud83d.png") == "\\xed\\xa0\\xbd.png"


def test_an_overwriting_run_that_was_cut_off_goes_on(run: Run, many: Path, tmp_path: Path) -> None:
    run(many)
    (tmp_path / "out/11.png").write_bytes(b"mine")
    assert run(many, mode="overwrite", steps=2, limit=4).interrupted
    rest = run(many, steps=2)
    assert (rest.new, rest.ok, rest.interrupted) == (8, 12, False)
    run(many, tmp_path / "anew", steps=2)
    assert images(tmp_path / "out") == images(tmp_path / "anew")


def test_an_image_that_fails_when_overwriting_leaves_nothing_of_the_earlier_run(
    run: Run, photos: Path, many: Path, tmp_path: Path
) -> None:
    run([photos, many / "00.png", many / "01.png"])
    (photos / "a.png").write_text("no image")
    for name in ("00.png", "01.png"):  # decoded, and too small for the engine
        Image.new("RGB", (1, 1)).save(many / name)
    out = tmp_path / "out"
    (out / "b.jpg").unlink()
    (out / "b.jpg").mkdir()
    rows = by_key(run([photos, many / "00.png", many / "01.png"], mode="overwrite"))
    assert {key for key, row in rows.items() if row.status == "failed"} == {"a.png", "b.jpg", "00.png", "01.png"}
    assert list(images(out)) == ["more/c.webp"]
    assert (out / "b.jpg").is_dir()


def test_outputs_never_take_the_place_of_sources(run: Run, photos: Path, tmp_path: Path) -> None:
    before = images(photos)
    for out in (photos, tmp_path):
        with pytest.raises(ShadeFastError, match=r"holds the source .* give another folder"):
            run(photos, out)
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.jpg").symlink_to(photos / "a.png")
    (out / "more").symlink_to(photos / "more")
    rows = by_key(run(photos, mode="overwrite"))
    assert images(photos) == before
    assert "no run's record names it" in str(rows["b.jpg"].error)
    assert "leads out of" in str(rows["more/c.webp"].error)
    inside = run(photos, photos / "protected")
    assert inside.images == 3
    assert run(photos, photos / "protected").new == 0


def test_what_concerns_the_whole_run_stops_it_before_it_starts(run: Run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for options, message in (
        ({"target": "dgo"}, r"'dgo'.* did you mean 'dog'\?"),
        ({"target": None}, r"target: none was given"),
        ({"mode": "again"}, r"mode='again': give one of resume"),
        ({"shard": (2, 2)}, r"shard=\(2, 2\)"),
        ({"output": "gif"}, r"output='gif'"),
        ({"workers": 0}, r"workers=0"),
        ({"quality": 0}, r"quality=0"),
        ({"quality": 90, "output": "webp"}, r"quality=90: webp is written lossless; leave it out, or give output jpeg"),
    ):
        with pytest.raises(ShadeFastError, match=message):
            run(photos, **options)
    with pytest.raises(ShadeFastError, match=r"nowhere: no such file or folder"):
        run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShadeFastError, match=r"empty: no images found"):
        run(tmp_path / "empty")
    with pytest.raises(ShadeFastError, match=r"folders, tars together"):
        run([photos, tmp_path / "a.tar"])
    (tmp_path / "file").touch()
    with pytest.raises(ShadeFastError, match=r"file: is a file; give a folder"):
        run(photos, tmp_path / "file")
    with pytest.raises(ShadeFastError, match=r"cannot be written"):
        run(photos, tmp_path / "file" / "below")
    assert not out.exists()


def test_urls_in_and_out(run: Run, photos: Path, tmp_path: Path, poisoner: Poisoner) -> None:
    expected = run(photos)
    memory = fsspec.filesystem("memory")
    memory.put(str(photos), "/urls/in", recursive=True)
    for _ in range(2):
        report = run("memory://urls/in", "memory://urls/out")  # type: ignore[arg-type]
        assert (report.images, report.ok) == (3, 3)
    for name, data in images(tmp_path / "out").items():
        assert memory.cat(f"/urls/out/{name}") == data
    assert {row.output_sha256 for row in report.rows()} == {row.output_sha256 for row in expected.rows()}
    import zipfile

    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as packed:
        for name in ("a.png", "b.jpg"):
            packed.write(photos / name, name)
    assert run(f"zip://::{tmp_path / 'photos.zip'}", tmp_path / "zip").ok == 2
    assert verify_archive(tmp_path / "zip", poisoner=poisoner) == []
    memory.rm("/urls", recursive=True)


def test_dummy_measures_and_writes_no_image(run: Run, photos: Path, tmp_path: Path) -> None:
    report = run(photos, output="dummy")
    assert report.ok == 3
    assert images(tmp_path / "out") == {}
    assert all(row.output is None and row.output_sha256 and row.linf for row in report.rows())


def test_events_are_lines_of_json(run: Run, photos: Path, tmp_path: Path) -> None:
    (photos / "bad.jpg").touch()
    run(photos, events=tmp_path / "events.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", *["image"] * 4, "shard", "end"]
    assert {line["key"]: line["status"] for line in lines[1:5]}["bad.jpg"] == "failed"
    assert lines[-1]["ok"] == 3


def test_events_that_find_no_room_stop_the_run_which_goes_on(run: Run, many: Path, tmp_path: Path) -> None:
    full = tmp_path / "events.jsonl"
    full.symlink_to("/dev/full")
    with pytest.raises(ArchiveStoppedError, match=r"events\.jsonl: events cannot be written: No space left on device"):
        run(many, events=full)
    assert run(many).images == 12


def test_orders_and_links_of_a_listing(tmp_path: Path, draw: Any) -> None:
    folder = tmp_path / "photos"
    for name in ("b.jpg", "a.PNG", "deep/er/c.webp", ".hidden.jpg", "notes.txt", "._b.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "folder.jpg").mkdir()
    (folder / "linked").symlink_to(folder / "deep")
    (folder / "deep" / "up").symlink_to(folder)
    (folder / "round").symlink_to(folder / "round")
    listed = [file.relative for file in find_images([folder])]
    assert listed == [".hidden.jpg", "a.PNG", "b.jpg", "deep/er/c.webp", "linked/er/c.webp"]
    assert [file.relative for file in find_images([folder / "notes.txt", folder / "deep/er"])] == [
        "notes.txt",
        "c.webp",
    ]


def test_the_networks_are_named_in_every_row(run: Run, photos: Path, tiny_module: nn.Module, tmp_path: Path) -> None:
    report = run(photos, encoder=[tiny_module, tiny_module], seed=4)
    (first, *_) = report.rows()
    assert first.encoder == "Sequential + Sequential"
    assert first.encoder_sha256 is not None
    assert len(first.encoder_sha256) == 2 * 64 + 3
    assert (first.seed, len(first.options_sha256), len(str(first.source_sha256))) == (4, 64, 64)
    record = json.loads((tmp_path / "out/_shade_fast/run.json").read_text())
    assert record["options_sha256"] == first.options_sha256
    assert record["options"]["view"]["size"] == 32


def test_shapes_wait_for_their_like_but_not_for_ever(engine: dict[str, Any], tmp_path: Path, draw: Any) -> None:
    """With batches of 4, six shapes in turn fill no batch before the bound on what waits is reached."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for index in range(30):
        Image.fromarray(draw(32, 32 + 8 * (index % 6), index)).save(folder / f"{index:02}.png")
    batches: list[tuple[int, set[Any]]] = []
    with Archive(folder, tmp_path / "out", "dog", RunOptions(workers=1), Options(**engine)) as archive:
        protect = archive.poisoner.protector.protect_batch
        archive.poisoner.protector.batch_size = 4

        def watched(batch: Any, output: Any) -> Any:
            batches.append((len(batch), {work.image.pixels.shape for work in batch}))
            return protect(batch, output)

        archive.poisoner.protector.protect_batch = watched  # type: ignore[method-assign]
        archive.begin()
        for shard in archive.layout.shards((0, 1), archive.index):
            assert archive.run_shard(shard, threading.Event(), lambda row: None)
        report = archive.report(30, 1.0, interrupted=False)
    assert report.ok == 30
    assert all(len(shapes) == 1 for _, shapes in batches)
    assert sum(count for count, _ in batches) == 30
    assert max(count for count, _ in batches) > 1


def test_the_view_is_part_of_the_options(run: Run, photos: Path) -> None:
    run(photos)
    with pytest.raises(ShadeFastError, match=r'view was \{"size": 32.*, now \{"size": 24'):
        run(photos, view=View(size=24))


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("seed", {"seed": 1}),
        ("seed", {"seed": np.int64(2)}),
        ("steps", {"steps": None, "preset": "fast"}),
        ("weights", {"weights": [3, 1]}),
        ("view", {"view": View.robust(32)}),
        ("stop_ratio", {"stop_ratio": 0.5}),
        ("patience", {"patience": 2}),
        ("survival", {"survival": True}),
    ],
)
def test_results_of_other_options_are_not_mixed(
    name: str, other: dict[str, Any], run: Run, engine: dict[str, Any], many: Path
) -> None:
    ensemble = {"encoder": [engine["encoder"]] * 2}
    run(many, limit=1, **ensemble)
    with pytest.raises(ShadeFastError, match=f"begun with other options: {name} was"):
        run(many, **(ensemble | other))
    report = run(many, limit=1, **ensemble, preset="strong", weights=[1.0, 1.0], seed=np.int64(0))
    assert report.new == 1
    for row in report.rows():
        assert len(row.encoder_distances) == 2
        before, after = zip(*row.encoder_distances, strict=True)
        assert row.distance_after == pytest.approx(np.mean(np.divide(after, before)))


def test_another_image_as_the_target_is_another_option_whatever_it_is_called(
    run: Run, many: Path, tmp_path: Path, draw: Any, engine: dict[str, Any]
) -> None:
    target = tmp_path / "castle.png"
    Image.fromarray(draw(48, 48, 5)).save(target)
    run(many, limit=1, target=str(target))
    Image.fromarray(draw(48, 48, 6)).save(target)
    with pytest.raises(ShadeFastError, match="begun with other options: target_sha256 was"):
        run(many, target=str(target))
    run(many, tmp_path / "named", limit=1)
    other = AnchorLibrary({"dog": [draw(48, 48, seed=9)], "cat": [draw(48, 48, seed=7)]})
    with pytest.raises(ShadeFastError, match="begun with other options: anchors was"):
        run(many, tmp_path / "named", anchors=other)


def test_verify_asks_for_anchors_that_were_an_object(run: Run, photos: Path, tmp_path: Path) -> None:
    run(photos / "a.png", encoder="embedded")
    with pytest.raises(ShadeFastError, match="anchors were given as an object; verify it from Python, with poisoner="):
        verify_archive(tmp_path / "out")


def test_another_warm_start_is_another_option_whatever_its_file_is_called(
    run: Run, engine: dict[str, Any], many: Path, tmp_path: Path
) -> None:
    poisoner = Poisoner(**engine)
    files = [tmp_path / "one.safetensors", tmp_path / "other.safetensors", tmp_path / "copy.safetensors"]
    for file, steps in zip(files, (1, 4), strict=False):
        fit_start([many / "00.png"], "dog", poisoner, steps=steps).save(file)
    files[2].write_bytes(files[0].read_bytes())
    run(many, limit=1, start=files[0])
    for start in (files[1], None):
        with pytest.raises(ShadeFastError, match="begun with other options: start was"):
            run(many, start=start)
    assert run(many, limit=1, start=files[2]).new == 1
