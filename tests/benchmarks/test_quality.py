"""The rows of `benchmarks quality`: how runs are named, and the figures of their perturbations."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

from benchmarks.quality import Run, correlation, left_by_encoder
from shade_fast import PoisonedImage, PoisonResult


def result(images: list[np.ndarray], distances: tuple[tuple[float, float], ...] = ()) -> PoisonResult:
    outcomes = tuple(PoisonedImage(image, "ok", encoder_distances=distances) for image in images)
    return PoisonResult(outcomes, "native", "embedded", None, "cpu", 1.0)


def test_a_run_is_read_from_its_name() -> None:
    assert Run.read("momentum+start+robust:30") == Run("momentum", 30, start=True, robust=True)
    assert Run.read("release:500") == Run("release", 500, start=False, robust=False)
    for text in ("momentum", "momentum:many", "momentum+fast:3"):
        with pytest.raises(argparse.ArgumentTypeError, match="give OPTIMIZER"):
            Run.read(text)


def test_correlation_is_of_the_perturbations_and_not_of_the_images() -> None:
    random = np.random.default_rng(0)
    clean = [random.integers(20, 200, (16, 16, 3), dtype=np.uint8) for _ in range(3)]
    change = random.integers(0, 9, (16, 16, 3), dtype=np.uint8)
    assert correlation(clean, result([image + change for image in clean])) == pytest.approx(1)
    noise = [image + random.integers(0, 9, image.shape, dtype=np.uint8) for image in clean]
    assert abs(correlation(clean, result(noise))) < 0.1


def test_each_encoder_has_its_share() -> None:
    images = [np.zeros((4, 4, 3), np.uint8)] * 2
    assert left_by_encoder(result(images, ((10.0, 5.0), (2.0, 1.5)))) == pytest.approx([0.5, 0.75])
