"""Drawing images: by the small generator, or by a real diffusers pipeline in a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from shade_fast.encoders import Encoder
from shade_fast.encoders.hub import load_pipeline
from shade_fast.images import UInt8Array
from shade_fast.study.examples import decode_latents
from shade_fast.study.generator import draw
from shade_fast.study.text import SentenceEncoder
from shade_fast.study.training import Checkpoint
from shade_fast.terms.errors import ShadeFastError, reason

STEPS = 20
GUIDANCE = 3.0


def sample(
    checkpoint: Checkpoint,
    prompt: str,
    count: int,
    encoder: Encoder,
    sentences: SentenceEncoder,
    *,
    seed: int = 0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> UInt8Array:
    """Images uint8 [count, h, w, 3] for a prompt, by a checkpoint's averaged weights; noise follows from the seed.

    Raises ShadeFastError for a count or steps below 1, and for another encoder or sentence model than the
    generator was trained with.
    """
    _check(count, steps)
    trained_on = checkpoint.facts.get("encoder_sha256")
    if trained_on is not None and trained_on != encoder.sha256:
        raise ShadeFastError(
            f"encoder {encoder.name!r}: this generator was trained on {checkpoint.facts.get('encoder')!r} of other "
            "weights; give that one"
        )
    trained_with = checkpoint.facts.get("sentences")
    if trained_with is not None and trained_with != sentences.name:
        raise ShadeFastError(
            f"sentence model {sentences.name!r}: this generator was trained with {trained_with!r}; give that one"
        )
    shape = checkpoint.averaged.shape
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, shape.channels, shape.side, shape.side, generator=random)
    text = sentences.embed([prompt])
    parts = [
        draw(checkpoint.averaged, text.expand(len(some), -1), some, steps, guidance) for some in torch.split(noise, 100)
    ]
    return decode_latents(encoder, torch.cat(parts) * checkpoint.deviation + checkpoint.mean)


def sample_pipeline(
    model: str | Path, prompts: Sequence[str], count: int, *, seed: int = 0, steps: int = STEPS, device: str = "cpu"
) -> Iterator[tuple[str, Iterator[UInt8Array]]]:
    """Each prompt with its images uint8 [h, w, 3], drawn as they are asked for by a diffusers text-to-image pipeline
    (its folder, hub:owner/name, or owner/name of one in the hub's cache); the image of index i has seed + i. Raises
    ShadeFastError for a count or steps below 1, and where it cannot be loaded, or does not draw."""
    _check(count, steps)

    @contextlib.contextmanager
    def named() -> Iterator[None]:
        try:
            yield
        except Exception as error:  # diffusers raises many kinds, from its own and from its libraries
            raise ShadeFastError(
                f"model {str(model)!r}: no checkpoint of `study train`, and no text-to-image pipeline that draws "
                f"({reason(error)}); give a file, a pipeline's folder, or hub:owner/name"
            ) from error

    def draws(prompt: str) -> Iterator[UInt8Array]:
        for index in range(count):
            random = torch.Generator("cpu").manual_seed(seed + index)
            with named():
                picture = pipeline(prompt, num_inference_steps=steps, generator=random).images[0]
            yield np.asarray(picture.convert("RGB"))

    with named():
        pipeline = load_pipeline(model, device)
        pipeline.set_progress_bar_config(disable=True)
    return ((prompt, draws(prompt)) for prompt in prompts)


def _check(count: int, steps: int) -> None:
    if count < 1 or steps < 1:
        raise ShadeFastError(f"count={count}, steps={steps}: give whole numbers, at least 1")
