"""ONNX Runtime through the front door, the archive and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from shade_fast import Budget, ShadeFastError, View, cli, load_encoder, load_perceptual, poison_batch
from shade_fast.api import export
from shade_fast.cli.exits import EXIT_OK
from shade_fast.engine import resolve_backend

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHADE_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_photographs_end_where_native_takes_them(draw: Any) -> None:
    images = [draw(64, 72, seed) for seed in range(2)]
    results = {
        backend: poison_batch(
            images,
            "castle",
            view=View(64),
            budget=Budget(16 / 255, 0.05),
            perceptual="st-alex",
            steps=12,
            backend=backend,
            target_ratio=1,
        )
        for backend in ("auto", "onnxruntime")
    }
    ours = results["onnxruntime"]
    assert ours.backend == "onnxruntime:cpu"
    for image, clean in zip(ours, images, strict=True):
        assert image.status == "ok", image.error
        assert image.lpips is not None and image.lpips <= 0.05
        assert np.abs(image.image.astype(int) - clean).max() <= 16
    means = [np.mean([image.distance_after for image in result]) for result in results.values()]
    assert means[1] == pytest.approx(means[0], rel=0.01)


def test_a_published_loop_runs_on_it(draw: Any, tiny_module: nn.Module) -> None:
    result = poison_batch(
        [draw(32, 32)],
        torch.ones(4, 4, 4),
        encoder=tiny_module,
        view=View(32),
        budget=Budget(16 / 255, None),
        perceptual=None,
        optimizer="release",
        steps=3,
        backend="onnxruntime",
        target_ratio=1,
    )
    assert result[0].status == "ok", result[0].error


def test_an_archive_and_its_verification(tmp_path: Path, draw: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(draw(40, 32)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "anchors/cat").mkdir(parents=True)
    Image.fromarray(draw(40, 40, 9)).save(tmp_path / "anchors/cat/1.png")
    out = str(tmp_path / "out")
    code = cli.main(
        [
            *("archive", str(tmp_path / "photos"), "--out", out, "--target", "cat"),
            *("--anchors", str(tmp_path / "anchors"), "--view", "32", "--steps", "2", "--target-ratio", "1"),
            *("--lpips", "none", "--perceptual", "none", "--backend", "onnxruntime"),
        ]
    )
    assert code == EXIT_OK
    record = json.loads((tmp_path / "out/_shade_fast/run.json").read_text())
    assert record["options"]["backend"] == "onnxruntime:cpu"
    for backend in ("onnxruntime:cpu", "reference"):
        assert cli.main(["verify", out, "--backend", backend, "--quiet"]) == EXIT_OK
        assert "1 images measured again, 0 mismatches" in capsys.readouterr().out
    shown = np.asarray(Image.open(tmp_path / "out/a.png")).copy()
    Image.fromarray(255 - shown).save(tmp_path / "out/a.png")
    assert cli.main(["verify", out, "--backend", "onnxruntime", "--quiet"]) == 1


def test_names_of_backends() -> None:
    cpu = torch.device("cpu")
    assert resolve_backend("onnxruntime", cpu) == resolve_backend("onnxruntime:cpu", cpu) == "onnxruntime:cpu"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ShadeFastError, match=r"pip install 'shade-fast\[onnx-gpu\]'"):
            resolve_backend("onnxruntime:cuda", cpu)
    with pytest.raises(ShadeFastError, match="devices='cpu'"):
        resolve_backend("onnxruntime:cpu", torch.device("cuda"))


#: Precision -> relative errors of latents, latent distance, LPIPS, and of the two gradients, in which ReLUs jump.
ERRORS = {"float32": (1e-5, 1e-5, 1e-4, 1e-3, 2e-2), "float16": (2e-3, 2e-4, 5e-3, 5e-2, 2e-1)}


@pytest.mark.parametrize("precision", ERRORS)
def test_an_export_runs_without_torch_and_its_card_says_how(
    precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "embedded", "--out", str(tmp_path), "--size", "32x40", "--perceptual", "st-vgg"]
    command += ["--precision", precision]
    assert cli.main(command) == EXIT_OK
    assert "step.onnx" in capsys.readouterr().out
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["dtype"], card["precision"]) == ("float32", precision)
    encoder, network = load_encoder("embedded"), load_perceptual("st-vgg")
    assert card["encoder"]["sha256"] == encoder.sha256 and card["perceptual"]["sha256"] == network.sha256
    sessions = {}
    for row in card["graphs"]:
        model = onnx.load(tmp_path / row["file"])
        onnx.checker.check_model(model, full_check=True)
        assert [(one.domain, one.version) for one in model.opset_import] == [("", row["opset"])]
        sessions[row["file"]] = onnxruntime.InferenceSession(tmp_path / row["file"])
    described = {row["file"]: {one["name"]: one for one in row["inputs"] + row["outputs"]} for row in card["graphs"]}
    assert described["step.onnx"]["images"]["shape"] == [1, 3, 32, 40]
    assert described["step.onnx"]["images"]["range"] == [0, 1]

    random = np.random.default_rng(0)
    clean = random.random((1, 3, 32, 40), dtype=np.float32)
    images = np.clip(clean + random.normal(0, 0.02, clean.shape), 0, 1).astype(np.float32)
    anchors = random.standard_normal(described["step.onnx"]["anchor_latents"]["shape"], dtype=np.float32)
    (latents,) = sessions["encoder.onnx"].run(None, {"images": images})
    features = sessions["features.onnx"].run(None, {"images": clean})
    names = [name for name in described["features.onnx"] if name.startswith("clean_features")]
    feeds = {"images": images, "anchor_latents": anchors, **dict(zip(names, features, strict=True))}
    step = dict(zip(
        [output.name for output in sessions["step.onnx"].get_outputs()], sessions["step.onnx"].run(None, feeds),
        strict=True,
    ))  # fmt: skip

    leaf = torch.from_numpy(images).requires_grad_(True)
    right_latents = encoder.encode(leaf)
    distance = (right_latents - torch.from_numpy(anchors)).norm()
    lpips = network.distance(leaf, network.features(torch.from_numpy(clean)))
    found = [latents, *(step[name] for name in ("latent_distance", "lpips", "latent_gradient", "lpips_gradient"))]
    gradients = (torch.autograd.grad(distance, leaf)[0], torch.autograd.grad(lpips.sum(), leaf)[0])
    rights = (right_latents, distance, lpips, *gradients)
    for made, right, tolerance in zip(found, rights, ERRORS[precision], strict=True):
        right = right.detach().numpy()
        assert np.linalg.norm(made - right) <= tolerance * np.linalg.norm(right)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 30}, "multiples of 8"),
        ({"precision": "half"}, "precision 'half': give one of float32, float16, bfloat16"),
        ({"batch": 0}, "batch=0: give a whole number, at least 1"),
        ({"size": (64, -8)}, "size=-8"),
        ({"size": "512"}, "size='512': give one side, or height and width"),
        ({"out": "/proc/none"}, "/proc/none: cannot be written"),
    ],
)
def test_what_an_export_refuses(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"out": tmp_path, "size": 16, "perceptual": None} | arguments
    with pytest.raises(ShadeFastError, match=message):
        export.export_onnx("embedded", **given)
    assert list(tmp_path.iterdir()) == []
