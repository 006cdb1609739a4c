"""The small generator: it learns what captions mean, resumes exactly where it was cut off, and can be begun with."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from shade_fast import load_encoder
from shade_fast.study import (
    Checkpoint,
    Classifier,
    Examples,
    GeneratorShape,
    Schedule,
    SentenceEncoder,
    judge_pool,
    sample,
    sample_pipeline,
    train,
    train_judge_on_pool,
    train_on_pools,
    write_samples,
)
from shade_fast.study.generator import Generator, draw
from shade_fast.study.judge import frechet_distance, low_pass
from shade_fast.terms.errors import ShadeFastError

SHAPE = GeneratorShape(channels=2, side=4, text=8, width=32, depth=2, heads=2)


@pytest.fixture(scope="module")
def examples() -> Examples:
    random = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(40, 8, generator=random), dim=1)
    return Examples(torch.randn(40, 2, 4, 4, generator=random), texts, {"encoder": "none"})


def weights(checkpoint: Checkpoint) -> torch.Tensor:
    return torch.cat([value.flatten() for value in checkpoint.averaged.state_dict().values()])


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(examples: Examples, tmp_path: Path) -> None:
    schedule = Schedule(12, batch=8, warmup=2)
    whole = train(Checkpoint.fresh(SHAPE, examples, 0), examples, schedule)

    class CutOffError(Exception):
        pass

    def stop(step: int, _: float) -> None:
        if step == 7:
            raise CutOffError

    with pytest.raises(CutOffError):
        train(Checkpoint.fresh(SHAPE, examples, 0), examples, schedule, path=tmp_path / "g", every=5, progress=stop)
    left = Checkpoint.load(tmp_path / "g")
    assert left.step == 5
    assert torch.equal(weights(train(left, examples, schedule)), weights(whole))


def test_another_seed_gives_other_weights(examples: Examples) -> None:
    checkpoint, other = (
        train(Checkpoint.fresh(SHAPE, examples, 0), examples, Schedule(3, 8, seed=seed)) for seed in (0, 1)
    )
    assert not torch.equal(weights(checkpoint), weights(other))


def test_fine_tuning_begins_with_the_average_and_leaves_it(examples: Examples) -> None:
    first = train(Checkpoint.fresh(SHAPE, examples, 0), examples, Schedule(5, 8))
    before = weights(first).clone()
    branch = first.branch()
    assert (branch.step, branch.optimizer) == (0, {})
    assert torch.equal(torch.cat([value.flatten() for value in branch.generator.state_dict().values()]), before)
    train(branch, examples, Schedule(3, 8))
    assert torch.equal(weights(first), before)


def test_the_flow_of_one_image_leads_to_it() -> None:
    """With a velocity that is known, e - z for a single z, steps of any number end in z."""
    target = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(1))

    class Known(Generator):
        def forward(self, latents: torch.Tensor, times: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
            return (latents - target) / times[:, None, None, None]

    drawn = draw(Known(SHAPE), torch.zeros(3, 8), torch.randn(3, 2, 4, 4), steps=7)
    assert torch.allclose(drawn, target.expand_as(drawn), atol=1e-5)


def test_examples_of_another_shape_are_refused(examples: Examples, tmp_path: Path) -> None:
    checkpoint = Checkpoint.fresh(SHAPE, examples, 0)
    with pytest.raises(ShadeFastError, match=r"latents \[2, 2, 2\]"):
        train(checkpoint, Examples(torch.zeros(3, 2, 2, 2), torch.zeros(3, 8)), Schedule(1))
    (tmp_path / "no").write_bytes(b"nothing")
    with pytest.raises(ShadeFastError, match="no checkpoint of a generator"):
        Checkpoint.load(tmp_path / "no")


@pytest.fixture(scope="module")
def judge(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    train_judge_on_pool(pool, path, size=32, epochs=6)
    return Classifier.load(path)


def test_the_judge_distinguishes_the_concepts_and_says_how_well(judge: Classifier, pool: Path) -> None:
    assert judge.accuracies["photographs"] == 1.0
    table = judge_pool(pool, judge, size=32)
    assert all(counts[concept] >= 38 for concept, counts in table.items())


def test_what_is_drawn_is_what_was_asked_for(
    pool: Path, judge: Classifier, sentences: SentenceEncoder, tmp_path: Path
) -> None:
    encoder = load_encoder("embedded")
    trained = train_on_pools(
        [pool], tmp_path / "g.safetensors", encoder=encoder, sentences=sentences, size=32, steps=150, batch=32,
        learning_rate=3e-3, width=64, depth=2,
    )  # fmt: skip
    drawn = [(concept, sample(trained, f"a photo of a {concept}", 8, encoder, sentences)) for concept in judge.concepts]
    write_samples(drawn, tmp_path / "drawn")
    table = judge_pool(tmp_path / "drawn", judge, size=32)
    assert all(counts[concept] >= 7 for concept, counts in table.items()), table
    again = sample(Checkpoint.load(tmp_path / "g.safetensors"), "a photo of a lake", 8, encoder, sentences)
    assert np.array_equal(again, dict(drawn)["lake"])
    other = load_encoder(torch.nn.Conv2d(3, 4, 8, 8))
    with pytest.raises(ShadeFastError, match="of other weights"):
        sample(trained, "a lake", 1, other, sentences)


def test_training_goes_on_with_what_it_was_begun_with_alone(
    pool: Path, sentences: SentenceEncoder, tmp_path: Path
) -> None:
    rows = pq.read_table(pool)
    smaller = tmp_path / "smaller.parquet"
    pq.write_table(rows.slice(0, 30), smaller)
    said: list[str] = []
    out, other = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    begun = {"pools": [smaller], "size": 32, "steps": 2, "batch": 4, "width": 32, "depth": 1, "seed": 1, "start": None}

    def go(out: Path, **changed: Any) -> Checkpoint:
        options = {**begun, "encoder": load_encoder("embedded"), "sentences": sentences, **changed}
        return train_on_pools(options.pop("pools"), out, say=said.append, **options)

    go(out)
    kept = out.read_bytes()
    for name, value in {
        "pools": [smaller, smaller], "batch": 5, "learning_rate": 1e-4, "seed": 2, "width": 64, "depth": 2,
        "start": out,
    }.items():  # fmt: skip
        with pytest.raises(ShadeFastError, match=f"trained with another {name}"):
            go(out, steps=3, **{name: value})
    assert go(out).step == 2
    assert said[-1].startswith(f"{out}: already at step 2")
    assert out.read_bytes() == kept
    assert go(out, steps=3, width=None, depth=None).step == 3

    with pytest.raises(ShadeFastError, match=r"one\.safetensors: was trained with another width"):
        go(other, start=out, width=64)
    assert go(other, start=out, batch=5, width=None, depth=None).generator.shape.width == 32


def test_another_sentence_model_is_refused(pool: Path, sentences: SentenceEncoder, tmp_path: Path) -> None:
    encoder, out = load_encoder("embedded"), tmp_path / "g.safetensors"
    options: dict[str, Any] = {"encoder": encoder, "size": 32, "steps": 1, "batch": 4, "width": 32, "depth": 1}
    trained = train_on_pools([pool], out, sentences=sentences, **options)
    other = copy.copy(sentences)
    other.name = "another-model"
    with pytest.raises(ShadeFastError, match=f"trained with '{sentences.name}'"):
        sample(trained, "a lake", 1, encoder, other)
    with pytest.raises(ShadeFastError, match="trained with another sentences"):
        train_on_pools([pool], out, sentences=other, **{**options, "steps": 2})


def test_what_was_drawn_is_not_mixed_with_what_is_there(tmp_path: Path) -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    write_samples([("a dog!", images), ("a dog?", images[:1])], tmp_path / "drawn")
    drawn = sorted(path.relative_to(tmp_path / "drawn").as_posix() for path in tmp_path.rglob("0*.png"))
    assert drawn == ["a-dog-2/0000.png", "a-dog/0000.png", "a-dog/0001.png"]
    with pytest.raises(ShadeFastError, match="drawn: is no empty folder; give another"):
        write_samples([("a dog", images[:1])], tmp_path / "drawn")


def test_what_was_drawn_before_an_end_is_kept(tmp_path: Path) -> None:
    def drawn() -> Iterator[np.ndarray]:
        yield np.zeros((8, 8, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples([("一匹の犬と、" * 60, drawn())], tmp_path / "drawn")
    assert len(list((tmp_path / "drawn").rglob("0000.png"))) == 1


def test_a_judge_of_few_images_says_what_it_needs(pool: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.parquet"
    pq.write_table(pq.read_table(pool).slice(0, 8), few)
    with pytest.raises(ShadeFastError, match="8 images of 3 concepts; a judge needs at least ten images"):
        train_judge_on_pool(few, tmp_path / "judge.safetensors")


def test_low_pass_takes_texture_and_leaves_shapes() -> None:
    checker = np.indices((64, 64)).sum(0) % 2 * 100
    half = np.where(np.arange(64) < 32, 40, 140)[None, :, None]
    image = np.broadcast_to(checker[:, :, None] + half, (64, 64, 3)).astype(np.uint8)[None]
    smooth = low_pass(image).astype(float)
    assert smooth[0, :, 4:24].std() < 3
    assert smooth[0, :, 40:60].mean() - smooth[0, :, 4:24].mean() == pytest.approx(100, abs=3)


def test_the_frechet_distance_of_normal_features_is_the_formula() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(20_000, 3, generator=random)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    # |m1 - m2|^2 = 4 and (s1 - s2)^2 = 4 in each of three.
    assert frechet_distance(features, 3 * features + torch.tensor([2.0, 0, 0])) == pytest.approx(4 + 12, rel=0.03)


def test_a_diffusers_pipeline_draws_from_the_seed(pipeline_folder: Path, tmp_path: Path) -> None:
    both = {prompt: list(images) for prompt, images in sample_pipeline(pipeline_folder, ["a dog", "a cat"], 2, steps=1)}
    ((_, later),) = sample_pipeline(pipeline_folder, ["a cat"], 1, steps=1, seed=1)
    (image,) = later
    assert [image.shape for image in both["a dog"]] == [(64, 64, 3)] * 2
    assert np.array_equal(both["a cat"][1], image)
    assert not np.array_equal(both["a cat"][0], image)
    with pytest.raises(ShadeFastError, match="nowhere': no checkpoint of `study train`"):
        sample_pipeline(tmp_path / "nowhere", ["a dog"], 1)
    with pytest.raises(ShadeFastError, match="count=0, steps=1: give whole numbers"):
        sample_pipeline(pipeline_folder, ["a dog"], 0, steps=1)
