"""The scaling cases protect whole images, and find what depends on neighbours."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.cases import scaling
from benchmarks.registry import Case
from benchmarks.runner import measure
from shade_fast.api.poisoner import Poisoner
from shade_fast.images import UInt8Array
from shade_fast.ops import native
from shade_fast.protect.outcome import PoisonedImage

BACKENDS = ("reference", "native") if native.cpu_available() else ("reference",)


def case() -> Case:
    return Case("scaling.tiny", "", "", BACKENDS, lambda: scaling.prepare(3, 32), images=3)


def test_images_are_protected_as_they_are_alone() -> None:
    rows = measure(case(), repeats=1, warmup=0)
    assert [(row.backend, row.ran, row.status) for row in rows] == [(name, name, "ok") for name in BACKENDS]
    assert all(row.images_per_second for row in rows)


def test_an_image_that_depends_on_its_neighbours_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = scaling._protect

    def planted(poisoner: Poisoner, images: Sequence[UInt8Array]) -> list[PoisonedImage]:
        outcomes = honest(poisoner, images)
        if len(images) > 1:
            outcomes[2] = dataclasses.replace(outcomes[2], image=outcomes[2].image ^ np.uint8(1))
        return outcomes

    monkeypatch.setattr(scaling, "_protect", planted)
    (row,) = measure(case(), ["reference"], repeats=1, warmup=0)
    assert (row.status, row.p50_ms, row.detail) == ("wrong", None, "image 2 differs from what it is alone")
