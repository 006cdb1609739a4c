"""What is left of the latent shift after real codecs and filters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from shade_fast import Budget, ShadeFastError, View, poison_batch, survival
from shade_fast.archive import Manifest, Storage, archive_status
from shade_fast.cli import main
from shade_fast.views.treatments import TREATMENTS, Treatment


class Mean(nn.Module):
    """The mean of every 8x8 square, a latent whose shift can be reckoned by hand."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images, 8)


@pytest.fixture
def pair(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """A picture, and the same with its left half 20 levels brighter."""
    clean = np.clip(draw(64, 96, 5), 30, 200)
    perturbed = clean.copy()
    perturbed[:, :48] += 20
    return clean, perturbed


def test_a_smooth_shift_survives_everything_and_a_fine_one_does_not(pair: Any) -> None:
    clean, perturbed = pair
    smooth = survival([clean], [perturbed], Mean(), view=View(None))
    assert list(smooth.shares) == list(TREATMENTS)
    for name, share in smooth.means.items():
        assert share == pytest.approx(1, abs=0.08), name
    checkers = (np.indices(clean.shape[:2]).sum(axis=0) % 2 * 4)[..., None].astype(np.uint8)
    encoder = nn.Conv2d(3, 1, 2, 2)
    with torch.no_grad():
        encoder.weight.copy_(torch.tensor([[1.0, -1], [-1, 1]]).expand(1, 3, 2, 2))
    fine = survival([clean], [clean + checkers], encoder, view=View(None)).means
    assert fine["JPEG 75"] < 0.5
    assert fine["resize 50%"] < 0.2
    assert fine["denoise"] < 0.5
    assert fine["noise 0.03"] == pytest.approx(1, abs=0.1)


def test_the_share_is_of_the_shift(pair: Any) -> None:
    clean, perturbed = pair
    half = Treatment(lambda pixels: np.where(pixels == perturbed, clean // 2 + perturbed // 2, pixels))
    left = survival(
        [clean], [perturbed], Mean(), view=View(None), treatments={"half": half, "none": Treatment(np.copy)}
    )
    assert left.means["none"] == pytest.approx(1, abs=1e-5)
    assert left.means["half"] == pytest.approx(0.5, abs=0.05)
    assert "half" in left.table()


def test_pairs_that_do_not_fit_are_named(pair: Any) -> None:
    with pytest.raises(ShadeFastError, match=r"96x64 pixels.*96x60"):
        survival([pair[0][:60]], [pair[1]], Mean())
    with pytest.raises(ShadeFastError, match="2 clean and 1 perturbed images: give pairs"):
        survival([pair[0]] * 2, [pair[1]])
    for images in ([], [pair[0]]):
        with pytest.raises(ShadeFastError, match="none were given"):
            survival(images, [])
    with pytest.raises(ShadeFastError, match=r"clean: give a sequence of images .* got generator"):
        survival((one for one in pair), [pair[1]] * 2)  # type: ignore[arg-type]
    with pytest.raises(ShadeFastError, match=r"clean: give a sequence of images .* got str"):
        survival("a.png", "b.png")


def test_an_image_without_a_shift_is_left_out_of_the_figures(pair: Any) -> None:
    clean, perturbed = pair
    alone = survival([clean], [perturbed], Mean())
    for pairs in ([perturbed, clean], [clean, perturbed]):
        beside = survival([clean, clean], pairs, Mean())
        assert beside.means == alone.means
        assert beside.table().splitlines()[1:] == alone.table().splitlines()[1:]


def test_a_result_has_survival_on_request(draw: Any, tiny_module: nn.Module) -> None:
    options: dict[str, Any] = {"encoder": tiny_module, "perceptual": None, "budget": Budget(0.05, None), "steps": 3}
    asked = poison_batch([draw(64, 64)], draw(64, 64, 9), **options, survival=True, target_ratio=1.0)
    assert asked[0].survival is not None
    assert asked[0].image is not None
    direct = survival([draw(64, 64)], [asked[0].image], tiny_module)
    assert asked[0].survival == pytest.approx(direct.means, abs=1e-4)
    assert "JPEG 75" in asked.summary()
    assert poison_batch([draw(64, 64)], draw(64, 64, 9), **options)[0].survival is None


def test_the_command_measures_a_run(draw: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(draw(64, 80)).save(tmp_path / "in" / "a.png")
    run = [
        "archive",
        str(tmp_path / "in"),
        "--out",
        str(tmp_path / "out"),
        "--target",
        "cat",
        "--steps",
        "2",
        "--quiet",
    ]
    main([*run, "--lpips", "none", "--linf", "0.05", "--robust", "--survival", "--target-ratio", "1"])
    assert "shift left after JPEG 90" in capsys.readouterr().out
    (row,) = Manifest(Storage(tmp_path / "out")).all_rows()
    assert row.survival is not None
    assert [name for name, _ in row.survival] == list(TREATMENTS)
    status = archive_status(tmp_path / "out")
    assert "Jpeg" in str(status["options"]["view"]["transforms"])
    assert status["survival"] == dict(row.survival)
    assert main(["survive", str(tmp_path / "out"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["encoder"] == "embedded"
    for name, share in row.survival:
        assert shown["shares"][name] == pytest.approx([share], abs=1e-3)
    assert main(["survive", str(tmp_path / "out"), "--plot", str(tmp_path / "out" / "plot.nothing")]) == 2
    assert "plot" in capsys.readouterr().err


def test_the_commands_json_has_no_share_where_there_was_no_shift(
    draw: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transparent = np.dstack([draw(64, 64), np.zeros((64, 64), np.uint8)])
    Image.fromarray(transparent).save(tmp_path / "a.png")
    run = ["archive", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--target", "cat", "--steps", "1"]
    main([*run, "--lpips", "none", "--perceptual", "none", "--quiet"])
    capsys.readouterr()
    assert main(["survive", str(tmp_path / "out"), "--json"]) == 0
    text = capsys.readouterr().out
    assert "NaN" not in text
    assert json.loads(text)["shares"] == {name: [None] for name in TREATMENTS}


def test_the_plot_is_drawn(pair: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    treatments = {name: TREATMENTS[name] for name in ("JPEG 75", "flip")}
    path = survival([pair[0]], [pair[1]], Mean(), treatments=treatments).plot(tmp_path / "left.svg")
    assert "<svg" in path.read_text()
