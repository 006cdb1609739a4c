"""Weights are found where they are promised to be looked for, read as data, and named when missing or unfit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shade_fast.perceptual import available, load, load_perceptual
from shade_fast.perceptual.trunks import TRUNKS
from shade_fast.terms.errors import ShadeFastError

SQUEEZE = "squeezenet1_1-b8a52dc0.pth"
ALEX = "alexnet-owt-7be5be79.pth"
VGG = "vgg16-397923af.pth"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with no weights and no packages that carry them; returns its (empty) SHADE_FAST_WEIGHTS folder."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("SHADE_FAST_WEIGHTS", str(folder))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(load, "_package_weights", lambda package: [])
    return folder


def save_heads(folder: Path, name: str) -> None:
    (folder / "v0.1").mkdir(exist_ok=True)
    heads = {f"lin{k}.model.1.weight": torch.rand(1, size, 1, 1) for k, size in enumerate(TRUNKS[name].channels)}
    torch.save(heads, folder / "v0.1" / f"{name}.pth")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


def put_squeeze(folder: Path, hub_folder: Path) -> dict[str, Tensor]:
    """Write a complete `squeeze` into `folder`; returns its trunk's tensors."""
    save_heads(folder, "squeeze")
    shutil.copy(hub_folder / SQUEEZE, folder)
    state: dict[str, Tensor] = torch.load(folder / SQUEEZE, weights_only=True)
    return state


def test_missing_files_are_named_with_every_place_and_the_fix(bare: Path) -> None:
    with pytest.raises(ShadeFastError) as caught:
        load_perceptual("vgg")
    message = str(caught.value)
    for part in (
        VGG,
        "v0.1/vgg.pth",
        str(bare),
        str(bare.parent / "hub" / "checkpoints"),
        "the package lpips (not installed)",
        "pip install --no-deps lpips",
        f"torch.hub.load_state_dict_from_url('https://download.pytorch.org/models/{VGG}'",
        f"or put https://download.pytorch.org/models/{VGG} into one of these folders",
    ):
        assert part in message


def test_missing_message_leaves_out_what_is_there(bare: Path) -> None:
    save_heads(bare, "alex")
    with pytest.raises(ShadeFastError) as caught:
        load_perceptual("alex")
    assert ALEX in str(caught.value) and "v0.1/alex.pth" not in str(caught.value)


