"""The experiments: one command makes all, a second resumes where the first ended; their figures are what they say."""

from __future__ import annotations

import csv
import dataclasses
import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from shade_fast.study import GeneratorShape
from shade_fast.study.examples import encode
from shade_fast.study.experiments import SMOKE, Scale, run_experiments
from shade_fast.study.experiments.arms import RELATED, Arm, Mixture, Result, mix
from shade_fast.study.experiments.defences import DEFENCES, FILTERS, area_under_curve, defend
from shade_fast.study.experiments.figures import Figures, Summary, wilson
from shade_fast.study.experiments.prepare import ANCHORS, Bench, prepare
from shade_fast.study.experiments.registry import EXPERIMENTS, RARITIES, base, chain
from shade_fast.study.sampling import sample
from shade_fast.terms.errors import ShadeFastError

SCALE = Scale(
    "tiny",
    concepts=("cherry", "lake", "meadow"),
    source="cherry",
    target="lake",
    size=32,
    counts=(8, 12, 2),
    shape=GeneratorShape(side=4, width=32, depth=1, heads=2),
    training_steps=8,
    training_batch=8,
    tuning_steps=2,
    tuning_batch=8,
    pool=4,
    anchor_draws=4,
    anchors=2,
    judge_epochs=1,
    draws=2,
    poison_steps=2,
    seeds=(0, 1),
    shares=(1.0,),
)


@pytest.fixture(scope="module")
def folder(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    run_experiments(SCALE, pool, folder, transfer="embedded", say=lambda _: None)
    return folder


@pytest.fixture(scope="module")
def bench(folder: Path, pool: Path) -> Bench:
    return prepare(SCALE, pool, folder, say=lambda _: None)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_every_experiment_leaves_a_table_a_plot_a_sheet_and_a_reading(experiment, folder: Path) -> None:
    place = folder / experiment.name
    with (place / "figures.csv").open() as file:
        rows = list(csv.DictReader(file))
    arms, seeds = len(set(experiment.arms(SCALE))), 2 if experiment.every_seed else 1
    assert len(rows) == arms * seeds
    assert all(0 <= float(row["drawn_as_target"]) <= 1 for row in rows)
    assert (place / "plot.svg").stat().st_size > 1000
    assert (place / "sheet.png").stat().st_size > 1000
    assert "judge's own accuracy" in (place / "reading.md").read_text()


def test_a_second_run_takes_what_is_there_and_makes_what_is_not(folder: Path, pool: Path) -> None:
    arms = sorted((folder / "arms").glob("*.json"))
    lost = arms.pop()
    text = lost.read_text()
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in arms}
    said: list[str] = []
    run_experiments(SCALE, pool, folder, transfer="embedded", say=said.append)
    assert {path: path.stat().st_mtime_ns for path in arms} == before
    assert sum(lost.stem.rpartition("_")[0] in line for line in said) == 1
    again, first = json.loads(lost.read_text()), json.loads(text)
    assert again["quality"] == pytest.approx(first["quality"], rel=1e-4)
    differing = {"quality", "seconds"}
    assert {name: again[name] for name in again.keys() - differing} == {
        name: first[name] for name in first.keys() - differing
    }


@pytest.fixture
def again(folder: Path, tmp_path: Path) -> Path:
    """A folder that has what the arms of `folder` began with, and none of them."""
    begun = tmp_path / "again"
    begun.mkdir()
    for name in ("begun.json", "generator.safetensors", "judge.safetensors"):
        shutil.copy(folder / name, begun)
    return begun


def test_several_processes_make_what_one_makes(folder: Path, pool: Path, again: Path) -> None:
    said: list[str] = []
    run_experiments(SCALE, pool, again, only=["placebo", "dirty-label"], processes=2, say=said.append)
    arms = sorted(path.name for path in (again / "arms").glob("*.json"))
    assert len(arms) == len([line for line in said if ", seed " in line]) == 8
    assert len([line for line in said if "-by-own-" in line]) == 2
    for name in arms:
        arm, other = (json.loads((place / "arms" / name).read_text()) for place in (folder, again))
        assert other["quality"] == pytest.approx(arm["quality"], rel=1e-3)
        assert {name: other[name] for name in other.keys() - {"quality", "seconds"}} == {
            name: arm[name] for name in arm.keys() - {"quality", "seconds"}
        }
    assert (again / "placebo" / "reading.md").read_text() == (folder / "placebo" / "reading.md").read_text()


