"""How large the experiments are made: `full` for figures, `smoke` to see that everything runs."""

from __future__ import annotations

from dataclasses import dataclass

from shade_fast.study.generator import GeneratorShape

SHAPE = GeneratorShape(width=128, depth=6, heads=4)


@dataclass(frozen=True)
class Scale:
    """The sizes of a study; all of it follows from these and the seeds.

    concepts: of the world; `source` is poisoned to be drawn as `target`. size: pixels of the square photographs.
    counts: photographs of a concept for training, fresh ones, and held out. shape: of the generator; its channels, side
    and patch follow from the encoder. training_steps, training_batch: before any attack. tuning_steps, tuning_batch,
    tuning_rate: further training on fresh images, poisoned or not. pool: fresh images of a concept for it.
    anchor_draws: images that are drawn of a concept before any attack, of which `anchors` are what others are moved to.
    judge_epochs: of the judge. draws: images drawn of a poisoned concept; of another, a third as many. poison_steps:
    of the optimiser, for each image. seeds: arms are repeated with each. shares: of the source's images that are
    replaced.
    """

    name: str
    concepts: tuple[str, ...] = ("dog", "truck", "airplane", "frog", "horse", "ship")
    source: str = "dog"
    target: str = "truck"
    size: int = 64
    counts: tuple[int, int, int] = (2000, 1000, 500)
    shape: GeneratorShape = SHAPE
    training_steps: int = 2000
    training_batch: int = 96
    tuning_steps: int = 200
    tuning_batch: int = 48
    tuning_rate: float = 5e-4
    pool: int = 300
    anchor_draws: int = 200
    anchors: int = 5
    judge_epochs: int = 8
    draws: int = 100
    poison_steps: int = 60
    seeds: tuple[int, ...] = (0, 1, 2)
    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)


FULL = Scale("full")
SMOKE = Scale(
    "smoke",
    counts=(200, 100, 50),
    shape=GeneratorShape(width=64, depth=3, heads=4),
    training_steps=200,
    training_batch=48,
    tuning_steps=20,
    pool=30,
    anchor_draws=20,
    anchors=2,
    judge_epochs=2,
    draws=12,
    poison_steps=20,
    seeds=(0,),
    shares=(0.5, 1.0),
)
