"""The options of protecting images, each stated once: `Options`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from os import PathLike
from typing import Any, Literal, cast

import numpy as np
import torch

from shade_fast.anchors import AnchorLibrary
from shade_fast.engine import BACKENDS, OPTIMIZERS, Stopping, check_optimizer
from shade_fast.perceptual import Perceptual
from shade_fast.protect.warm_start import WarmStart
from shade_fast.runtime import ACCURACIES, CUDA_PRECISIONS
from shade_fast.terms.budget import Budget
from shade_fast.terms.checks import number
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.limits import Limits, limit_names
from shade_fast.terms.options import Flag, a, a_count, a_share, check_options, one_of, option
from shade_fast.views import View

#: Preset -> steps of momentum.
PRESETS = {"fast": 20, "balanced": 60, "strong": 240}


def bound(text: str) -> float | None:
    """A bound of a budget as text: a number, a fraction such as 16/255, or `none`. Raises ShadeFastError."""
    if text.lower() == "none":
        return None
    try:
        return float(Fraction(text))
    except (ValueError, ArithmeticError):
        raise ShadeFastError(f"{text!r}: give a number, a fraction such as 16/255, or 'none'") from None


def _size(text: str) -> int | None:
    try:
        return None if text.lower() == "none" else int(text)
    except ValueError:
        raise ShadeFastError(f"{text!r}: give a whole number of pixels, or 'none'") from None


def _weights(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ShadeFastError(f"{text!r}: give numbers with commas between them") from None


def _batch_size(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise ShadeFastError(f"{text!r}: give a whole number, or 'auto'") from None


@dataclass(frozen=True, kw_only=True, eq=False)
class Options:
    """The options of `poison_batch`, which describes them; `Poisoner`, the command line, workers, `verify_archive` and
    a run's record read them here.

    A field states its default, its check and its flags. Raises ShadeFastError for a value that cannot be, and for
    values that cannot go together.
    """

    encoder: Any = option(
        "embedded",
        Flag("encoder", "encoder; again for an ensemble (default: embedded)", metavar="NAME|PATH|ID", many=True),
        join=lambda encoder: encoder or ["embedded"],
    )
    weights: Sequence[float] | None = option(
        None, Flag("weights", "of an ensemble's encoders (default: equal)", metavar="W,W", parse=_weights)
    )
    budget: Budget = option(
        Budget(linf=16 / 255, lpips=0.07),
        Flag("linf", "largest change of a channel, in [0, 1] units, or 'none'", "16/255", bound),
        Flag("lpips", "largest LPIPS distance, or 'none'", "0.07", bound),
        check=a(Budget),
        join=Budget,
    )
    view: View = option(
        View(size=512),
        Flag("view", "shorter side that a trainer resizes to, or 'none'", "512", _size, metavar="SIZE"),
        Flag("robust", "draw a resize, crop or flip, and JPEG, on the way to the encoder", const=True),
        check=a(View),
        join=lambda view, robust: View.robust(view) if robust else View(view),
    )
    perceptual: str | Perceptual | None = option(
        "auto",
        Flag("perceptual", "LPIPS network: auto, vgg, st-vgg, alex, st-alex, squeeze, or 'none'", "auto"),
        join=lambda perceptual: None if perceptual == "none" else perceptual,
    )
    optimizer: str = option(
        "momentum",
        Flag("optimizer", "momentum, or one of the published loops", "momentum", choices=lambda: list(OPTIMIZERS)),
    )
    preset: str = option(
        "balanced",
        Flag(
            "preset",
            ", ".join(f"{name}: {steps} steps" for name, steps in PRESETS.items()),
            "balanced",
            choices=lambda: list(PRESETS),
        ),
        check=one_of(lambda: list(PRESETS), "preset {value!r}"),
        incidental=True,
    )
    steps: int | None = option(
        None, Flag("steps", "optimiser steps, instead of the preset's", parse=int), check=a_count(besides=[None])
    )
    backend: str = option(
        "auto", Flag("backend", "what executes the networks and the optimiser", "auto", choices=lambda: BACKENDS)
    )
    accuracy: str = option(
        "fast",
        Flag(
            "accuracy",
            "of gradients: native's fast (1e-4) or exact (1e-5); cuda's fast is bf16, exact fp32",
            "fast",
            choices=lambda: (*ACCURACIES, *CUDA_PRECISIONS),
        ),
    )
    devices: str | Sequence[str] = option(
        "auto",
        Flag("devices", "auto, cpu, cuda:0, or several, a process each: cuda:0,cuda:1", "auto"),
        incidental=True,
    )
    batch_size: int | Literal["auto"] = option(
        "auto",
        Flag("batch-size", "images of one size optimised together on a GPU, or 'auto'", "auto", _batch_size),
        check=a_count(besides=["auto"]),
        incidental=True,
    )
    seed: int = option(
        0,
        Flag("seed", "what the draws of --robust follow from, with each image's pixels", 0, int),
        check=a_count(0),
    )
    target_ratio: float = option(
        0.9,
        Flag("target-ratio", "share of the latent distance that may be left for 'ok'", 0.9, float),
        check=a_share(),
    )
    anchors: AnchorLibrary | None = option(
        None,
        Flag("anchors", "library of anchors: a folder with a subfolder of images for each concept", metavar="DIR"),
        join=lambda anchors: None if anchors is None else AnchorLibrary.from_folder(anchors),
    )
    survival: bool = option(
        False, Flag("survival", "measure what is left of the shift after what happens to files", const=True)
    )
    stop_ratio: float | None = option(
        None,
        Flag("stop-ratio", "stop an image once this share of its latent distance is left", parse=float),
        check=a_share(besides=[None]),
    )
    patience: int | None = option(
        None, Flag("patience", "stop an image after so many steps without progress", parse=int, metavar="STEPS")
    )
    start: WarmStart | str | PathLike[str] | None = option(
        None,
        Flag("start", "warm start for this target and encoder, made by `shade-fast fit`", metavar="FILE"),
    )
    limits: Limits = option(
        Limits(),
        Flag(
            "max",
            lambda: f"change a limit (docs/security.md), such as image-bytes=1G; names: {', '.join(limit_names())}",
            metavar="NAME=VALUE",
            many=True,
        ),
        check=a(Limits),
        join=lambda max: Limits.of_texts(max or ()),
        incidental=True,
    )

    def __post_init__(self) -> None:
        check_options(self)
        if not self.encoders:
            raise ShadeFastError("encoder: an empty list; give at least one")
        check_optimizer(
            self.optimizer, self.budget, len(self.encoders), self.view, self.stopping, start=self.start is not None
        )
        _ = self.encoder_weights

    @property
    def encoders(self) -> list[Any]:
        """The encoders as they were given."""
        return list(self.encoder) if isinstance(self.encoder, list | tuple) else [self.encoder]

    @property
    def encoder_weights(self) -> list[float]:
        """The encoders' weights, as many as there are. Raises ShadeFastError."""
        count = len(self.encoders)
        if self.weights is None:
            return [1.0] * count
        if not isinstance(self.weights, Iterable):
            raise ShadeFastError(f"weights={self.weights!r}: give {count} numbers above 0, one for each encoder")
        given = list(self.weights.tolist() if isinstance(self.weights, torch.Tensor | np.ndarray) else self.weights)
        numbers = [number(weight) for weight in given]
        if len(numbers) != count or not all(weight is not None and weight > 0 for weight in numbers):
            raise ShadeFastError(f"weights={given}: give {count} numbers above 0, one for each encoder")
        return cast("list[float]", numbers)

    @property
    def most_steps(self) -> int:
        """The steps that an image takes, where nothing ends it early."""
        return PRESETS[self.preset] if self.steps is None else self.steps

    @property
    def stopping(self) -> Stopping:
        return Stopping(self.stop_ratio, self.patience)
