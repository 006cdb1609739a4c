"""What one device does with one batch: prepare it, move it, settle it on its files, judge it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from shade_fast import runtime
from shade_fast.anchors import Anchor
from shade_fast.encoders import Encoder, load_encoder
from shade_fast.engine import (
    NEVER,
    OPTIMIZERS,
    Codec,
    Footprint,
    Optimized,
    Problem,
    Projected,
    Slots,
    is_out_of_memory,
    kernels,
    optimize,
    project_to_files,
)
from shade_fast.images import DecodedImage, JpegSettings, Output, UInt8Array
from shade_fast.perceptual import Perceptual, available, load_perceptual
from shade_fast.protect.codec import codec, through_files, to_array, visible_pixels
from shade_fast.protect.options import Options
from shade_fast.protect.outcome import PoisonedImage, Protected, Status, Work, failed
from shade_fast.protect.survival import shares
from shade_fast.protect.upload import Uploader
from shade_fast.protect.warm_start import WarmStart
from shade_fast.system.memory import free_bytes
from shade_fast.terms.budget import Budget
from shade_fast.terms.errors import ShadeFastError, TransientError, reason
from shade_fast.terms.limits import Limits
from shade_fast.views import ViewPlan
from shade_fast.views.treatments import TREATMENTS

#: The memory of views of at most this many pixels is not checked: any machine that holds the networks has it.
ORDINARY_PIXELS = 1 << 20


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A batch on the device. clean: uint8 [B, 3, H, W]. picks: which of its anchor's images each is moved to.

    attempts: how each may be encoded, in this order. codecs: what each attempt with a loss makes of pixels.
    problem: measured by exact networks. moved: the same, by the networks that move the images.
    """

    works: Sequence[Work]
    plan: ViewPlan
    clean: torch.Tensor
    picks: list[int]
    attempts: list[list[JpegSettings | None]]
    codecs: list[list[Codec]]
    problem: Problem
    moved: Problem


