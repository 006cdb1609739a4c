"""The embedded autoencoder: what its card promises."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.embedded import collect, measure, train
from shade_fast.encoders import load_encoder
from shade_fast.encoders.embedded import network

FOLDER = Path(network.__file__).parent
PHOTOGRAPHS = Path(__file__).parents[1] / "photographs"


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.stack([measure.load_photograph(path) for path in measure.pictures(PHOTOGRAPHS)])


def test_it_loads_small_with_factor_8_and_4_channels() -> None:
    assert (FOLDER / "encoder.safetensors").stat().st_size <= 3_000_000
    assert (FOLDER / "decoder.safetensors").stat().st_size <= 3_000_000
    encoder = load_encoder("embedded")
    assert (encoder.factor, encoder.channels, encoder.has_decoder) == (8, 4, True)


def test_it_reconstructs_photographs_that_it_never_saw(images: torch.Tensor) -> None:
    decibels, outputs, _ = measure.reconstruction(load_encoder("embedded"), images)
    assert outputs.min() >= 0 and outputs.max() <= 1
    assert decibels.mean() >= 23.5
    assert decibels.min() >= 18.5


def test_latents_of_photographs_are_near_unit_scale(images: torch.Tensor) -> None:
    with torch.no_grad():
        latents = load_encoder("embedded").encode(images)
    spread, centre = torch.std_mean(latents, (0, 2, 3))
    assert ((spread > 0.6) & (spread < 1.6)).all()
    assert (centre.abs() < 0.5).all()


@pytest.mark.parametrize(("height", "width"), [(8, 8), (24, 40), (104, 72), (8, 136)])
def test_any_multiple_of_8_goes_in_and_comes_back(height: int, width: int) -> None:
    encoder = load_encoder("embedded")
    batch = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = encoder.encode(batch)
        assert latents.shape == (2, 4, height // 8, width // 8)
        assert torch.equal(latents, encoder.encode(batch))
        assert encoder.decode(latents).shape == batch.shape


def test_a_small_change_of_the_image_is_a_small_change_of_the_latents(images: torch.Tensor) -> None:
    encoder = load_encoder("embedded")
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) / 255
    with torch.no_grad():
        clean = encoder.encode(images)
        moved = encoder.encode(images + noise) - clean
    assert moved.norm() < 0.1 * clean.norm()


def test_a_training_run_that_was_stopped_goes_on_as_if_it_was_not(tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    with Image.open(PHOTOGRAPHS / "koala.jpg") as image:
        image.resize((200, 240)).save(photographs / "koala.png")
    recipe = train.Recipe(steps=4, batch=1, crop=32)
    train.train([photographs], tmp_path / "whole", recipe, every=4)
    train.train([photographs], tmp_path / "stopped", recipe, every=2, until=2)
    train.train([photographs], tmp_path / "stopped", recipe, every=2)
    whole, stopped = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "stopped"))
    assert whole["step"] == stopped["step"] == 4
    for name, value in whole["average"].items():
        torch.testing.assert_close(stopped["average"][name], value)
    for half in ("encoder", "decoder"):
        assert (tmp_path / "whole" / f"{half}.safetensors").exists()


def test_the_table_of_training_photographs_holds_no_photograph_of_the_tests() -> None:
    with collect.TABLE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert all(row["author"] and row["licence"] for row in rows)
    trained = {Path(row["member"] or row["path"]).name for row in rows}
    licences = (PHOTOGRAPHS / "LICENSES.md").read_text(encoding="utf-8")
    origins = [line.split("[")[1].split("]")[0] for line in licences.splitlines() if line.startswith("| `")]
    assert len(origins) == len(measure.pictures(PHOTOGRAPHS))
    assert not trained & set(origins)