def test_missing_shift_tolerant_file_names_its_package(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHADE_FAST_WEIGHTS")
    with pytest.raises(ShadeFastError) as caught:
        load_perceptual("st-alex")
    message = str(caught.value)
    assert "vST0.0/alex_shift_tolerant.pth" in message and "pip install stlpips-pytorch" in message
    assert "$SHADE_FAST_WEIGHTS names (not set)" in message


def test_auto_with_nothing_there_says_how_to_get_something(bare: Path) -> None:
    assert [row.found for row in available()] == [False] * 5
    with pytest.raises(ShadeFastError, match="st-vgg is the easiest to get") as caught:
        load_perceptual()
    assert "pip install stlpips-pytorch" in str(caught.value) and VGG in str(caught.value)


def test_available_lists_the_strongest_first_with_paths_and_gaps(bare: Path) -> None:
    touch(bare, VGG, "vST0.0/alex_shift_tolerant.pth")
    rows = available()
    assert [row.name for row in rows] == ["vgg", "st-vgg", "alex", "st-alex", "squeeze"]
    assert rows[0] == ("vgg", False, "missing v0.1/vgg.pth")
    assert rows[3] == ("st-alex", True, str(bare / "vST0.0/alex_shift_tolerant.pth"))


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        ([SQUEEZE, "v0.1/squeeze.pth"], "squeeze"),
        ([SQUEEZE, "v0.1/squeeze.pth", "vST0.0/alex_shift_tolerant.pth"], "st-alex"),
        (["vST0.0/alex_shift_tolerant.pth", ALEX, "v0.1/alex.pth"], "alex"),
        ([ALEX, "v0.1/alex.pth", "vST0.0/vgg_shift_tolerant.pth", VGG], "st-vgg"),
        (["vST0.0/vgg_shift_tolerant.pth", VGG, "v0.1/vgg.pth"], "vgg"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_auto_takes_the_strongest_and_never_passes_over_a_damaged_file(
    files: list[str], chosen: str, bare: Path
) -> None:
    touch(bare, *files)
    trunk = next(row.detail for row in available() if row.name == chosen)
    with pytest.raises(ShadeFastError, match="not a readable file") as caught:
        load_perceptual("auto")
    assert trunk in str(caught.value)


def test_auto_loads_what_is_there(bare: Path, hub_folder: Path) -> None:
    put_squeeze(bare, hub_folder)
    perceptual = load_perceptual("auto")
    assert perceptual.name == "squeeze" and perceptual.source == bare / SQUEEZE
    assert not any(parameter.requires_grad for parameter in perceptual.parameters())


def test_trunk_is_found_in_the_hub_checkpoints_and_the_named_folder_goes_first(bare: Path, hub_folder: Path) -> None:
    checkpoints = bare.parent / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    shutil.copy(hub_folder / SQUEEZE, checkpoints)
    save_heads(bare, "squeeze")
    assert load_perceptual("squeeze").source == checkpoints / SQUEEZE
    shutil.copy(hub_folder / SQUEEZE, bare)
    assert load_perceptual("squeeze").source == bare / SQUEEZE


@pytest.mark.parametrize(
    ("name", "nearest"), [("vgg16", "vgg"), ("alexnet", "alex"), ("ST_VGG", "st-vgg"), ("squeezenet", "squeeze")]
)
def test_unknown_name_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ShadeFastError, match=f"unknown perceptual network '{name}': did you mean '{nearest}'"):
        load_perceptual(name)


def test_damaged_files_are_named(bare: Path, hub_folder: Path) -> None:
    state = put_squeeze(bare, hub_folder)
    path = bare / SQUEEZE
    whole = path.read_bytes()
    legacy = bare / "legacy.pth"
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    for content in (b"", b"this is a web page", whole[: len(whole) // 2], legacy.read_bytes()[:100_000]):
        path.write_bytes(content)
        with pytest.raises(ShadeFastError, match="not a readable file of PyTorch tensors") as caught:
            load_perceptual("squeeze")
        assert str(path) in str(caught.value)


def test_files_with_other_weights_are_named_with_the_tensor(bare: Path, hub_folder: Path) -> None:
    state = put_squeeze(bare, hub_folder)
    key = "features.3.squeeze.weight"
    unfit: list[tuple[object, str]] = [
        ({**state, key: torch.zeros(1)}, rf"{key} is of shape \(1,\), not of shape \(16, 64, 1, 1\)"),
        ({name: value for name, value in state.items() if name != key}, f"{key} is missing"),
        ({**state, key: state[key] * float("nan")}, f"damaged: {key} holds values that are not finite"),
        ([1, 2], "holds a list, not named tensors"),
    ]
    for content, message in unfit:
        torch.save(content, bare / SQUEEZE)
        with pytest.raises(ShadeFastError, match=message) as caught:
            load_perceptual("squeeze")
        assert str(bare / SQUEEZE) in str(caught.value)


class _RunsWhenLoaded:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("ran",))


def test_pickles_are_not_run(bare: Path, hub_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    state = put_squeeze(bare, hub_folder)
    torch.save({**state, "more": _RunsWhenLoaded()}, bare / SQUEEZE)
    with pytest.raises(ShadeFastError, match="not a readable file"):
        load_perceptual("squeeze")
    assert not (tmp_path / "ran").exists()


def test_digest_is_of_the_weights_in_use(bare: Path, hub_folder: Path) -> None:
    state = put_squeeze(bare, hub_folder)
    first = load_perceptual("squeeze")
    assert first.sha256 is not None and len(first.sha256) == 64
    torch.save({**state, "classifier.1.weight": torch.ones(2)}, bare / SQUEEZE, _use_new_zipfile_serialization=False)
    assert load_perceptual("squeeze").sha256 == first.sha256
    torch.save({**state, "features.0.bias": state["features.0.bias"] + 1e-3}, bare / SQUEEZE)
    assert load_perceptual("squeeze").sha256 != first.sha256


def test_loading_draws_no_random_numbers(bare: Path, hub_folder: Path) -> None:
    put_squeeze(bare, hub_folder)
    before = torch.random.get_rng_state()
    load_perceptual("squeeze")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_no_package_is_imported_to_read_its_weights(hub_folder: Path) -> None:
    program = (
        "import sys\n"
        "from shade_fast.perceptual import available, load_perceptual\n"
        "for row in available():\n"
        "    if row.found: load_perceptual(row.name)\n"
        "bad = {'lpips', 'stlpips_pytorch'} & sys.modules.keys()\n"
        "sys.exit(f'imported {bad}' if bad else 0)\n"
    )
    environment = os.environ | {"SHADE_FAST_WEIGHTS": str(hub_folder)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(load._package_weights("stlpips_pytorch") == [], reason="stlpips-pytorch is not installed")
@pytest.mark.parametrize("name", ["st-vgg", "st-alex"])
def test_shift_tolerant_weights_come_with_their_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHADE_FAST_WEIGHTS", raising=False)
    perceptual = load_perceptual(name)
    assert perceptual.name == name and perceptual.source is not None and perceptual.source.is_file()
