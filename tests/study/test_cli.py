"""The study's commands from the shell: each leaves what it says, and resumes from what another left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shade_fast.cli import main
from shade_fast.study import Checkpoint, read_selected


def test_select_sparsity_compose_and_archive_follow_on_each_other(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen, poison = str(tmp_path / "chosen.csv"), tmp_path / "set"
    assert main(["study", "select", str(pool), "--concept", "lake", "--out", chosen, "--count", "3", "--top", "9"]) == 0
    assert len(read_selected(Path(chosen))) == 3
    assert main(["study", "sparsity", str(pool), "--concept", "lake", "--concept", "castle"]) == 0
    assert "33.333%" in capsys.readouterr().out
    pair = ["--pair", "lake=cherry:optimised:3", "--chosen", chosen]
    assert main(["study", "compose", str(pool), "--out", str(poison), "--anchors", "2", *pair]) == 0
    assert "lake: 3 optimised" in capsys.readouterr().out
    networks = ["--perceptual", "none", "--lpips", "none", "--view", "none", "--steps", "2", "--target-ratio", "1"]
    out = ["--out", str(tmp_path / "protected"), "--anchors", str(poison / "anchors"), "--quiet", "--json"]
    assert main(["archive", str(poison / "recipe.parquet"), *out, *networks]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] == 3


def test_train_sample_and_judge_follow_on_each_other(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, judge, drawn = (str(tmp_path / name) for name in ("model.safetensors", "judge.safetensors", "drawn"))
    train = ["study", "train", str(pool), "--out", model, "--size", "32", "--batch", "8", "--width", "32"]
    assert main([*train, "--steps", "3", "--depth", "1"]) == 0
    assert main([*train, "--steps", "5", "--depth", "1"]) == 0
    assert Checkpoint.load(Path(model)).step == 5
    assert main(["study", "sample", model, "--prompt", "a lake", "--count", "2", "--steps", "2", "--out", drawn]) == 0
    assert sorted(path.name for path in Path(drawn).rglob("*.png")) == ["0000.png", "0001.png", "sheet.png"]
    assert main(["study", "judge", str(pool), "--train", judge, "--size", "32", "--epochs", "1"]) == 0
    capsys.readouterr()
    assert main(["study", "judge", drawn, "--classifier", judge, "--json"]) == 0
    assert sum(json.loads(capsys.readouterr().out)["a-lake"].values()) == 2
    assert main(["study", "judge", drawn, "--classifier", judge]) == 0
    assert "judge's own accuracy: photographs " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["judge", "POOL"], "give --classifier FILE, or --clip ID"),
        (["judge", "POOL", "--clip", "nothing"], "--clip needs the words"),
        (["train", "POOL", "--out", "OUT", "--size", "40"], "size=40: give a multiple of 16"),
        (["train", "POOL", "--out", "OUT", "--size", "32", "--width", "100"], "width=100, depth=6, heads=3: give"),
        (["judge", "POOL", "--train", "OUT", "--size", "32", "--epochs", "0"], "epochs=0: give a whole number"),
        (["select", "nowhere", "--concept", "dog", "--out", "OUT"], "nowhere: no such file"),
    ],
)
def test_what_cannot_be_done_says_so(
    arguments: list[str], message: str, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"POOL": str(pool), "OUT": str(tmp_path / "out")}
    assert main(["study", *(named.get(argument, argument) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_a_selection_is_for_one_source(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = ["--pair", "lake=cherry", "--pair", "meadow=cherry", "--chosen", "chosen.csv"]
    assert main(["study", "compose", str(pool), "--out", str(tmp_path / "set"), *pairs]) == 2
    assert "chosen.csv: was selected for one concept, and the pairs have lake, meadow" in capsys.readouterr().err


def test_a_pair_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["study", "compose", "pool", "--out", "set", "--pair", "dog:truck"])
    assert "give SOURCE=TARGET" in capsys.readouterr().err
