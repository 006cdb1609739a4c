from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch import nn

from shade_fast.archive import Manifest, Row, Storage, to_text
from shade_fast.encoders import Encoder
from shade_fast.report import write_report
from shade_fast.report.report import inline_picture
from shade_fast.report.run import Figures, choose, read_run
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.limits import Limits

HOSTILE = "<script>alert('x')</script>&\".png"
VOID = {"meta", "img", "input", "br", "wbr"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps what the tests ask about."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.words.append("" if tag == "wbr" else " ")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.words.append(" ")

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    def all(self, tag: str, name: str = "") -> list[dict[str, str | None]]:
        return [
            attrs for found, attrs in self.tags if found == tag and name in ("", *(attrs.get("class") or "").split())
        ]


def blocks(decodes: bool = True) -> Encoder:
    """A stand-in encoder: 8x8 means as latents, decoded to flat blocks."""
    load_decoder = (lambda: nn.Upsample(scale_factor=8)) if decodes else None
    return Encoder(nn.AvgPool2d(8), name="blocks", kind="module", factor=8, channels=3, load_decoder=load_decoder)


def record(source: str, status: str = "ok", **fields: Any) -> Row:
    fields = {"target": "cat", "width": 40, "height": 24, "optimize_ms": 500.0} | fields
    return Row(key=source, shard="00000-00000", index=0, source=to_text(source), status=status, **fields)


def done(source: str, output: str, after: float, status: str = "ok", **fields: Any) -> Row:
    measured = {"output": output, "linf": 16 / 255, "lpips": 0.06, "distance_before": 100.0, "distance_after": after}
    measured |= {"steps": 3, "anchor": "anchor.png", "history": (100.0, 80.0, after)}
    return record(source, status, **(measured | fields))


def write_run(directory: Path, images: list[Row], **fields: Any) -> Path:
    encoder = {"spec": "blocks", "name": "blocks", "factor": 8, "channels": 3, "sha256": "ab" * 32}
    options = {"target": "cat", "steps": 3, "view": {"size": 16}, "optimizer": "momentum", "seed": 0}
    options |= {"budget": {"linf": 16 / 255, "lpips": 0.07}, "encoder": [encoder], "version": "0.1.0"}
    options |= {"perceptual": {"name": "st-vgg"}, "backend": "native", "device": "cpu"}
    run = {"created": "2025-02-03T04:05:06+00:00", "options": options | fields}
    (directory / "_shade_fast").mkdir(exist_ok=True)
    (directory / "_shade_fast/run.json").write_text(json.dumps(run), encoding="utf-8")
    (directory / "_stats.json").write_text(json.dumps({"last_run": {"images": 4, "seconds": 80.0}}))
    rows = [replace(row, index=index) for index, row in enumerate(images)]
    rows = [replace(row, anchor=row.anchor and str(directory / row.anchor)) for row in rows]
    Manifest(Storage(directory)).write("00000-00000", rows, whole=True)
    return directory


def write_picture(path: Path, seed: int, size: tuple[int, int] = (40, 24)) -> None:
    noise = numpy.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The records that tests write pass for this user's own."""
    monkeypatch.setattr("shade_fast.report.report.is_own", lambda out, record: True)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two `ok`, one `below_target` with its file gone, two `failed`; one name is hostile."""
    (tmp_path / "clean").mkdir()
    for place, name in enumerate(["anchor.png", "clean/a.png", "a.png", "clean/b.png", "b.png", "clean/c.png"]):
        write_picture(tmp_path / name, place)
    (tmp_path / "notes.png").write_text("no image")
    images = [
        done("clean/a.png", "a.png", 40.0),
        done("clean/b.png", "b.png", 60.0, linf=15 / 255, lpips=0.0699),
        done("clean/c.png", "c.png", 95.0, status="below_target"),
        record("notes.png", "failed", error="notes.png: no image <b>at all</b>"),
        record(HOSTILE, "failed", error=None),
    ]
    return write_run(tmp_path, images)


def test_the_page_is_well_formed_and_asks_for_nothing_outside(run: Path) -> None:
    path = write_report(run, encoder=blocks())
    page = Page(path)
    assert path == run / "report.html"
    assert "http://" not in page.source and "https://" not in page.source
    assert not re.search(r"url\(|@import", page.source)
    for _, attrs in page.tags:
        assert (attrs.get("src") or "data:image/").startswith("data:image/")
        assert (attrs.get("href") or "#").startswith("#")
    assert not page.all("link")
    assert "default-src 'none'" in page.source


def test_the_script_that_may_run_is_the_page_s_own(run: Path) -> None:
    page = Page(write_report(run, encoder=blocks()))
    script = page.source.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.source


def test_names_errors_and_options_are_escaped(run: Path) -> None:
    path = run / "_shade_fast/run.json"
    record = json.loads(path.read_text())
    options = record["options"]
    options["target"] = options["device"] = options["encoder"][0]["name"] = "<img src=x onerror=alert(1)>"
    path.write_text(json.dumps(record))
    page = Page(write_report(run))
    assert len(page.all("script")) == 1 and not page.all("b", "at")
    assert HOSTILE in page.text and "no image <b>at all</b>" in page.text
    assert all("onerror" not in attrs for attrs in page.all("img"))


def test_totals_are_those_of_the_images(run: Path) -> None:
    read = read_run(run)
    assert read.totals.images == 5 and read.totals.statuses == {"ok": 2, "below_target": 1, "failed": 2}
    assert read.totals.mean_ratio == pytest.approx((0.4 + 0.6 + 0.95) / 3)
    assert read.figures.median_ratio == pytest.approx(0.6)
    assert read.totals.largest_linf == 16 / 255 and read.totals.largest_lpips == 0.0699
    assert read.holds_linf and read.holds_lpips
    text = Page(write_report(run, encoder=blocks())).text
    assert "2 of 5 images moved towards “cat”" in text
    assert "60.0%" in text and "mean 65.0%" in text and "16 /255 budget 16/255: holds" in text
    assert "0.0699 budget 0.07: holds" in text and "1 min 20 s (0.05 images/s)" in text and "3 February 2025" in text


def test_an_exceeded_budget_is_said(tmp_path: Path) -> None:
    write_run(tmp_path, [done("a.png", "b.png", 50.0, linf=17 / 255, lpips=0.0701)])
    read = read_run(tmp_path)
    assert not read.holds_linf and not read.holds_lpips
    assert Page(write_report(tmp_path)).text.count("exceed") == 4


def test_a_budget_between_two_levels_counts_as_the_lower(tmp_path: Path) -> None:
    images = [done("a.png", "b.png", 50.0, linf=16 / 255)]
    budget = {"linf": 0.0625, "lpips": None}
    assert not read_run(write_run(tmp_path, images, budget=budget)).holds_linf


def test_every_image_has_its_row_and_failed_ones_their_reason(run: Path) -> None:
    page = Page(write_report(run, encoder=blocks()))
    assert [attrs.get("class") for attrs in page.all("tr")[1:]] == ["ok", "ok", "below_target", "failed", "failed"]
    assert len(page.all("article", "card")) == 5 and len(page.all("article", "failed")) == 2
    assert "No reason was recorded." in page.text


def test_a_missing_picture_is_said_in_its_place(run: Path) -> None:
    text = Page(write_report(run, encoder=blocks())).text
    assert "The perturbed file is not there: c.png" in text
    (run / "a.png").write_text("not a picture")
    text = Page(write_report(run, encoder=blocks())).text
    assert "The perturbed file cannot be shown. a.png: " in text


def test_pictures_of_two_sizes_have_no_difference(run: Path) -> None:
    write_picture(run / "a.png", 9, (24, 40))
    assert "The two files differ in size: 40×24 and 24×40." in Page(write_report(run, encoder=blocks())).text


def test_the_model_s_view_is_decoded(run: Path) -> None:
    page = Page(write_report(run, encoder=blocks()))
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", page.source)
    assert titles.count("clean, decoded") == titles.count("perturbed, decoded") == titles.count("anchor, decoded") == 3
    # per image: clean, perturbed, difference and three decoded; the third lacks its perturbed file, so three of them
    assert len(page.all("img")) == 6 + 6 + 3
    assert all(attrs.get("alt") for attrs in page.all("img"))


def test_without_a_decoder_the_page_says_so(run: Path) -> None:
    page = Page(write_report(run, encoder=blocks(decodes=False)))
    assert "The encoder blocks has no decoder" in page.text and "decoded</figcaption>" not in page.source


def test_an_encoder_that_cannot_be_loaded_leaves_the_panels_out(run: Path) -> None:
    page = Page(write_report(run))
    assert "The run's encoder blocks could not be loaded" in page.text and "anchor, decoded" not in page.text


def test_another_encoder_than_the_run_s_is_named(run: Path) -> None:
    other = blocks()
    other.sha256 = "cd" * 32
    page = Page(write_report(run, encoder=other))
    assert "Decoded with blocks, whose weights are not those that the run used." in page.text


def test_the_limit_holds_pictures_and_the_table_lists_all(run: Path) -> None:
    page = Page(write_report(run, run / "small.html", encoder=blocks(), limit=2))
    assert len(page.all("article")) == 2 and len(page.all("tr")) == 1 + 5
    assert "2 of 5 images are shown" in page.text
    assert not Page(write_report(run, encoder=blocks(), limit=0)).all("img")


def test_choose_takes_the_short_ones_first_and_the_rest_over_the_whole_range(run: Path) -> None:
    model = read_run(run).images
    strong, failed = model[0], model[3]
    images = [_with_after(strong, float(after)) for after in range(1, 91)]
    images += [_with_after(strong, 97.0, "below_target")] * 3 + [failed] * 30
    chosen = choose(Figures(images), 20)
    states = [images[index].status for index in chosen]
    assert states.count("below_target") == 3 and states.count("failed") == 7 and states.count("ok") == 10
    assert chosen[0] == 0 and 89 in chosen and chosen == sorted(set(chosen))
    assert len(choose(Figures([failed] * 50), 20)) == 20 and choose(Figures(images[:5]), 20) == [0, 1, 2, 3, 4]
    assert len(choose(Figures(images), 1)) == 1


def _with_after(image: Row, after: float, status: str = "ok") -> Row:
    return replace(image, distance_after=after, status=status)


def test_a_thousand_images_make_a_light_page(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "anchor.png"):
        write_picture(tmp_path / name, 1, (384, 384))
    history = [100 * 0.999**step for step in range(500)]
    images = [done("a.png", "b.png", 60.0, history=history) for _ in range(1000)]
    path = write_report(write_run(tmp_path, images), encoder=blocks(), limit=4)
    page = Page(path)
    pictures = sum(len(attrs["src"] or "") for attrs in page.all("img"))
    assert pictures < 4 * 400_000
    assert path.stat().st_size - pictures < 1_500_000
    assert len(page.all("path", "each")) <= 150 and len(page.all("tr")) == 1001


def test_pictures_are_shown_upright(run: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("clean/a.png", "a.png"):
        Image.new("RGB", (40, 24), "red").save(run / name, exif=exif)
    styles = [attrs["style"] for attrs in Page(write_report(run, encoder=blocks())).all("button", "picture")]
    assert styles[:2] == ["aspect-ratio:0.600"] * 2 and styles[4] == "aspect-ratio:1.667"


@pytest.mark.parametrize("shape", [(1, 1, 3), (4000, 8, 3), (8, 4000, 3)], ids=str)
def test_odd_shapes_become_pictures(shape: tuple[int, int, int]) -> None:
    assert inline_picture(numpy.zeros(shape, numpy.uint8), 384).startswith("data:image/webp;base64,")


def test_a_picture_too_small_for_the_encoder_says_so(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "anchor.png"):
        write_picture(tmp_path / name, 1, (5, 5))
    page = Page(write_report(write_run(tmp_path, [done("a.png", "b.png", 60.0)]), encoder=blocks()))
    assert page.text.count("Could not be decoded: 5x5 pixels") == 3


def test_a_missing_record_names_the_folder_and_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ShadeFastError, match=r"no run has been here; give the output of `shade-fast archive`"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, r"run\.json: options\.steps is -1, not a whole number"),
        ({"encoder": None}, r"run\.json: options\.encoder is None, not a list"),
        ({"budget": {"linf": "x"}}, r"options\.budget\.linf is 'x', not a number"),
        ({"budget": []}, r"options\.budget is \[\], not an object"),
        ({"seed": 10**400}, r"options\.seed is 10+, not a number of this size"),
        ({"steps": 1.5}, r"options\.steps is 1\.5, not a whole number from 0"),
        ({"target": True}, r"options\.target is True, not a text; fix it there or run"),
        ({"encoder": [{}, {"factor": "8"}]}, r"options\.encoder\[1\]\.factor is '8', not a number"),
        ({"encoder": ["embedded"]}, r"options\.encoder\[0\] is 'embedded', not an object"),
    ],
)
def test_an_invalid_record_names_the_field(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ShadeFastError, match=message):
        write_report(write_run(tmp_path, [], **options))


def test_what_a_record_lacks_is_unknown(tmp_path: Path) -> None:
    write_run(tmp_path, [], optimizer=None, version="", encoder=[{"spec": "owner/name"}], steps=float("inf"))
    text = Page(write_report(tmp_path)).text
    assert "Optimizer unknown Budget" in text and "Encoder owner/name" in text and "shade_fast unknown" in text


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_what_is_no_record(content: str, tmp_path: Path) -> None:
    (write_run(tmp_path, []) / "_shade_fast/run.json").write_text(content)
    with pytest.raises(ShadeFastError, match=r"run\.json: no record of a run"):
        write_report(tmp_path)


def test_a_damaged_manifest(tmp_path: Path) -> None:
    (write_run(tmp_path, []) / "_shade_fast/manifest/00000-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(ShadeFastError, match=r"its manifest cannot be read"):
        write_report(tmp_path)


def test_a_run_of_no_images_and_not_a_number_still_make_a_page(tmp_path: Path) -> None:
    assert "No images moved towards “cat”" in Page(write_report(write_run(tmp_path, []))).text
    odd = done("a.png", "b.png", float("nan"), history=(float("nan"), 0.0))
    assert "distance not measured" in Page(write_report(write_run(tmp_path, [odd]))).text


def test_absolute_paths_are_not_shown(run: Path) -> None:
    write_run(run, [done(str(run / "clean" / "a.png"), "a.png", 50.0)])
    assert str(run) not in Page(write_report(run, encoder=blocks())).source


def test_an_unwritable_page_is_an_error_with_the_file(run: Path) -> None:
    with pytest.raises(ShadeFastError, match=r"nowhere.report\.html: cannot be written"):
        write_report(run, run / "nowhere" / "report.html", encoder=blocks())


def _rows(page: Page) -> list[str]:
    return [str(attrs["id"]) for attrs in page.all("tr")[1:]]


def test_a_large_run_lists_the_pictured_the_short_ones_and_an_even_spread(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shade_fast.report.run.LISTED", 20)
    monkeypatch.setattr("shade_fast.report.run.CURVES", 6)
    images = [done("clean/a.png", "a.png", 30.0 + place % 50) for place in range(100)]
    for place in (10, 20, 30):
        images[place] = record("notes.png", "failed", error="no image")
    images[40] = done("clean/b.png", "b.png", 95.0, status="below_target")
    page = Page(write_report(write_run(run, images), encoder=blocks(), limit=5))
    numbers = [int(row.removeprefix("row-")) - 1 for row in _rows(page)]
    assert len(numbers) == 20 and numbers == sorted(numbers) and {10, 20, 30, 40} < set(numbers)
    assert {str(attrs["id"]).replace("image", "row") for attrs in page.all("article")} < set(_rows(page))
    assert {place // 20 for place in numbers} == set(range(5))
    assert "20 of 100 images are listed: those in pictures, all 4 that failed or fell short, and others" in page.text
    assert "the manifest has all" in page.text and "The table below lists 20 of them." in page.text
    assert "96 of 100 images moved towards" in page.text
    assert len(page.all("path", "each")) == 6 and "one image (6 of 97 drawn)" in page.text
    assert "median of 6, taken evenly over all" in page.text


def test_more_short_ones_than_rows_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shade_fast.report.run.LISTED", 20)
    images = [record(f"{place}.png", "failed", error="no image") for place in range(50)]
    images += [done("a.png", "b.png", 50.0)] * 10
    page = Page(write_report(write_run(tmp_path, images), limit=4))
    assert len(_rows(page)) == 20 and "in pictures, and 18 of the 50 that failed or fell short" in page.text
    assert len(Page(write_report(tmp_path, limit=30)).all("article")) == 30


def test_five_thousand_images_keep_a_light_page_and_the_whole_run_s_figures(tmp_path: Path) -> None:
    history = [100 * 0.99**step for step in range(60)]
    images = [done(f"{place}.png", "b.png", 20.0 + place / 100, history=history) for place in range(5000)]
    run = read_run(write_run(tmp_path, images))
    assert len(run.images) <= 2000 + 300 and run.totals.images == 5000
    assert run.figures.median_ratio == pytest.approx((20 + 49.99 / 2) / 100)
    path = write_report(tmp_path, limit=4)
    page = Page(path)
    assert len(_rows(page)) == 2000 and "2,000 of 5,000 images are listed" in page.text
    assert len(page.all("path", "each")) <= 150 and path.stat().st_size < 1_500_000


def test_a_record_from_elsewhere_opens_nothing_outside_its_folder(run: Path, tmp_path: Path) -> None:
    inside = run / "inside"
    inside.mkdir()
    (run / "out.png").symlink_to("a.png")
    write_picture(inside / "a.png", 3)
    (inside / "link.png").symlink_to("../b.png")
    (inside / "folder").symlink_to("..")
    (inside / "near.png").symlink_to("a.png")
    sources = ["../a.png", str(run / "a.png"), "link.png", "folder/a.png", "near.png", str(inside / "a.png")]
    write_run(inside, [done(source, "a.png", 50.0, anchor=None) for source in sources])
    seen = Page(write_report(inside, encoder=blocks(), trust=True))
    assert "outside" not in seen.text and len(seen.all("img")) == len(sources) * (3 + 2)
    page = Page(write_report(inside, encoder=blocks(), trust=False))
    assert page.text.count("The clean file is outside this folder; shown with --trust-record.") == 4
    assert len(page.all("img")) == 2 * (3 + 2) + 4 * (1 + 1)
    assert page.text.count("no file outside this folder was opened") == 1
    (run / "named").symlink_to("inside")
    assert len(Page(write_report(run / "named", encoder=blocks(), trust=False)).all("img")) == 2 * 5 + 4 * 2


def test_an_anchor_outside_is_not_opened_for_a_record_from_elsewhere(run: Path) -> None:
    inside = run / "inside"
    inside.mkdir()
    write_picture(inside / "a.png", 3)
    write_run(inside, [done("a.png", "a.png", 50.0, anchor="../anchor.png")])
    page = Page(write_report(inside, encoder=blocks(), trust=False))
    assert "The anchor file is outside this folder; shown with --trust-record." in page.text
    assert len(page.all("img")) == len(Page(write_report(inside, encoder=blocks(), trust=True)).all("img")) - 1


@pytest.mark.parametrize("spec", ["owner/name", "here.safetensors"])
def test_a_record_from_elsewhere_loads_no_encoder_that_it_names(
    spec: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def load(spec: str) -> Encoder:
        loaded.append(spec)
        return blocks()

    monkeypatch.setattr("shade_fast.encoders.load_encoder", load)
    named = {"spec": spec, "name": "theirs", "factor": 8, "channels": 3, "sha256": None}
    images = [done("clean/a.png", "a.png", 40.0)]
    write_run(run, images, encoder=[named])
    page = Page(write_report(run, trust=False))
    assert not loaded and "The encoder theirs is loaded with --trust-record only" in page.text
    write_run(run, images, encoder=[named, named | {"spec": "embedded", "name": "embedded"}])
    page = Page(write_report(run, trust=False))
    assert loaded == ["embedded"] and "anchor, decoded" in page.source
    write_report(run, trust=True)
    assert loaded == ["embedded", spec]


def test_whose_the_record_is_decides_by_default(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def is_own(out: Storage, record: Mapping[str, Any]) -> bool:
        asked.append((out.root, record["options"]["target"]))
        return False

    monkeypatch.setattr("shade_fast.report.report.is_own", is_own)
    assert "--trust-record" in Page(write_report(run, encoder=blocks())).text
    assert asked == [(str(run), "cat")]
    assert "--trust-record" not in Page(write_report(run, encoder=blocks(), trust=True)).text and len(asked) == 1


def test_a_source_s_url_is_shown_and_never_fetched(run: Path) -> None:
    fetched = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/photos/a.png?…"
        write_run(run, [done(url, "a.png", 50.0, anchor=None)])
        pages = [Page(write_report(run, encoder=blocks(), trust=trust)) for trust in (True, False)]
        server.shutdown()
    for page in pages:
        assert not fetched and url in page.text and "The clean file is not there: a.png?…" in page.text


def test_a_link_in_the_page_s_place_is_replaced(run: Path) -> None:
    (run / "precious").write_text("mine")
    (run / "report.html").symlink_to("precious")
    path = write_report(run, encoder=blocks())
    assert (run / "precious").read_text() == "mine" and not path.is_symlink() and "<!doctype" in path.read_text()


def test_control_characters_are_shown_escaped(run: Path) -> None:
    odd = "\x1b[31m\u202egnp\x07"
    images = [done(f"{odd}.png", "a.png", 50.0, target=f"dog{odd}"), record("notes.png", "failed", error=odd)]
    page = Page(write_report(write_run(run, images, target=f"cat{odd}"), encoder=blocks()))
    assert not re.search("[\x1b\u202e\x07]", page.source)
    shown = r"\x1b[31m\u202egnp\x07"
    assert all(text in page.text for text in (f"{shown}.png", f"dog{shown}", f"“cat{shown}”", f"failed {shown}"))


def test_a_pipe_is_no_picture(run: Path) -> None:
    (run / "a.png").unlink()
    os.mkfifo(run / "a.png")
    for trust in (True, False):
        text = Page(write_report(run, encoder=blocks(), trust=trust)).text
        assert "The perturbed file is not there: a.png" in text


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", ""])
@pytest.mark.parametrize("trust", [True, False])
def test_a_name_that_is_none_is_said_in_its_place(name: str, trust: bool, run: Path) -> None:
    write_run(run, [done(to_text(name), "a.png", 50.0, anchor=None)])
    assert "The clean file" in Page(write_report(run, encoder=blocks(), trust=trust)).text


@pytest.mark.parametrize(("column", "value"), [("width", "<b>9</b>"), ("status", "<b>"), ("linf", "x"), ("steps", "y")])
def test_a_column_of_another_kind_is_an_error(column: str, value: str, tmp_path: Path) -> None:
    write_run(tmp_path, [])
    row = asdict(done("a.png", "b.png", 50.0, anchor=None)) | {column: value}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "_shade_fast/manifest/00000-00000.parquet")
    with pytest.raises(ShadeFastError, match="its manifest cannot be read"):
        write_report(tmp_path)


def test_figures_beyond_all_measure_make_a_page(tmp_path: Path) -> None:
    odd = {"distance_before": 1e-310, "linf": 1e308, "history": (1e-40, 1e38, -1e38), "optimize_ms": float("inf")}
    assert "No images" not in Page(write_report(write_run(tmp_path, [done("a.png", "b.png", 1e300, **odd)]))).text
    with pytest.raises(ShadeFastError, match=r"options\.budget\.linf is 1e\+308, not a number from 0 to 1"):
        write_report(write_run(tmp_path, [], budget={"linf": 1e308}))


def test_a_view_too_large_for_the_encoder_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shade_fast.report.report.LIMITS", Limits(view_pixels=16 * 16 - 1))
    text = Page(write_report(run, encoder=blocks())).text
    assert "Could not be decoded: the encoder would see 24x16 pixels, more than 255" in text


def test_damaged_totals_name_their_folder(tmp_path: Path) -> None:
    (write_run(tmp_path, []) / "_stats.json").write_text("[" * 100_000)
    with pytest.raises(ShadeFastError, match="its manifest cannot be read"):
        write_report(tmp_path)
