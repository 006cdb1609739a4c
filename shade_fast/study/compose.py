"""Poison sets: which of a pool's images are given which target, as a recipe that `shade-fast archive` takes.

A recipe is a table with a `target` column, which the archive reads as it reads any: the images' paths or bytes, their
captions, and for each row the name of its anchors in a folder beside it. Of the three kinds, two are perturbed:

    optimised   an image of the source, moved to anchors of the target
    placebo     an image of the source, moved to other images of the source: the same perturbation, to no purpose
    dirty-label an image of the target, captioned as the source; nothing is perturbed, so a table of its own holds these
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shade_fast.images import decode
from shade_fast.study.pool import Pair, caption_of, read_pool, require_empty
from shade_fast.study.select import Selected
from shade_fast.terms.errors import ShadeFastError

KINDS = ("optimised", "placebo", "dirty-label")
ANCHORS = 50


@dataclass(frozen=True)
class Ingredient:
    """`count` images of `source` for `target`. kind: one of `KINDS`. chosen: a selection that they are drawn from
    instead of all the pool's images of the source."""

    source: str
    target: str
    kind: str = "optimised"
    count: int = 100
    chosen: Sequence[Selected] | None = None


#: The ingredient that an image is for, its caption, its place in the pool.
_Row = tuple[Ingredient, str, int]


@dataclass(frozen=True)
class Recipe:
    """What `compose` wrote. recipe: the table for `archive`; None where nothing is perturbed. anchors: the folder for
    its `--anchors`. dirty_label: the table of those that are not perturbed, if any. counts: rows by (source, kind).
    names_files: whether the recipe has paths of the pool's files, which the archive has to be allowed to read."""

    recipe: Path | None
    anchors: Path
    dirty_label: Path | None
    counts: dict[tuple[str, str], int]
    names_files: bool


def compose(
    pool: str | Path, ingredients: Sequence[Ingredient], out: Path, *, anchors: int = ANCHORS, seed: int = 0
) -> Recipe:
    """Compose a poison set of one concept or of many, each with its target, from a pool whose images have concepts.

    Images, anchors and dirty labels are drawn by the seed; no image is used twice.
    anchors: how many images of each target are written below out/anchors/TARGET; each protected image is then moved to
        the nearest. 0: none, the archive's `--anchors` is another library.
    Raises ShadeFastError for an unknown kind, where the pool has too few images of a concept, and for an `out` that is
    not empty.
    """
    require_empty(out)
    for ingredient in ingredients:
        if ingredient.kind not in KINDS:
            raise ShadeFastError(f"kind {ingredient.kind!r}: give one of {', '.join(KINDS)}")
        if ingredient.count < 1:
            raise ShadeFastError(f"count={ingredient.count} for {ingredient.source!r}: give at least 1")
        if Path(ingredient.target).name != ingredient.target:
            raise ShadeFastError(
                f"target {ingredient.target!r}: it names a folder of anchors; give a word without slashes"
            )
    index = [(pair.key, pair.caption, pair.concept) for pair in read_pool(pool)]
    places = _places([concept for _, _, concept in index], seed)
    free = set(range(len(index)))
    random = np.random.default_rng(seed)
    recipe: list[_Row] = []
    dirty: list[_Row] = []
    for ingredient in ingredients:
        captions = [caption for _, caption, concept in index if concept == ingredient.source]
        captions = captions or [caption_of(ingredient.source)]
        candidates = places.get(ingredient.target if ingredient.kind == "dirty-label" else ingredient.source, [])
        if ingredient.chosen is not None and ingredient.kind != "dirty-label":
            candidates = _chosen(ingredient.chosen, index, seed)
        for place in _take(candidates, free, ingredient.count, pool, ingredient.source, ingredient.kind):
            if ingredient.kind == "dirty-label":
                dirty.append((ingredient, captions[int(random.integers(len(captions)))], place))
            else:
                recipe.append((ingredient, index[place][1], place))
    pictures: dict[str, list[int]] = {}
    for target in sorted({_anchor(ingredient) for ingredient, _, _ in recipe}) if anchors else []:
        pictures[target] = _take(places.get(target, []), free, anchors, pool, target, "anchors")
    needed = {place for _, _, place in recipe + dirty} | {place for taken in pictures.values() for place in taken}
    pairs = {place: pair for place, pair in enumerate(read_pool(pool)) if place in needed}
    for target, taken in pictures.items():
        _write_anchors([pairs[place] for place in taken], out / "anchors" / target)
    return Recipe(
        recipe=_write(recipe, pairs, out / "recipe.parquet") if recipe else None,
        anchors=out / "anchors",
        dirty_label=_write(dirty, pairs, out / "dirty-label.parquet") if dirty else None,
        counts=dict(Counter((ingredient.source, ingredient.kind) for ingredient, _, _ in recipe + dirty)),
        names_files=bool(recipe) and all(pairs[place].path is not None for _, _, place in recipe),
    )


def _anchor(ingredient: Ingredient) -> str:
    return ingredient.source if ingredient.kind == "placebo" else ingredient.target


def _places(concepts: Sequence[str | None], seed: int) -> dict[str, list[int]]:
    """The pool's images of each concept, in an order drawn from the seed."""
    places: dict[str, list[int]] = defaultdict(list)
    for place in np.random.default_rng(seed).permutation(len(concepts)):
        concept = concepts[place]
        if concept is not None:
            places[concept].append(int(place))
    return places


def _chosen(chosen: Sequence[Selected], index: Sequence[tuple[str, str, str | None]], seed: int) -> list[int]:
    """The places of a selection, in an order drawn from the seed."""
    for selected in chosen:
        if not (selected.place < len(index) and index[selected.place][0] == selected.key):
            raise ShadeFastError(f"selection: row {selected.place} of the pool is not {selected.key!r}; select anew")
    return [chosen[number].place for number in np.random.default_rng(seed).permutation(len(chosen))]


def _take(candidates: Sequence[int], free: set[int], count: int, pool: str | Path, concept: str, use: str) -> list[int]:
    """The first `count` candidates that are still free."""
    left = [place for place in candidates if place in free]
    if len(left) < count:
        raise ShadeFastError(
            f"{pool}: {len(left)} images are left for {concept!r} ({use}), {count} are wanted; ask for fewer, or give "
            "a larger pool" + (", or none (--anchors 0) and the archive another library" if use == "anchors" else "")
        )
    free.difference_update(left[:count])
    return left[:count]


def _write_anchors(pairs: Sequence[Pair], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, pair in enumerate(pairs):
        data = pair.read()
        (folder / f"{number:04d}.{(decode(data, pair.key).format or 'png').lower()}").write_bytes(data)


def _write(rows: Sequence[_Row], pairs: Mapping[int, Pair], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    used = [pairs[place] for _, _, place in rows]
    columns: dict[str, list[Any]] = {
        "key": [pair.key for pair in used],
        "caption": [caption for _, caption, _ in rows],
        "concept": [ingredient.source for ingredient, _, _ in rows],
        "target": [_anchor(ingredient) for ingredient, _, _ in rows],
        "kind": [ingredient.kind for ingredient, _, _ in rows],
    }
    if all(pair.path is not None for pair in used):
        columns["path"] = [os.path.relpath(pair.path or "", path.parent) for pair in used]
    else:
        columns["image"] = [pair.read() for pair in used]
    pq.write_table(pa.table(columns), path)
    return path
