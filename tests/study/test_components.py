"""Latents in their principal components: all of them are the latents, fewer are the nearest that have no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from shade_fast import load_encoder
from shade_fast.study.components import with_components
from shade_fast.study.examples import encode
from shade_fast.study.experiments.arms import Arm, run_arm
from shade_fast.study.experiments.prepare import prepare
from shade_fast.terms.errors import ShadeFastError
from tests.study.test_experiments import SCALE


def test_all_components_keep_distances_and_pictures(images: np.ndarray, tmp_path: Path) -> None:
    plain = load_encoder("embedded")
    whole = with_components(plain, 16, images, tmp_path / "components.safetensors")
    assert (whole.channels, whole.factor) == (16, 16)
    before, after = encode(plain, images), encode(whole, images)
    torch.testing.assert_close(torch.pdist(after.flatten(1)), torch.pdist(before.flatten(1)), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(whole.decode(after), plain.decode(before), rtol=0, atol=1e-3)


def test_fewer_are_the_latents_nearest_to_all_of_them(images: np.ndarray, tmp_path: Path) -> None:
    plain = load_encoder("embedded")
    few = with_components(plain, 3, images, tmp_path / "components.safetensors")
    patches = functional.pixel_unshuffle(encode(plain, images), 2).transpose(0, 1).flatten(1)
    patches = patches - patches.mean(1, keepdim=True)
    strengths = torch.linalg.svdvals(patches).square()
    kept = encode(few, images)
    kept = (kept - kept.mean((0, 2, 3), keepdim=True)).square()
    torch.testing.assert_close(kept.sum(), strengths[:3].sum(), rtol=1e-4, atol=0)


def test_they_are_kept_in_the_file(images: np.ndarray, tmp_path: Path) -> None:
    plain, path = load_encoder("embedded"), tmp_path / "components.safetensors"
    first = with_components(plain, 3, images, path)
    assert with_components(plain, 3, images[:2], path).sha256 == first.sha256
    with pytest.raises(ShadeFastError, match="does not hold 4 components of 16 numbers"):
        with_components(plain, 4, images, path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ShadeFastError, match=r"components\.safetensors: cannot be read"):
        with_components(plain, 3, images, path)
    with pytest.raises(ShadeFastError, match="components=17: encoder 'embedded' has 1 to 16"):
        with_components(plain, 17, images, path)


def test_an_arm_in_them(pool: Path, tmp_path: Path) -> None:
    bench = prepare(SCALE, pool, tmp_path, components=3, say=lambda _: None)
    assert bench.generator.generator.shape.channels == 3
    result = run_arm(bench, Arm("optimised", (("cherry", "lake"),)), 0)
    assert sum(result.draws["cherry"].values()) == SCALE.draws
    with pytest.raises(ShadeFastError, match="begun with another components"):
        prepare(SCALE, pool, tmp_path, components=4, say=lambda _: None)


def test_settings_that_are_refused_leave_the_folder_to_better_ones(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(ShadeFastError, match="components=17"):
        prepare(SCALE, pool, tmp_path, components=17, say=lambda _: None)
    odd = replace(SCALE, size=24)
    with pytest.raises(ShadeFastError, match="takes multiples of 16 pixels here, not 24"):
        prepare(odd, pool, tmp_path, components=3, say=lambda _: None)
    with pytest.raises(ShadeFastError, match="no such file or folder"):
        prepare(odd, tmp_path / "nowhere.parquet", tmp_path, say=lambda _: None)
    assert prepare(SCALE, pool, tmp_path, components=3, say=lambda _: None)
