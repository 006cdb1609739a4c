from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from shade_fast import Anchor, AnchorLibrary, Budget, PoisonResult, ShadeFastError, View, load_encoder, poison_batch
from shade_fast.api.poisoner import Poisoner
from shade_fast.images import decode
from shade_fast.protect.outcome import Work
from shade_fast.terms.limits import Limits


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth image with texture, uint8 [H, W, 3]."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + random.integers(-12, 13, (height, width, 1)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 4, 3, 2, 1)
    )


@pytest.fixture(scope="module")
def options(module: nn.Module) -> dict[str, Any]:
    return {"encoder": module, "perceptual": "st-alex", "steps": 6, "view": View(size=64), "target_ratio": 1.0}


@pytest.fixture(scope="module")
def target() -> np.ndarray:
    return picture(80, 90, seed=99)


def change(result: PoisonResult, index: int, clean: np.ndarray) -> int:
    image = result[index].image
    assert image is not None
    return int(np.abs(image[..., :3].astype(int) - clean.astype(int)).max())


def test_every_kind_of_input_in_one_batch(options: dict[str, Any], target: np.ndarray, tmp_path: Path) -> None:
    arrays = [picture(70, 100, 1), picture(64, 64, 2), picture(120, 64, 3), picture(66, 67, 4)]
    path = tmp_path / "photo.png"
    Image.fromarray(arrays[0]).save(path)
    calls: list[tuple[int, int]] = []
    images = [path, str(path), Image.fromarray(arrays[1]), arrays[2], arrays[3]]
    result = poison_batch(images, target, **options, progress=lambda done, total: calls.append((done, total)))
    assert [image.status for image in result] == ["ok"] * 5
    for index, clean in enumerate([arrays[0], arrays[0], arrays[1], arrays[2], arrays[3]]):
        image = result[index].image
        assert image is not None
        assert image.shape == clean.shape
        assert image.dtype == np.uint8
        assert change(result, index, clean) <= 16
        assert result[index].linf == change(result, index, clean) / 255
    assert calls == [(done, 5) for done in range(1, 6)]
    assert len(result) == 5
    assert result[1:3] == result.images[1:3]
    assert result.backend == "native"
    assert result.images_per_second == pytest.approx(5 / result.seconds)
    assert "5 images: 5 ok" in result.summary()


def test_figures_are_measured_on_the_rounded_image(options: dict[str, Any], target: np.ndarray) -> None:
    clean = picture(96, 130, 5)
    result = poison_batch([clean], target, **options)
    encoder, plan = load_encoder(options["encoder"]), View(64).plan(96, 130, 8)
    latent = Anchor("target", [target]).latents(encoder, plan.crop)

    def distance(pixels: np.ndarray) -> float:
        seen = plan.apply(torch.tensor(pixels).permute(2, 0, 1)[None] / 255)
        return float((encoder.encode(seen) - latent).norm())

    image = result[0]
    assert image.image is not None
    assert image.distance_before == pytest.approx(distance(clean), rel=1e-5)
    assert image.distance_after == pytest.approx(distance(image.image), rel=1e-5)
    assert image.distance_after < image.distance_before
    assert image.history[0] == pytest.approx(image.distance_before, rel=1e-5)
    assert len(image.history) == image.steps == 6


