"""The front door: `poison_batch`, for images in memory."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal

import torch

from shade_fast.anchors import Anchor, AnchorLibrary, Target
from shade_fast.api.poisoner import Poisoner, Progress
from shade_fast.images import ImageLike
from shade_fast.perceptual import Perceptual
from shade_fast.protect.options import Options
from shade_fast.protect.outcome import PoisonResult
from shade_fast.protect.warm_start import WarmStart
from shade_fast.terms.budget import Budget
from shade_fast.terms.limits import Limits
from shade_fast.terms.options import names_of
from shade_fast.views import View

#: The options among the arguments.
OPTIONS = names_of(Options)


def poison_batch(
    images: Sequence[ImageLike] | torch.Tensor,
    target: Target | Anchor | Sequence[Target | Anchor],
    *,
    encoder: Any = "embedded",
    weights: Sequence[float] | None = None,
    budget: Budget = Budget(linf=16 / 255, lpips=0.07),
    view: View = View(size=512),
    perceptual: str | Perceptual | None = "auto",
    optimizer: str = "momentum",
    preset: str = "balanced",
    steps: int | None = None,
    backend: str = "auto",
    accuracy: str = "fast",
    devices: str | Sequence[str] = "auto",
    batch_size: int | Literal["auto"] = "auto",
    seed: int = 0,
    target_ratio: float = 0.9,
    anchors: AnchorLibrary | None = None,
    survival: bool = False,
    stop_ratio: float | None = None,
    patience: int | None = None,
    start: WarmStart | str | PathLike[str] | None = None,
    limits: Limits = Limits(),
    progress: Progress = None,
) -> PoisonResult:
    """Protect images: move each one's latent towards an anchor's with a perturbation that stays inside the budget.

    images: a sequence of paths, PIL images and uint8 arrays [H, W, C], of mixed sizes; or a uint8 tensor [N, 3, H, W]
        or array [N, H, W, C].
    target: one anchor, or a list of one per image. An anchor is a name from `anchors`, a path (an image, or a folder of
        images), a PIL image, a uint8 array [H, W, C] or a latent tensor [C, h, w] or [1, C, h, w]; of several images
        each protected image is given the nearest in latent distance.
    encoder: what `load_encoder` takes (name, path, hub:owner/name, module, callable), or a list of these: an ensemble.
    weights: of an ensemble's encoders, as many numbers above 0; None for equal ones.
    budget: how far a file may be changed. view: what a trainer's loader does to it before the encoder sees it.
    perceptual: the LPIPS network, by name; `auto` takes the strongest whose weights are on this machine.
    optimizer: `momentum`, or the published loops `release` and `paper`. preset: `fast`, `balanced` or `strong`, how
        many steps it takes (`PRESETS`; measured in docs/strength.md). steps: as many instead, at least 1.
    backend: what executes; `auto` chooses, and the result's `.backend` says what.
    devices: where: `cpu`, `cuda:0`, or several, `["cuda:0", "cuda:1"]` or `["cpu", "cpu"]` (or with commas between
        them), each with a process of its own; `auto` is every CUDA device, or the CPU. A process that dies is
        replaced, and its images are done again. Several CPU devices give what one gives with SHADE_FAST_PLAN=fixed,
        which they take where it is not set. `.device` says what it was.
    accuracy: of the `native` networks' input gradient, against float64: `fast` within 1e-4 relative, `exact` 1e-5;
        of `cuda`'s, `fast` is bf16 and `exact` fp32, and `fp16` and `tf32` lie between (docs/gpu.md).
    batch_size: images of one size that are optimised together on a GPU; `auto` is 8; where its memory does not
        suffice, halves of it. On a CPU, where batches gain nothing, images are taken one by one whatever is asked: a
        result cannot depend on its neighbours.
    seed: what each image's draws of the view's transforms follow from, with the image's own pixels.
    target_ratio: `ok` is a latent distance of at most this share of its start; anything above is `below_target`.
    anchors: the library that names are looked up in, default the embedded one.
    survival: whether to measure each result's shift after the treatments of `shade_fast.survival` as well.
    stop_ratio: an image stops as soon as no more than this share of its distance is left. patience: it stops after so
        many steps without progress. None for either: every image takes all its steps.
    start: a warm start for this anchor and these encoders (`fit_start`), or its file: fewer steps do on some
        encoders (docs/strength.md).
    limits: what one image may cost, `Limits(view_side=9600)`: an image whose view is larger, or that needs more memory
        than is free, fails; of several devices, a process that takes no step for `stall_seconds` counts as hung, and
        is replaced as one that died.
    progress: True for a bar, or a function called with (done, total) after each image.

    The networks are loaded for this one batch; `Poisoner(...).poison_batch(images, target)` keeps them for the next.

    Returns a `PoisonResult`. An image that cannot be handled is in it as `failed`, with the reason; the others go on.
    Raises ShadeFastError for what concerns the run as a whole: no images, an unknown option, a missing network.
    Source: arXiv 2310.13828.
    """
    options = {name: value for name, value in locals().items() if name in OPTIONS}
    with Poisoner(Options(**options)) as poisoner:
        return poisoner.poison_batch(images, target, progress)