def test_a_process_that_is_killed_ends_the_run_and_loses_nothing(pool: Path, again: Path) -> None:
    def kill(line: str) -> None:
        if "-by-own-" in line:
            for child in multiprocessing.active_children():
                child.kill()

    with pytest.raises(ShadeFastError, match=r"its process ended \(killed by SIGKILL\); run again"):
        run_experiments(SCALE, pool, again, only=["placebo"], processes=2, say=kill)
    times = {path: path.stat().st_mtime_ns for path in (again / "perturbed").iterdir()}
    assert times
    run_experiments(SCALE, pool, again, only=["placebo"], say=lambda _: None)
    assert (again / "placebo" / "figures.csv").exists()
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_what_fails_in_a_process_is_named_at_once(pool: Path, again: Path) -> None:
    (again / "perturbed").write_text("in the way")
    with pytest.raises(ShadeFastError, match=r"cherry-to-(cherry|lake)-by-own-16: (?s:.*)perturbed"):
        run_experiments(SCALE, pool, again, only=["placebo"], processes=2, say=lambda _: None)
    assert not multiprocessing.active_children()
    with pytest.raises(ShadeFastError, match="processes=0: give a whole number"):
        run_experiments(SCALE, pool, again, processes=0, say=lambda _: None)


def test_a_folder_that_was_begun_with_something_else_is_refused(
    folder: Path, pool: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    rows = pq.read_table(pool)
    moved = tmp_path / "moved.parquet"
    pq.write_table(rows.take(list(reversed(range(len(rows))))), moved)
    quiet = {"only": ["success"], "say": lambda _: None}
    with pytest.raises(ShadeFastError, match="begun with another pool"):
        run_experiments(SCALE, moved, folder, **quiet)
    with pytest.raises(ShadeFastError, match="begun with another encoder"):
        run_experiments(SCALE, pool, folder, encoder=str(encoder_folder), **quiet)
    with pytest.raises(ShadeFastError, match="begun with another transfer"):
        run_experiments(SCALE, pool, folder, transfer=str(encoder_folder), **quiet)
    assert run_experiments(SCALE, pool, folder, **quiet)


def test_a_folder_of_another_scale_is_refused(folder: Path, pool: Path) -> None:
    with pytest.raises(ShadeFastError, match="begun with another scale"):
        run_experiments(SMOKE, pool, folder, say=lambda _: None)
    with pytest.raises(ShadeFastError, match="experiment 'magic': give one of success"):
        run_experiments(SCALE, pool, folder, only=["magic"], say=lambda _: None)


def test_transfer_is_left_out_and_said_so_without_another_encoder(folder: Path, pool: Path) -> None:
    said: list[str] = []
    assert run_experiments(SCALE, pool, folder, only=["transfer"], say=said.append) == []
    assert any(line.startswith("transfer: left out") for line in said)


def test_anchors_are_the_most_typical_of_what_is_drawn(bench: Bench) -> None:
    anchors = bench.anchors("lake")
    drawn = sample(
        bench.generator, "a photo of a lake", SCALE.anchor_draws, bench.encoder, bench.sentences, seed=ANCHORS
    )
    latents = encode(bench.encoder, drawn).flatten(1)
    far = (latents - latents.mean(0)).norm(dim=1)
    places = [next(place for place, image in enumerate(drawn) if np.array_equal(image, anchor)) for anchor in anchors]
    assert places == far.argsort()[: SCALE.anchors].tolist()
    assert np.array_equal(bench.anchors("lake"), anchors)


@pytest.mark.parametrize("kind", ["placebo", "optimised", "dirty-label"])
def test_a_mixture_replaces_the_share_that_is_asked_for(kind: str, bench: Bench) -> None:
    clean = mix(bench, Arm("clean", (("cherry", "lake"),)), 0)
    poisoned = mix(bench, Arm(kind, (("cherry", "lake"),), share=0.5), 0)
    changed = [not np.array_equal(*both) for both in zip(clean.images, poisoned.images, strict=True)]
    assert changed == poisoned.poisoned
    assert sum(changed) == 2
    assert {poisoned.concepts[place] for place, flag in enumerate(changed) if flag} == {"cherry"}
    assert poisoned.captions == clean.captions
    difference = np.abs(clean.images.astype(int) - poisoned.images).max()
    assert difference <= 16 if kind != "dirty-label" else difference > 16


def test_a_rare_concept_has_fewer_images(bench: Bench) -> None:
    rare = mix(bench, Arm("optimised", (("cherry", "lake"),), rarity=0.25), 0)
    assert {concept: rare.concepts.count(concept) for concept in SCALE.concepts} == {
        "cherry": 1, "lake": 4, "meadow": 4,
    }  # fmt: skip


@pytest.mark.parametrize("name", DEFENCES)
def test_a_defence_leaves_images_as_many_as_it_says(name: str, bench: Bench) -> None:
    mixture: Mixture = mix(bench, Arm("dirty-label", (("cherry", "lake"),), share=0.5), 0)
    defended = defend(name, bench, mixture.images, mixture.concepts, mixture.poisoned)
    count = len(mixture.images)
    assert len(defended.kept) == len(defended.images) == (count if name in ("none", "jpeg", "resize") else count - 2)
    assert (defended.auc is None) == (name in ("none", "jpeg", "resize"))
    assert (name == "none") == np.array_equal(defended.images, mixture.images)


def test_the_area_under_the_curve_is_the_probability() -> None:
    flags = torch.tensor([True, True, False, False])
    assert area_under_curve(torch.tensor([4.0, 3.0, 2.0, 1.0]), flags) == 1.0
    assert area_under_curve(torch.tensor([4.0, 1.0, 2.0, 1.0]), flags) == pytest.approx((2 + 0 + 0.5) / 4)
    assert area_under_curve(torch.tensor([1.0]), torch.tensor([True])) is None


def test_wilsons_interval_is_the_published_one() -> None:
    # 81 of 263, R. G. Newcombe, Statistics in Medicine 17 (1998), table I.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def summary(least: float, most: float, low: float, high: float) -> Summary:
    return Summary((least + most) / 2, least, most, low, high)


def test_above_asks_the_seeds_and_the_intervals() -> None:
    clean = summary(0.0, 0.02, 0.0, 0.03)
    assert summary(0.05, 0.4, 0.2, 0.3).above(clean)
    assert not summary(0.01, 0.4, 0.2, 0.3).above(clean)
    assert not summary(0.05, 0.06, 0.025, 0.1).above(clean)


def figures_of(shares: dict[Arm, tuple[float, ...]]) -> Figures:
    """Figures of arms that drew so much of the target in each seed, 100 draws each, and else the source."""
    words = (SCALE.source, *RELATED)

    def drawn(share: float) -> dict[str, dict[str, int]]:
        hits = round(100 * share)
        return {word: {SCALE.source: 100 - hits, SCALE.target: hits, "meadow": 0} for word in words}

    return Figures(SCALE.concepts, SCALE.source, SCALE.target, {
        arm: [
            Result(dataclasses.asdict(arm), seed, 4, drawn(share), drawn(share), 1.0, 0, 0, None, 1.0)
            for seed, share in enumerate(some)
        ]
        for arm, some in shares.items()
    })  # fmt: skip


def test_readings_say_what_the_figures_do() -> None:
    read = {experiment.name: experiment.read for experiment in EXPERIMENTS}
    clean, whole = base(SCALE, "clean"), base(SCALE, "optimised")
    strong, weak = {clean: (0.0, 0.01), whole: (0.7, 0.9)}, {clean: (0.0, 0.1), whole: (0.05, 0.5)}
    assert "the aim of 60% is reached" in read["success"](figures_of(strong), SCALE)
    assert "do not touch: 100%." in read["success"](figures_of(strong), SCALE)
    assert "the aim of 60% is missed" in read["success"](figures_of(weak), SCALE)
    assert "At no share is it above" in read["success"](figures_of(weak), SCALE)
    placebo = base(SCALE, "placebo")
    text = read["placebo"](figures_of({**strong, placebo: (0.0, 0.0)}), SCALE)
    assert "above it in every seed, and these do not touch" in text
    assert "not clearly above it" in read["placebo"](figures_of({**weak, placebo: (0.0, 0.2)}), SCALE)
    dirty = base(SCALE, "dirty-label")
    assert "ahead of the dirty labels at 100%" in read["dirty-label"](figures_of({**strong, dirty: (0.5, 0.5)}), SCALE)
    assert "ahead of the dirty labels at no share" in read["dirty-label"](
        figures_of({**weak, dirty: (0.5, 0.5)}), SCALE
    )
    rare = {
        replace(base(SCALE, kind, share), rarity=rarity): (rarity / 2 if kind == "optimised" else 0.0,)
        for rarity in RARITIES
        for kind, share in (("clean", 1.0), ("optimised", 1.0))
    }
    assert "moves by: optimised 100% -45%." in read["rarity"](figures_of(rare), SCALE)


def test_a_filter_drops_what_it_suspects_most(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture: Mixture = mix(bench, Arm("dirty-label", (("cherry", "lake"),), share=0.5), 0)
    scores = torch.tensor([1.0 if flag else 0.0 for flag in mixture.poisoned])
    monkeypatch.setitem(FILTERS, "alignment", lambda *_: scores)
    defended = defend("alignment", bench, mixture.images, mixture.concepts, mixture.poisoned)
    assert defended.auc == 1.0
    assert not any(mixture.poisoned[place] for place in defended.kept)


def test_poisoned_concepts_each_have_another_target() -> None:
    for count in (1, 3, 6):
        pairs = chain(SMOKE, count)
        assert len(dict(pairs)) == count
        assert all(source != target for source, target in pairs)
        assert pairs[0] == (SMOKE.source, SMOKE.target)