def test_a_poisoner_keeps_its_networks_from_one_batch_to_the_next(
    options: dict[str, Any], target: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [[picture(64, 72, 1)], [picture(64, 72, 2)]]
    right = [poison_batch(batch, target, **options) for batch in batches]
    with Poisoner(**options) as poisoner:
        results = [poisoner.poison_batch(batches[0], target)]
        traced: list[object] = []
        monkeypatch.setattr(torch.export, "export", lambda *given, **more: traced.append(given))
        results.append(poisoner.poison_batch(batches[1], target))
        assert not traced
    for result, other in zip(results, right, strict=True):
        assert result[0].status == other[0].status == "ok"
        assert result[0].distance_after == pytest.approx(other[0].distance_after, rel=1e-3)


def test_a_uint8_tensor_is_a_batch(options: dict[str, Any], target: np.ndarray) -> None:
    arrays = [picture(64, 72, seed) for seed in range(2)]
    tensor = torch.stack([torch.tensor(array).permute(2, 0, 1) for array in arrays])
    from_tensor = poison_batch(tensor, target, **options)
    from_arrays = poison_batch(arrays, target, **options)
    for image, other in zip(from_tensor, from_arrays, strict=True):
        assert image.image is not None
        assert other.image is not None
        assert np.array_equal(image.image, other.image)


@pytest.mark.parametrize("batch_size", ["auto", 5])
def test_an_image_alone_in_a_batch_or_in_another_order_comes_out_the_same(
    batch_size: Any, options: dict[str, Any], target: np.ndarray
) -> None:
    arrays = [picture(64, 64, seed) for seed in range(5)]
    options = options | {"steps": 20, "batch_size": batch_size}
    together = poison_batch(arrays, target, **options)
    backwards = poison_batch(arrays[::-1], target, **options)[::-1]
    for index, array in enumerate(arrays):
        alone = poison_batch([array], target, **options)[0]
        for other in (together[index], backwards[index]):
            assert alone.image is not None
            assert other.image is not None
            assert (alone.image == other.image).mean() >= 0.999
            for figure in ("linf", "lpips", "distance_before", "distance_after"):
                assert getattr(alone, figure) == pytest.approx(getattr(other, figure), abs=1e-3)


@pytest.mark.parametrize("budget", [Budget(16 / 255, None), Budget(16 / 255, 0.02)], ids=["linf", "both"])
@pytest.mark.parametrize("view", [View(64), View.robust(64)], ids=["plain", "robust"])
@pytest.mark.parametrize("patience", [None, 3])
def test_figures_in_a_batch_do_not_change_with_the_neighbours(
    budget: Budget, view: View, patience: int | None, options: dict[str, Any], target: np.ndarray
) -> None:
    """Optimised together, as on a GPU: beside quiet images and beside loud ones, which stop at other steps."""
    poisoner = Poisoner(**(options | {"steps": 20, "view": view, "budget": budget, "patience": patience}))
    anchor = poisoner.anchor(target)
    image = picture(64, 64, 1)
    flat = np.full_like(image, 128)
    noise = np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8)
    surroundings = [[image], [image, flat, picture(64, 64, 2)], [noise, image, noise[::-1]]]
    alone, *others = (
        poisoner.protector.protect_batch([Work(decode(pixels), anchor) for pixels in batch], None)[place].outcome
        for batch, place in zip(surroundings, (0, 0, 1), strict=True)
    )
    for other in others:
        assert other.steps == alone.steps
        for figure in ("linf", "lpips", "distance_before", "distance_after"):
            assert getattr(other, figure) == pytest.approx(getattr(alone, figure), abs=1e-3), figure


def test_one_target_for_each_image(options: dict[str, Any]) -> None:
    arrays, targets = [picture(64, 64, 1)] * 2, [picture(64, 64, 8), picture(64, 64, 9)]
    result = poison_batch(arrays, targets, **options)
    for index, target in enumerate(targets):
        assert result[index].distance_after == poison_batch(arrays[:1], target, **options)[0].distance_after
    with pytest.raises(ShadeFastError, match="a list of 2 for 1 images"):
        poison_batch(arrays[:1], targets, **options)


