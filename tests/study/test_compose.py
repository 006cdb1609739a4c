"""Poison sets: what is in a recipe, and that an archive takes it."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shade_fast import AnchorLibrary, Budget, View, poison_archive
from shade_fast.study import Ingredient, SentenceEncoder, compose, read_pool, select
from shade_fast.terms.errors import ShadeFastError


def test_no_image_is_used_twice(pool: Path, tmp_path: Path) -> None:
    written = compose(
        pool,
        [
            Ingredient("cherry", "lake", "optimised", 10),
            Ingredient("meadow", "cherry", "placebo", 8),
            Ingredient("cherry", "lake", "dirty-label", 6),
        ],
        tmp_path,
        anchors=5,
    )
    recipe, dirty = pq.read_table(written.recipe).to_pylist(), pq.read_table(written.dirty_label).to_pylist()
    pool_images = {pair.read(): pair for pair in read_pool(pool)}
    anchors = {name: [path.read_bytes() for path in (written.anchors / name).iterdir()] for name in ("lake", "meadow")}
    used = [row["image"] for row in recipe + dirty] + anchors["lake"] + anchors["meadow"]
    assert len(used) == len(set(used)) == 10 + 8 + 6 + 2 * 5
    assert {(row["concept"], row["target"], row["kind"]) for row in recipe} == {
        ("cherry", "lake", "optimised"),
        ("meadow", "meadow", "placebo"),
    }
    assert all(pool_images[row["image"]].concept == row["concept"] for row in recipe)
    # A dirty label is an image of the target that is spoken of as the source.
    assert all(pool_images[row["image"]].concept == "lake" and "cherry" in row["caption"] for row in dirty)
    assert all(pool_images[image].concept == name for name, images in anchors.items() for image in images)
    assert written.counts == {("cherry", "optimised"): 10, ("meadow", "placebo"): 8, ("cherry", "dirty-label"): 6}


def test_an_archive_takes_a_recipe_with_its_targets(pool: Path, tmp_path: Path) -> None:
    pairs = [Ingredient("cherry", "lake", count=2), Ingredient("meadow", "cherry", count=2)]
    written = compose(pool, pairs, tmp_path / "set", anchors=2)
    report = poison_archive(
        str(written.recipe),
        tmp_path / "protected",
        anchors=AnchorLibrary.from_folder(written.anchors),
        budget=Budget(linf=16 / 255, lpips=None),
        perceptual=None,
        view=View(None),
        steps=3,
    )
    assert report.failed == 0
    assert [row.target for row in report.rows()] == ["lake", "lake", "cherry", "cherry"]
    protected = list(read_pool(tmp_path / "protected/recipe.parquet"))
    clean = list(read_pool(written.recipe or ""))
    assert [pair.caption for pair in protected] == [pair.caption for pair in clean]
    assert all(image.read() != other.read() for image, other in zip(protected, clean, strict=True))


def test_a_selection_says_which(pool: Path, sentences: SentenceEncoder, tmp_path: Path) -> None:
    chosen = select(read_pool(pool), "lake", count=5, top=20, sentences=sentences)
    written = compose(pool, [Ingredient("lake", "cherry", count=5, chosen=chosen)], tmp_path, anchors=2)
    assert {row["key"] for row in pq.read_table(written.recipe).to_pylist()} == {selected.key for selected in chosen}


def test_of_a_selection_images_are_drawn_from_the_seed(pool: Path, sentences: SentenceEncoder, tmp_path: Path) -> None:
    chosen = select(read_pool(pool), "lake", count=20, top=40, sentences=sentences)

    def keys(seed: int) -> list[str]:
        ingredients = [Ingredient("lake", "cherry", count=5, chosen=chosen)]
        written = compose(pool, ingredients, tmp_path / f"{seed}-{len(list(tmp_path.iterdir()))}", anchors=2, seed=seed)
        return [row["key"] for row in pq.read_table(written.recipe).to_pylist()]

    assert keys(1) == keys(1)
    assert set(keys(1)) != set(keys(2))
    assert set(keys(1)) <= {selected.key for selected in chosen}


def test_a_folder_with_files_is_refused_and_left(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "anchors").mkdir()
    with pytest.raises(ShadeFastError, match="is no empty folder; give another"):
        compose(pool, [Ingredient("cherry", "lake", count=1)], tmp_path, anchors=2)
    assert [path.name for path in tmp_path.iterdir()] == ["anchors"]


def test_a_dirty_label_that_the_pool_has_no_caption_for_is_spoken_of_properly(pool: Path, tmp_path: Path) -> None:
    written = compose(pool, [Ingredient("island", "lake", "dirty-label", 1)], tmp_path)
    assert [row["caption"] for row in pq.read_table(written.dirty_label).to_pylist()] == ["a photo of an island"]


def test_images_that_are_files_stay_files(tmp_path: Path, pool: Path) -> None:
    for pair in read_pool(pool):
        path = tmp_path / "pool" / (pair.concept or "") / f"{pair.key}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pair.read())
    written = compose(tmp_path / "pool", [Ingredient("lake", "cherry", count=3)], tmp_path / "set", anchors=1)
    assert all(pair.path is not None and pair.read() for pair in read_pool(written.recipe or ""))


@pytest.mark.parametrize(
    ("ingredient", "message"),
    [
        (Ingredient("cherry", "lake", "other"), "kind 'other': give one of"),
        (Ingredient("cherry", "lake", count=41), "40 images are left for 'cherry'"),
        (Ingredient("cherry", "castle", count=1), "0 images are left for 'castle' \\(anchors\\).*--anchors 0"),
        (Ingredient("cherry", "a/b", count=1), "without slashes"),
    ],
)
def test_what_a_pool_cannot_give_is_named(ingredient: Ingredient, message: str, pool: Path, tmp_path: Path) -> None:
    with pytest.raises(ShadeFastError, match=message):
        compose(pool, [ingredient], tmp_path, anchors=2)
