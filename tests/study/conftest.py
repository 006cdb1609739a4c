"""A tiny world for the study: squares of three colours, each with a little noise, as a pool in a parquet file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shade_fast.study import SentenceEncoder

COLOURS = {"cherry": (200, 30, 40), "lake": (30, 60, 200), "meadow": (40, 170, 50)}
SIZE = 32


def picture(concept: str, number: int) -> np.ndarray:
    random = np.random.default_rng([list(COLOURS).index(concept), number])
    noise = random.normal(0, 12, (SIZE, SIZE, 3)) + random.normal(0, 15, (1, 1, 3))
    return np.clip(np.array(COLOURS[concept]) + noise, 0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """8 squares of each concept, uint8 [24, 32, 32, 3]."""
    return np.stack([picture(concept, number) for concept in COLOURS for number in range(8)])


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 images, 40 of each concept, by turns."""
    rows = [(concept, number) for number in range(40) for concept in COLOURS]
    path = tmp_path_factory.mktemp("pool") / "pool.parquet"
    table = {
        "name": [f"{concept}-{number}.png" for concept, number in rows],
        "concept": [concept for concept, _ in rows],
        "caption": [f"a photo of a {concept}, number {number}" for concept, number in rows],
        "image": [png(picture(concept, number)) for concept, number in rows],
    }
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture(scope="session")
def sentences() -> SentenceEncoder:
    return SentenceEncoder()