def test_the_nearest_of_an_anchors_images_is_taken_for_each_image(options: dict[str, Any]) -> None:
    arrays = [picture(64, 64, 1), picture(64, 64, 2)]
    library = AnchorLibrary({"concept": [arrays[1] // 2 + 90, arrays[0] // 2 + 90]})
    result = poison_batch(arrays, "concept", anchors=library, **options)
    encoder = load_encoder(options["encoder"])
    candidates = library["concept"].latents(encoder, (64, 64))
    for image, array in zip(result, arrays, strict=True):
        latent = encoder.encode(torch.tensor(array).permute(2, 0, 1)[None] / 255)
        assert image.distance_before == pytest.approx(
            float((candidates - latent).flatten(1).norm(dim=1).min()), rel=1e-5
        )


def test_a_latent_is_a_target_and_is_resampled(options: dict[str, Any]) -> None:
    latent = torch.randn(4, 5, 5)
    results = [poison_batch([picture(64, 80, 1)], target, **options)[0] for target in (latent, latent[None])]
    assert [image.status for image in results] == ["ok", "ok"]
    assert results[0].distance_after == results[1].distance_after
    with pytest.raises(ShadeFastError, match="16 channels"):
        poison_batch([picture(64, 64)], torch.randn(16, 8, 8), **options)
    with pytest.raises(ShadeFastError, match="NaN"):
        poison_batch([picture(64, 64)], torch.full((4, 8, 8), float("nan")), **options)


def test_an_ensemble_is_measured_over_its_starts(options: dict[str, Any], target: np.ndarray) -> None:
    other = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.Tanh(), nn.Conv2d(8, 6, 3, 4, 1))
    options = options | {"encoder": [options["encoder"], other]}
    result = poison_batch([picture(100, 90, 1)], target, **options)
    assert result[0].distance_before == pytest.approx(1.0)
    assert result[0].distance_after is not None
    assert result[0].distance_after < 1
    assert " + " in result.encoder


def test_alpha_comes_back_untouched(options: dict[str, Any], target: np.ndarray) -> None:
    clean = np.dstack([picture(64, 64), np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)])
    result = poison_batch([clean], target, **options)
    assert result[0].image is not None
    assert np.array_equal(result[0].image[..., 3], clean[..., 3])
    assert 0 < change(result, 0, clean[..., :3]) <= 16


def test_bad_images_fail_by_name_and_the_others_go_on(
    options: dict[str, Any], target: np.ndarray, tmp_path: Path
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    empty = tmp_path / "empty.png"
    empty.touch()
    Image.fromarray(picture(64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    opened = Image.open(os.fsencode(tmp_path / "cut.png"))
    images = [picture(64, 64), text, empty, tmp_path / "missing.png", picture(1, 1), picture(64, 64), 7, opened]
    result = poison_batch(images, target, **options)  # type: ignore[arg-type]
    assert [image.status for image in result] == ["ok", *["failed"] * 4, "ok", "failed", "failed"]
    for index, named in ((1, "text.jpg"), (2, "empty.png"), (3, "missing.png"), (4, "1x1"), (6, "int"), (7, "cut.png")):
        assert result[index].image is None
        assert named in str(result[index].error)
    assert result[7].name == str(tmp_path / "cut.png")
    assert "5 failed" not in result.summary()
    assert "6 failed" in result.summary()


def test_a_long_thin_image_is_protected(options: dict[str, Any], target: np.ndarray) -> None:
    clean = picture(8, 4000)
    result = poison_batch([clean], target, **options | {"steps": 2})
    assert result[0].status == "ok"
    assert change(result, 0, clean) <= 16


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_view_over_the_limits_is_refused_by_name_and_its_neighbours_are_done(
    batch_size: int, options: dict[str, Any], target: np.ndarray, tmp_path: Path
) -> None:
    long = tmp_path / "screenshot.png"
    Image.fromarray(picture(80, 800)).save(long)
    limits = Limits(view_side=400, view_pixels=64 * 300)
    poisoner = Poisoner(**options, limits=limits)
    poisoner.protector.batch_size = batch_size  # as on a GPU
    images = [picture(64, 64), long, long, picture(64, 320), picture(64, 72)]
    result = poisoner.poison_batch(images, target)
    assert [image.status for image in result] == ["ok", "failed", "failed", "failed", "ok"]
    assert result[1].error == result[2].error
    assert result[1].error == (
        f"{long}: the encoder would see 640x64 pixels; at most 400 a side and 19,200 in all: cut it into parts, give "
        "a smaller --view, or --max view-side=640 --max view-pixels=40960"
    )
    assert str(result[3].error).endswith("give a smaller --view, or --max view-pixels=20480")
    raised = poison_batch([long], target, **options, limits=Limits(view_side=640, view_pixels=40960))
    assert raised[0].status == "ok"


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_an_image_that_needs_more_memory_than_is_allowed_is_refused_before_it_is_begun(
    backend: str, options: dict[str, Any], target: np.ndarray
) -> None:
    images = [picture(64, 64), picture(64, 2048)]
    result = poison_batch(images, target, **options, backend=backend, limits=Limits(memory=20_000_000))
    assert [image.status for image in result] == ["ok", "failed"]
    assert re.search(
        r"2048x64 pixels need about [0-9.]+ MB, at most 20\.0 MB are allowed: .*--max memory=\d{8,}$",
        str(result[1].error),
    )


def test_an_image_that_needs_more_memory_than_is_free_is_refused(
    options: dict[str, Any], target: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shade_fast.protect.batch.ORDINARY_PIXELS", 64 * 100)
    monkeypatch.setattr("shade_fast.protect.batch.free_bytes", lambda: 9_000_000)
    result = poison_batch([picture(64, 64), picture(64, 2048)], target, **options)
    assert [image.status for image in result] == ["ok", "failed"]
    assert "2048x64 pixels need about " in str(result[1].error)
    assert "9.0 MB are free: give a smaller --view" in str(result[1].error)
    monkeypatch.setattr("shade_fast.protect.batch.free_bytes", lambda: None)
    assert poison_batch([picture(64, 2048)], target, **options)[0].status == "ok"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not report a process' peak")
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_what_an_image_is_said_to_need_is_what_it_takes(backend: str) -> None:
    """Measured in a process of its own, as the peak beyond what it had when it was asked."""
    code = """
import sys
import numpy as np
from shade_fast import Budget, Poisoner, View
poisoner = Poisoner(perceptual=None, budget=Budget(lpips=None), steps=2, view=View(512), backend=sys.argv[1])
anchor, image = (np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (64, 512))
poisoner.poison_batch([anchor], anchor)
said = poisoner.protector._footprint.bytes(poisoner.view.plan(512, 512, poisoner.factor))
def now(name):
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
open("/proc/self/clear_refs", "w").write("5")
before = now("VmRSS")
assert poisoner.poison_batch([image], anchor)[0].status == "ok"
print(said, now("VmHWM") - before)
"""
    run = subprocess.run([sys.executable, "-c", code, backend], capture_output=True, text=True, check=True)
    said, taken = map(int, run.stdout.split())
    assert 0.8 * taken < said < 1.6 * taken


def test_an_image_whose_latent_is_not_finite_fails_alone(target: np.ndarray) -> None:
    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 8, 8)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            dark = images.amax(dim=(1, 2, 3), keepdim=True) < 0.01
            return torch.where(dark, torch.nan, self.convolution(images))

    images = [picture(64, 64), np.zeros((64, 64, 3), np.uint8), picture(64, 64, 1)]
    budget = Budget(lpips=None)
    for batch_size in (1, 3):
        result = poison_batch(
            images, target, encoder=Fragile(), budget=budget, steps=3, batch_size=batch_size, perceptual=None
        )
        assert [image.status == "failed" for image in result] == [False, True, False]
        assert "not finite" in str(result[1].error)


def test_too_little_movement_is_below_target_and_still_inside_the_budget(
    options: dict[str, Any], target: np.ndarray
) -> None:
    result = poison_batch([picture(64, 64)], target, **options | {"steps": 1, "target_ratio": 0.05})
    assert result[0].status == "below_target"
    assert result[0].image is not None


@pytest.mark.parametrize("optimizer", ["release", "paper"])
def test_the_published_loops_end_inside_the_budget_too(
    optimizer: str, options: dict[str, Any], target: np.ndarray
) -> None:
    clean, budget = picture(64, 64), Budget(linf=12 / 255, lpips=0.01)
    result = poison_batch([clean], target, **options | {"optimizer": optimizer, "budget": budget, "steps": 10})
    assert result[0].status == "ok"
    assert change(result, 0, clean) <= 12
    assert result[0].lpips is not None
    assert result[0].lpips <= 0.01


def test_the_reference_backend_is_plain_torch_and_says_so(
    options: dict[str, Any], target: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shade_fast.ops import native

    def refuse(name: str) -> Any:
        raise AssertionError(name)

    native_result = poison_batch([picture(64, 64)], target, **options)[0]
    monkeypatch.setattr(native, "cpu", lambda: refuse("cpu"))
    result = poison_batch([picture(64, 64)], target, **options, backend="reference")
    assert result.backend == "reference"
    # Gradients agree to 1e-5, and signs of values near 0 differ; what is reached does not depend on them.
    assert result[0].distance_after == pytest.approx(native_result.distance_after, rel=1e-2)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"optimizer": "adam"}, "optimizer 'adam'.*momentum"),
        ({"backend": "native2"}, "backend 'native2'.*reference"),
        ({"backend": "cuda"}, "backend 'cuda'.*devices='c"),
        ({"devices": "gpu"}, "devices='gpu'"),
        ({"devices": []}, r"devices=\[\].*'auto'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"target_ratio": 0}, "target_ratio=0"),
        ({"target_ratio": "0.9"}, "target_ratio='0.9'"),
        ({"budget": 0.06}, r"budget=0.06: give a Budget, such as Budget\(linf"),
        ({"limits": 5}, r"limits=5: give a Limits, such as Limits\("),
        ({"view": 512}, r"view=512: give a View, such as View\(size"),
        ({"weights": "1"}, r"weights=\['1'\]: give 1 numbers above 0"),
        ({"weights": 1.0, "encoder": ["embedded", "embedded"]}, r"weights=1.0: give 2 numbers"),
        ({"backend": None}, "backend=None: give one of auto, reference"),
        (
            {"backend": "reference", "accuracy": "bogus"},
            "accuracy 'bogus' of backend 'reference': give one of bf16",
        ),
        ({"optimizer": "release", "patience": 3}, "take all their steps; leave out stop_ratio, patience"),
        (
            {"optimizer": "paper", "stop_ratio": 0.5, "budget": Budget(None, 0.07), "perceptual": "auto"},
            "leave out stop_r",
        ),
        ({"patience": True}, "patience=True"),
        ({"stop_ratio": "0.5"}, "stop_ratio='0.5'"),
        ({"perceptual": "st-alx"}, "st-alex"),
        ({"perceptual": None}, "needs a perceptual network"),
        ({"encoder": "no-such-encoder"}, "no-such-encoder"),
        ({"encoder": []}, "empty list"),
        ({"encoder": lambda images: images.mean()}, "latent"),
    ],
)
def test_an_option_that_is_none_is_named_with_its_fix(
    changed: dict[str, Any], named: str, options: dict[str, Any], target: np.ndarray
) -> None:
    with pytest.raises(ShadeFastError, match=named):
        poison_batch([picture(64, 64)], target, **options | changed)


@pytest.mark.parametrize(
    ("images", "named"),
    [
        ([], "none were given"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "none were given"),
        (torch.zeros(1, 3, 8, 8), "uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"\[N, 3, H, W\]"),
        ("photo.jpg", "sequence of images"),
    ],
)
def test_images_that_are_none_are_refused(images: Any, named: str, options: dict[str, Any], target: np.ndarray) -> None:
    with pytest.raises(ShadeFastError, match=named):
        poison_batch(images, target, **options)


def test_a_wrong_target_name_suggests_the_nearest(options: dict[str, Any]) -> None:
    library = AnchorLibrary({"castle": [picture(64, 64)], "coffee": [picture(64, 64)]})
    with pytest.raises(ShadeFastError, match="did you mean 'castle'"):
        poison_batch([picture(64, 64)], "castel", anchors=library, **options)
