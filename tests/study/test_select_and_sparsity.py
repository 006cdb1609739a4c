"""Choosing what to protect, by captions and by CLIP; and how rare a concept is in a corpus."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from shade_fast.study import (
    Clip,
    ClipJudge,
    Pair,
    SentenceEncoder,
    judge_pool,
    read_pool,
    read_selected,
    select,
    sparsity,
    write_selected,
    write_sparsity,
)
from shade_fast.terms.errors import ShadeFastError
from tests.study.conftest import picture, png

CORPUS = [
    "a dog asleep on a sofa",
    "two dogs in the snow",
    "a puppy with a ball",
    "a hot dog with mustard",
    "a truck on the motorway",
    "dogma and doubt",
    "a bowl of soup",
]


def pairs(captions: list[str]) -> list[Pair]:
    return [Pair(str(number), caption, bytes) for number, caption in enumerate(captions)]


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Clip:
    """A CLIP of random weights: its figures mean nothing, but they are the same every time."""
    return Clip(str(clip_folder))


def test_embeddings_are_of_length_1_and_know_what_is_alike(sentences: SentenceEncoder) -> None:
    dog, puppy, truck = sentences.embed(["a photo of a dog", "a photo of a puppy", "a photo of a truck"])
    assert torch.allclose(dog.norm(), torch.tensor(1.0), atol=1e-5)
    assert dog @ puppy > 0.6 > dog @ truck


def test_an_embedding_does_not_depend_on_its_batch(sentences: SentenceEncoder) -> None:
    alone = SentenceEncoder(batch_size=1).embed(CORPUS)
    assert (alone * sentences.embed(CORPUS)).sum(1).min() > 0.9999


def test_captions_alone_choose_those_that_speak_of_the_concept(sentences: SentenceEncoder) -> None:
    chosen = select(pairs(CORPUS), "dog", count=4, top=4, sentences=sentences)
    assert [selected.place for selected in chosen] == [0, 1, 2, 3]
    assert all(selected.image_similarity is None for selected in chosen)


def test_the_sample_follows_from_the_seed(sentences: SentenceEncoder, pool: Path) -> None:
    def places(seed: int) -> list[int]:
        chosen = select(read_pool(pool), "lake", count=10, top=30, seed=seed, sentences=sentences)
        return [selected.place for selected in chosen]

    assert places(1) == places(1) == sorted(places(1))
    assert places(1) != places(2)
    assert all(place % 3 == 1 for place in places(1))


def test_a_choice_is_read_as_it_was_written(sentences: SentenceEncoder, tmp_path: Path) -> None:
    chosen = select(pairs(CORPUS), "dog", count=2, top=4, sentences=sentences)
    write_selected(chosen, tmp_path / "chosen.csv")
    assert read_selected(tmp_path / "chosen.csv") == chosen
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ShadeFastError, match=r"other\.csv: no selection"):
        read_selected(tmp_path / "other.csv")


def test_clip_holds_images_against_the_threshold(clip: Clip, pool: Path) -> None:
    everything = select(read_pool(pool), "lake", count=120, top=120, clip=clip, image_threshold=-1.0)
    similarities = sorted(selected.image_similarity or 0.0 for selected in everything)
    middle = similarities[60]
    some = select(read_pool(pool), "lake", count=120, top=120, clip=clip, image_threshold=middle)
    assert len(everything) == 120
    assert {selected.place for selected in some} == {
        selected.place for selected in everything if (selected.image_similarity or 0) >= middle
    }
    with pytest.raises(ShadeFastError, match="none of 120 images is as near"):
        select(read_pool(pool), "lake", clip=clip, image_threshold=1.0)


def test_clip_judges_among_the_words_it_is_given(clip: Clip) -> None:
    judge = ClipJudge(clip, ["cherry", "lake"])
    probabilities = judge.probabilities(np.stack([picture("cherry", 0), picture("lake", 0)]))
    assert probabilities.shape == (2, 2)
    assert torch.allclose(probabilities.sum(1), torch.ones(2), atol=1e-5)


def test_an_image_that_clip_cannot_be_shown_is_left_out(clip: Clip, caplog: pytest.LogCaptureFixture) -> None:
    images = [png(picture("lake", 0)), b"no image", png(picture("lake", 1))]
    some = [Pair(str(number), "a lake", lambda data=data: data) for number, data in enumerate(images)]
    chosen = select(some, "lake", count=3, top=3, clip=clip, image_threshold=-1.0)
    assert [(selected.place, selected.key) for selected in chosen] == [(0, "0"), (2, "2")]
    assert "1 of 3 images cannot be read" in caplog.text


def test_clip_judges_images_as_large_as_they_are(clip: Clip, tmp_path: Path) -> None:
    pixels = [np.tile(picture("cherry", 0), (8, 8, 1)), picture("cherry", 1)]
    seen: list[tuple[int, ...]] = []

    class Watching(ClipJudge):
        def probabilities(self, images: Sequence[np.ndarray]) -> torch.Tensor:
            seen.extend(image.shape for image in images)
            return super().probabilities(images)

    (tmp_path / "cherry").mkdir()
    for number, image in enumerate(pixels):
        (tmp_path / f"cherry/{number}.png").write_bytes(png(image))
    table = judge_pool(tmp_path, Watching(clip, ["cherry", "lake"]))
    assert seen == [(256, 256, 3), (32, 32, 3)]
    assert sum(table["cherry"].values()) == 2


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShadeFastError, match=r"nothing.*cannot be loaded"):
        Clip(str(tmp_path / "nothing"))
    with pytest.raises(ShadeFastError, match=r"nothing.*cannot be loaded"):
        SentenceEncoder(str(tmp_path / "nothing"))


def test_words_and_meanings_are_counted(sentences: SentenceEncoder, tmp_path: Path) -> None:
    rows = sparsity(iter(CORPUS), ["dog", "soup", "castle"], sentences=sentences, threshold=0.35)
    by_name = {row.concept: row for row in rows}
    assert [row.concept for row in rows] == ["castle", "soup", "dog"]
    # `two dogs` and `a hot dog` have the word, `dogma` has not; the puppy is one by meaning alone.
    assert (by_name["dog"].words, by_name["castle"].words) == (3, 0)
    assert by_name["castle"].meanings == 0
    assert by_name["dog"].meanings == 4
    assert by_name["soup"].word_frequency == pytest.approx(1 / 7)
    table, plot = write_sparsity(rows, tmp_path)
    with table.open() as file:
        assert [row["concept"] for row in csv.DictReader(file)] == ["castle", "soup", "dog"]
    assert plot.stat().st_size > 1000


@pytest.mark.parametrize(("concepts", "corpus"), [([], CORPUS), (["dog"], [])])
def test_nothing_to_count_is_an_error(concepts: list[str], corpus: list[str], sentences: SentenceEncoder) -> None:
    with pytest.raises(ShadeFastError):
        sparsity(corpus, concepts, sentences=sentences)


def test_an_image_is_only_read_where_clip_looks(sentences: SentenceEncoder) -> None:
    def refuse() -> bytes:
        raise AssertionError("read")

    unread = [Pair("0", "a photo of a lake", refuse)]
    assert select(unread, "lake", count=1, sentences=sentences)[0].key == "0"
