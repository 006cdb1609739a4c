"""How whole protections scale: with images, with their size, and with threads.

Each case protects images by a few steps of momentum with the embedded encoder, as `poison_batch` does it: everything
but decoding and encoding of files is in the time.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks import photographs
from benchmarks.registry import Case, Side, register
from shade_fast import Budget, View, runtime
from shade_fast.api.poisoner import Poisoner
from shade_fast.images import UInt8Array
from shade_fast.protect.outcome import PoisonedImage

IMAGES, SIZES = (1, 4, 16), (128, 256, 512, 1024)
#: Side of the images where their number, and where the threads grow.
SMALL, MIDDLE = 128, 512
STEPS = 2
#: Two backends sum in different orders, and signed steps enlarge that.
WORST_DISTANCE = 0.02


def threads() -> list[int]:
    """1, 2, 4 and so on, up to the machine's."""
    return [1 << power for power in range((os.cpu_count() or 1).bit_length())]


def prepare(count: int, size: int) -> Callable[[str], Side]:
    """Sides of the protection of `count` squares, mirrored photographs after the photographs."""
    images = squares(size, count)

    @functools.cache
    def right() -> list[float]:
        """Latent distances that the reference reaches."""
        return [outcome.distance_after or 0 for outcome in _protect(_poisoner("reference"), images)]

    def side(backend: str) -> Side:
        poisoner = _poisoner(backend)
        alone = [_protect(poisoner, [image])[0].image for image in images]

        def check(outcomes: list[PoisonedImage]) -> str | None:
            for index, (outcome, own, distance) in enumerate(zip(outcomes, alone, right(), strict=True)):
                if outcome.image is None or own is None or outcome.distance_after is None:
                    return f"image {index} failed: {outcome.error}"
                if not np.array_equal(outcome.image, own):
                    return f"image {index} differs from what it is alone"
                if abs(outcome.distance_after / distance - 1) > WORST_DISTANCE:
                    return f"image {index} has distance {outcome.distance_after:.4g}, the reference {distance:.4g}"
            return None

        return Side(poisoner.backend, lambda: _protect(poisoner, images), check, release=runtime.BLOCKS.release)

    return side


def squares(size: int, count: int) -> list[UInt8Array]:
    """Images [size, size, 3], no two alike up to twice the number of photographs."""
    images = photographs.squares([photographs.FOLDER], size)
    images += [np.ascontiguousarray(image[:, ::-1]) for image in images]
    return [images[index % len(images)] for index in range(count)]


def _poisoner(backend: str) -> Poisoner:
    return Poisoner(
        budget=Budget(linf=16 / 255, lpips=None),
        view=View(size=None),
        perceptual=None,
        steps=STEPS,
        backend=backend,
        devices="cpu",
    )


def _protect(poisoner: Poisoner, images: Sequence[UInt8Array]) -> list[PoisonedImage]:
    anchor = poisoner.anchor("cat")
    return [protected.outcome for protected in poisoner.protect((image, anchor) for image in images)]


def _register(kind: str, value: int, count: int, size: int, purpose: str, threads: int | None = None) -> None:
    register(
        Case(
            name=f"scaling.{kind}.{value}",
            purpose=purpose,
            shape=f"{count}x3x{size}x{size}",
            backends=("reference", "native"),
            prepare=functools.partial(prepare, count, size),
            images=count,
            threads=threads,
        )
    )


for _count in IMAGES:
    _register("images", _count, _count, SMALL, f"{STEPS} steps of each image, one after the other")
for _size in SIZES:
    _register("size", _size, 1, _size, f"{STEPS} steps of one image")
for _threads in threads():
    _register("threads", _threads, 1, MIDDLE, f"{STEPS} steps of one image, so many threads", _threads)
