"""Warm starts: fitted, kept, found fitting or refused, and worth their steps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from shade_fast import Anchor, Budget, ShadeFastError, View, WarmStart, fit_start, poison_batch
from shade_fast.api.poisoner import Poisoner
from shade_fast.archive import Manifest, Storage, archive_status
from shade_fast.cli import main


@pytest.fixture(scope="module")
def options(tiny_module: nn.Module) -> dict[str, Any]:
    return {"encoder": tiny_module, "budget": Budget(0.05, None), "view": View(64), "perceptual": None}


@pytest.fixture(scope="module")
def start(draw: Any, options: dict[str, Any]) -> WarmStart:
    images = [draw(64, 64, seed) for seed in range(12)] + [draw(64, 96, 12)]
    return fit_start(images, draw(64, 64, 99), Poisoner(**options), steps=20)


def test_images_begin_with_what_was_fitted_to_others(draw: Any, options: dict[str, Any], start: WarmStart) -> None:
    assert set(start.perturbations) == {(64, 64), (64, 96)}
    images = [draw(64, 64, seed) for seed in range(40, 44)]
    options = options | {"steps": 2, "target_ratio": 1.0}
    cold = poison_batch(images, draw(64, 64, 99), **options)
    warm = poison_batch(images, draw(64, 64, 99), **options, start=start)
    for image, other in zip(cold, warm, strict=True):
        assert other.history[0] < 0.97 * image.history[0]
        assert other.linf is not None
        assert other.linf <= 0.05


def test_a_file_keeps_it(draw: Any, start: WarmStart, tmp_path: Path, options: dict[str, Any]) -> None:
    # A folder that is not there yet, and a name that is no text.
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/new\xff/start.safetensors"))
    start.save(path)
    kept = WarmStart.load(path)
    assert (kept.anchor_sha256, kept.encoder_sha256) == (start.anchor_sha256, start.encoder_sha256)
    assert (kept.images, kept.steps) == (13, 20)
    for size, value in start.perturbations.items():
        torch.testing.assert_close(kept.perturbations[size], value, rtol=0, atol=0.5 / 127)
    result = poison_batch([draw(70, 90)], draw(64, 64, 99), **options, start=path, steps=1)
    assert result[0].status != "failed"


def test_another_size_of_view_takes_the_nearest(start: WarmStart) -> None:
    square = start.perturbation(0, (72, 72), (144, 144))
    assert square.shape == (1, 3, 144, 144)
    pooled = nn.functional.interpolate(square, (64, 64), mode="bilinear", antialias=True)
    assert np.corrcoef(pooled.flatten(), start.perturbations[64, 64].flatten())[0, 1] > 0.8


def test_what_it_was_not_fitted_to_is_refused(
    draw: Any, options: dict[str, Any], start: WarmStart, tmp_path: Path
) -> None:
    image, target = draw(64, 64), draw(64, 64, 99)
    with pytest.raises(ShadeFastError, match="another anchor than 'array'"):
        poison_batch([image], draw(64, 64, 98), **options, start=start)
    with pytest.raises(ShadeFastError, match="other encoders than embedded"):
        poison_batch([image], target, **(options | {"encoder": "embedded"}), start=start)
    with pytest.raises(ShadeFastError, match="published loops have no warm start"):
        poison_batch([image], target, **options, optimizer="release", start=start)
    with pytest.raises(ShadeFastError, match="plain function"):
        function = Poisoner(**(options | {"encoder": lambda images: nn.functional.avg_pool2d(images, 8)}))
        fit_start([image], target, function)
    with pytest.raises(ShadeFastError, match="none were given"):
        fit_start([], target, Poisoner(**options))
    with pytest.raises(ShadeFastError, match=r"images: give a sequence of images .* got str"):
        fit_start("photo.jpg", target, Poisoner(**options))
    with pytest.raises(ShadeFastError, match="steps=0: give a whole number, at least 1"):
        fit_start([image], target, Poisoner(**options), steps=0)
    Image.fromarray(draw(64, 4, 1)).save(tmp_path / "narrow.png")
    with pytest.raises(ShadeFastError, match=r"narrow.png: 4x64 pixels: the encoder sees multiples of 8"):
        fit_start([image, tmp_path / "narrow.png"], target, Poisoner(**options))


def test_a_tensor_is_fitted_to_as_its_images_are(draw: Any, options: dict[str, Any]) -> None:
    images, target, poisoner = [draw(64, 64, seed) for seed in range(2)], draw(64, 64, 99), Poisoner(**options)
    tensor = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    fitted = [fit_start(sample, target, poisoner, steps=2).sha256 for sample in (images, tensor)]
    assert fitted[0] == fitted[1]


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "not.safetensors").write_bytes(b"nothing of the kind")
    (tmp_path / "short.safetensors").write_bytes(b"\x02")
    (tmp_path / "list.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    for name in ("not", "short", "list", "weights", "missing"):
        with pytest.raises(ShadeFastError, match=f"{name}.safetensors: no warm start"):
            WarmStart.load(tmp_path / f"{name}.safetensors")
    with pytest.raises(ShadeFastError, match=r"not.safetensors/start: the warm start cannot be written"):
        WarmStart({(8, 8): torch.zeros(1, 3, 8, 8)}, "", (), 1, 1).save(tmp_path / "not.safetensors" / "start")


def test_an_anchors_hash_is_of_its_pixels(draw: Any, tmp_path: Path) -> None:
    Image.fromarray(draw(20, 30, 1)).save(tmp_path / "a.png")
    Image.fromarray(draw(20, 30, 1)).save(tmp_path / "b.bmp")
    anchor, other = Anchor("one", [tmp_path / "a.png"]), Anchor("other", [tmp_path / "b.bmp"])
    assert anchor.sha256 == other.sha256
    assert anchor.sha256 != Anchor("one", [draw(20, 30, 2)]).sha256
    assert Anchor("latent", latent=torch.zeros(4, 2, 2)).sha256 != Anchor("latent", latent=torch.ones(4, 2, 2)).sha256


def test_the_commands_fit_and_use_it(draw: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for seed in range(3):
        Image.fromarray(draw(64, 64, seed)).save(tmp_path / "in" / f"{seed}.png")
    common = [str(tmp_path / "in"), "--target", "castle", "--lpips", "none", "--linf", "0.05", "--quiet"]
    common += ["--steps", "3"]
    kept = str(tmp_path / "start.safetensors")
    assert main(["fit", *common, "--out", kept, "--count", "2"]) == 0
    assert "fitted to 2 images, views of 64x64" in capsys.readouterr().out
    assert main(["archive", *common, "--out", str(tmp_path / "out"), "--start", kept, "--target-ratio", "1"]) == 0
    assert archive_status(tmp_path / "out")["options"]["start"] == {"sha256": WarmStart.load(kept).sha256}
    rows = list(Manifest(Storage(tmp_path / "out")).all_rows())
    assert len(rows) == 3
    assert all(row.history[0] < (row.distance_before or 0) for row in rows)