class Protector:
    """One device with its networks loaded.

    options: their `devices` and `backend` are not read. device: where. backend: what executes.
    Raises ShadeFastError for networks that cannot be loaded, and for what the backend does not support.
    """

    def __init__(self, options: Options, device: torch.device, backend: str) -> None:
        self.options, self.device, self.backend = options, device, backend
        self.budget, self.view = options.budget, options.view
        self.stopping, self.steps = options.stopping, options.most_steps
        self.uploader = Uploader(device)
        asked = 8 if options.batch_size == "auto" else options.batch_size
        self.batch_size = asked if "cuda" in (backend, device.type) else 1
        runtime.check_accuracy(backend, options.accuracy)
        self.perceptual = _load_perceptual(options.perceptual, self.budget, device)
        self.encoders = tuple(load_encoder(spec, device).to(device) for spec in options.encoders)
        self.weights = options.encoder_weights
        #: what images are moved by; on a GPU figures are measured by exact networks, whatever moves the images
        self.moving = (self.encoders, self.perceptual)
        self._slots: Slots | None = None
        if backend != "reference":
            self.moving = self._frozen(options.accuracy)
            self.encoders, self.perceptual = self._frozen("exact") if backend == "cuda" else self.moving
        if backend == "cuda":
            self._slots = Slots(self.batch_size)
        self.start = options.start if isinstance(options.start, WarmStart | None) else WarmStart.load(options.start)
        self._footprint = Footprint(*self.moving, together=OPTIMIZERS[options.optimizer].keeps_networks)
        #: shape of images -> how many of them the device has memory for
        self._fitting: dict[tuple[int, ...], int] = {}

    @property
    def factor(self) -> int:
        """Pixels that the view's sides are multiples of: what every encoder's latents divide."""
        return math.lcm(*(encoder.factor for encoder in self.encoders))

    @property
    def window(self) -> int:
        """How many images of one size are held: more than a batch where an image may leave it for another to enter."""
        return self.batch_size * (4 if self._slots is not None and self.stopping != NEVER else 1)

    @property
    def encoder_name(self) -> str:
        return " + ".join(encoder.name for encoder in self.encoders)

    def _frozen(self, accuracy: str) -> tuple[tuple[Encoder, ...], Perceptual | None]:
        """The networks as the backend runs them."""
        freeze = functools.partial(runtime.freeze, backend=self.backend, accuracy=accuracy)
        encoders = tuple(encoder.frozen(freeze) for encoder in self.encoders)
        return encoders, None if self.perceptual is None else self.perceptual.frozen(freeze)

    def protect_batch(
        self, batch: Sequence[Work], output: Output | None, pixels: torch.Tensor | None = None
    ) -> list[Protected]:
        """Protect images of one size together, in this process.

        Where memory runs out they are tried again: first without the memory of recorded steps, then by halves, as are
        others of this size from then on. A batch that fails otherwise is tried again one by one, so that a bad image
        fails alone.
        pixels: uint8 [B, 3, H, W], the images on the device where they are there already.
        """
        if not batch:
            return []
        size = min(len(batch), self._fitting.get(batch[0].image.pixels.shape, len(batch)))
        if not self._refills(batch, output):
            size = min(size, self.batch_size)
        if size == len(batch):
            tried = self._tried(batch, output, pixels)
            if not isinstance(tried, int):
                return tried
            size = tried
            if self.device.type == "cuda":
                with contextlib.suppress(RuntimeError):  # the device has failed, as the next try shows
                    torch.cuda.empty_cache()
        return [
            protected
            for first in range(0, len(batch), size)
            for protected in self.protect_batch(
                batch[first : first + size], output, None if pixels is None else pixels[first : first + size]
            )
        ]

    def _refills(self, batch: Sequence[Work], output: Output | None) -> bool:
        """Whether an image that is done leaves its slot to another: where all steps are alike (see `Slots`)."""
        if self._slots is None or self.view.transforms:
            return False
        lossy = output is not None and any(output.is_lossy(work.image) for work in batch)
        return not lossy and all(work.image.alpha is None for work in batch)

    def _tried(
        self, batch: Sequence[Work], output: Output | None, pixels: torch.Tensor | None
    ) -> list[Protected] | int:
        """The outcomes; or how many to try at a time, where several images failed together or memory has been freed."""
        others = self._slots is not None and self._slots.recorded > 0
        handled = sys.exc_info()[1]
        try:
            if pixels is None:
                pixels = self.uploader.upload([work.image.pixels for work in batch])()
            return self._protect(batch, output, pixels)
        except Exception as error:  # whatever a caller's encoder raises ends one image, not the run
            image = batch[0].image
            out_of_memory = is_out_of_memory(error, handled)
            if out_of_memory and self._slots is not None:
                self._slots.release()
                if others:
                    return len(batch)
            if len(batch) == 1:
                if out_of_memory:
                    error = TransientError(
                        f"{reason(error)}; not even this image alone fits into the memory of {self.device}: give a "
                        "smaller view or another device, or end what else runs on it"
                    )
                return [Protected(image, failed(error, image))]
            if out_of_memory:
                self._fitting[image.pixels.shape] = max(1, min(len(batch), self.batch_size) // 2)
            return self._fitting[image.pixels.shape] if out_of_memory else 1

    @torch.no_grad()
    def measure(self, clean: UInt8Array, shown: UInt8Array, anchor: Anchor) -> tuple[float, float, float | None]:
        """Latent distance of a clean and of a perturbed image (uint8 [H, W, 3], one size), and their LPIPS distance."""
        pixels = [torch.tensor(image).permute(2, 0, 1)[None].contiguous().to(self.device) for image in (clean, shown)]
        plan = self.view.plan(pixels[0].shape[2], pixels[0].shape[3], self.factor)
        _, latents = self._nearest(anchor, plan.apply(pixels[0] / 255, backend=kernels(self.backend)), plan.crop)
        problem = Problem(pixels[0], plan, self.encoders, latents, self.perceptual, self.backend, weights=self.weights)
        distances, lpips = problem.measure(pixels[1])
        after = problem.objective(distances)
        return float(problem.start[0]), float(after[0]), None if lpips is None else float(lpips[0])

    def _protect(self, works: Sequence[Work], output: Output | None, clean: torch.Tensor) -> list[Protected]:
        started = time.perf_counter()
        batch = self._prepare(works, output, clean)
        moved = self._move(batch)
        settled, places = self._settle(batch, moved)
        seconds = (time.perf_counter() - started) / len(works)
        return [self._outcome(batch, moved, settled, places, index, seconds) for index in range(len(works))]

    def _prepare(self, works: Sequence[Work], output: Output | None, clean: torch.Tensor) -> _Prepared:
        """The batch's views, anchors, codecs and problems. Raises ShadeFastError where there is no room for them."""
        plan = self.view.plan(clean.shape[2], clean.shape[3], self.factor)
        self._check_size(plan)
        self._check_memory(plan, len(works))
        with torch.no_grad():
            view = plan.apply(clean / 255, backend=kernels(self.backend))
        picks, anchor_latents = [], []
        for index, work in enumerate(works):
            pick, latents = self._nearest(work.anchor, view[index : index + 1], plan.crop)
            picks.append(pick)
            anchor_latents.append(latents)
        attempts = [[] if output is None else output.attempts(work.image) for work in works]
        codecs = [
            [codec(work.image, output, jpeg) for jpeg in settings if output is not None and jpeg is not None]
            for work, settings in zip(works, attempts, strict=True)
        ]

        def problem_of(encoders: Sequence[Encoder], perceptual: Perceptual | None) -> Problem:
            return Problem(
                clean,
                plan,
                encoders,
                [torch.cat(latents) for latents in zip(*anchor_latents, strict=True)],
                perceptual,
                self.backend,
                randoms=[self._random(work.image) for work in works] if plan.transforms else (),
                weights=self.weights,
                visible=visible_pixels(works, self.device),
                through=through_files(clean, [attempt[0] if attempt else None for attempt in codecs]),
            )

        problem = problem_of(self.encoders, self.perceptual)
        if not bool(torch.isfinite(problem.start).all()):
            raise ShadeFastError(f"the latent is not finite under encoder {self.encoder_name}; check its weights")
        moved = problem
        if self.backend == "cuda":
            moved = problem_of(*self.moving)
            if not bool(torch.isfinite(moved.start).all()):
                raise ShadeFastError(
                    f"the latent is not finite with accuracy {self.options.accuracy!r} under encoder "
                    f"{self.encoder_name}; give 'bf16' or 'fp32'"
                )
        return _Prepared(works, plan, clean, picks, attempts, codecs, problem, moved)

    def _move(self, batch: _Prepared) -> Optimized:
        """The perturbations that the optimiser finds, from the warm start where there is one."""
        start = None
        if self.start is not None:
            size = (batch.clean.shape[2], batch.clean.shape[3])
            perturbations = [self.start.perturbation(pick, batch.plan.crop, size) for pick in batch.picks]
            start = torch.cat(perturbations).to(self.device)
        optimizer, stopping = self.options.optimizer, self.stopping
        return optimize(batch.moved, optimizer, self.budget, self.steps, start, stopping, self._slots)

    def _settle(self, batch: _Prepared, moved: Optimized) -> tuple[Projected, list[int]]:
        """The pixels of files inside the budget, measured, and which of its attempts each image takes."""
        visible = batch.problem.visible
        delta = moved.delta if visible is None else moved.delta * visible
        return project_to_files(batch.problem, delta, self.budget, batch.codecs)

    def _outcome(
        self,
        batch: _Prepared,
        moved: Optimized,
        settled: Projected,
        places: Sequence[int],
        index: int,
        seconds: float,
    ) -> Protected:
        """The outcome of one image of a batch."""
        work, problem = batch.works[index], batch.problem
        pixels = to_array(settled.pixels[index])
        before, after = float(problem.start[index]), float(settled.distance[index])
        levels = int(settled.levels[index])
        lpips = None if settled.lpips is None else float(settled.lpips[index])
        status, error = self._judge(before, after, bool(settled.held[index]), levels, lpips)
        steps = int(moved.steps[index])
        surviving = self.options.survival and status != "failed"
        outcome = PoisonedImage(
            image=None if status == "failed" else work.image.with_alpha(pixels),
            status=status,
            linf=levels / 255,
            lpips=lpips,
            distance_before=before,
            distance_after=after,
            encoder_distances=tuple(
                (float(start[index]), float(end))
                for start, end in zip(problem.starts, settled.distances[index], strict=True)
            ),
            steps=steps,
            error=None if error is None else f"{work.image.name}: {error}",
            name=work.image.name,
            anchor=work.anchor.paths[batch.picks[index]] if work.anchor.paths else None,
            history=tuple(moved.history[: max(1, steps), index].tolist()),
            seconds=seconds,
            survival=self._survival(work.image.pixels, pixels) if surviving else None,
        )
        jpeg = batch.attempts[index][places[index]] if batch.attempts[index] else None
        return Protected(work.image, outcome, to_array(settled.stored[index]), jpeg)

    def _check_size(self, plan: ViewPlan) -> None:
        """Raise ShadeFastError for a view that is over the limits."""
        side, pixels, limits = max(plan.crop), math.prod(plan.crop), self.options.limits
        over = [f"--max view-side={side}"] if side > limits.view_side else []
        over += [f"--max view-pixels={pixels}"] if pixels > limits.view_pixels else []
        if over:
            raise ShadeFastError(
                f"the encoder would see {plan.crop[1]}x{plan.crop[0]} pixels; at most {limits.view_side} a side and "
                f"{limits.view_pixels:,} in all: cut it into parts, give a smaller --view, or {' '.join(over)}"
            )

    def _check_memory(self, plan: ViewPlan, images: int) -> None:
        """Raise ShadeFastError for images on a CPU that need more memory than there is, before they are begun."""
        bounded = self.options.limits.memory < Limits.memory
        if self.device.type != "cpu" or (math.prod(plan.crop) <= ORDINARY_PIXELS and not bounded):
            return
        needed = images * self._footprint.bytes(plan)
        size = f"{plan.crop[1]}x{plan.crop[0]} pixels need about {_gigabytes(needed)}"
        limit = self.options.limits.memory
        if needed > limit:
            raise ShadeFastError(
                f"{size}, at most {_gigabytes(limit)} are allowed: give a smaller --view, cut it into "
                f"parts, or give --max memory={needed}"
            )
        free = free_bytes()
        if free is not None and needed > free:
            runtime.BLOCKS.release()
            free = free_bytes()
        if free is not None and needed > free:
            raise TransientError(
                f"{size}, {_gigabytes(free)} are free: give a smaller --view, cut it into parts, or end what else runs"
            )

    def _random(self, image: DecodedImage) -> np.random.Generator:
        """An image's own random numbers: they follow from the seed and its pixels, not from its place in the run."""
        digest = hashlib.sha256(image.pixels.tobytes()).digest()
        return np.random.default_rng([self.options.seed, int.from_bytes(digest[:8])])

    def _survival(self, clean: UInt8Array, perturbed: UInt8Array) -> dict[str, float]:
        return shares(self.encoders, clean, perturbed, view=self.view, treatments=TREATMENTS, backend=self.backend)

    @torch.no_grad()
    def _nearest(self, anchor: Anchor, view: torch.Tensor, size: tuple[int, int]) -> tuple[int, list[torch.Tensor]]:
        """Which of an anchor's candidates is nearest to one image's view, and its latent [1, C, h, w] per encoder."""
        pick = 0
        with runtime.exact_products(self.device):
            candidates = [anchor.latents(encoder, size) for encoder in self.encoders]
            if len(candidates[0]) > 1:
                total = torch.zeros(len(candidates[0]), device=view.device)
                for encoder, latents in zip(self.encoders, candidates, strict=True):
                    distances = (latents - encoder.encode(view)).flatten(1).norm(dim=1)
                    total += distances / distances.mean()
                pick = int(total.argmin())
        return pick, [latents[pick : pick + 1] for latents in candidates]

    def _judge(
        self, before: float, after: float, held: bool, levels: int, lpips: float | None
    ) -> tuple[Status, str | None]:
        if not np.isfinite(after):
            return "failed", f"the latent is not finite under encoder {self.encoder_name}; check its weights"
        if lpips is not None and not np.isfinite(lpips):
            return "failed", "the LPIPS distance is not finite; check the perceptual network's weights"
        if not held:
            measured = f"linf {levels}/255" + ("" if lpips is None else f" and lpips {lpips:.4f}")
            return "failed", (
                f"the file's codec by itself breaks the budget ({measured} without any perturbation); "
                "raise the quality, or write png or webp"
            )
        return ("ok" if after <= self.options.target_ratio * before else "below_target"), None


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _load_perceptual(perceptual: str | Perceptual | None, budget: Budget, device: torch.device) -> Perceptual | None:
    if isinstance(perceptual, Perceptual):
        return perceptual.to(device)
    if perceptual is None:
        if budget.lpips is not None:
            raise ShadeFastError(f"budget lpips={budget.lpips} needs a perceptual network; give one, or lpips=None")
        return None
    if perceptual == "auto" and budget.lpips is None and not any(network.found for network in available()):
        return None
    return load_perceptual(perceptual, device)
