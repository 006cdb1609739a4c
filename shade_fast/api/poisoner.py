"""The `Poisoner`: one configuration with its networks loaded, that `poison_batch` and the archive run."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from os import PathLike
from typing import Any, Literal, cast

import numpy as np
import torch
from tqdm import tqdm

from shade_fast import runtime
from shade_fast.anchors import Anchor, AnchorLibrary, Target, resolve_anchor
from shade_fast.api.order import in_order
from shade_fast.encoders import Encoder, load_encoder
from shade_fast.engine import (
    NEVER,
    Footprint,
    Problem,
    Slots,
    Stopping,
    check_optimizer,
    is_out_of_memory,
    kernels,
    optimize,
    project_to_files,
    resolve_backend,
    resolve_devices,
)
from shade_fast.images import DecodedImage, ImageLike, Output, UInt8Array
from shade_fast.images.batch import listed
from shade_fast.perceptual import Perceptual, available, load_perceptual
from shade_fast.protect.codec import codec, through_files, to_array, visible_pixels
from shade_fast.protect.outcome import PoisonedImage, PoisonResult, Protected, Status, Work, failed
from shade_fast.protect.survival import TREATMENTS, shares
from shade_fast.protect.upload import Uploader
from shade_fast.protect.warm_start import WarmStart
from shade_fast.system.memory import free_bytes
from shade_fast.terms.budget import Budget
from shade_fast.terms.checks import at_least, number, share
from shade_fast.terms.errors import ShadeFastError, TransientError, reason
from shade_fast.terms.limits import Limits
from shade_fast.views import View, ViewPlan
from shade_fast.workers import Pool, Worker, packed

#: progress(done, total) after each image, or True for a progress bar.
Progress = Callable[[int, int], None] | bool | None

#: Preset -> steps of momentum.
PRESETS = {"fast": 20, "balanced": 60, "strong": 240}
#: Views of up to so many pixels are not asked what memory they need: any machine that has the networks has that.
ORDINARY_PIXELS = 1 << 20
#: Images that wait for others of their shape, in units of the batch; then the one that waited longest goes.
WAITING_BATCHES = 4


class Poisoner:
    """One configuration with its networks loaded, for any number of images. Options are those of `poison_batch`.

    This process has the networks on the first of the devices. Where there are several, each has a process of its own
    for what is protected, started with the first images that it gets; `close`, or the end of a `with`, ends them.
    """

    def __init__(
        self,
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
    ) -> None:
        options = {name: value for name, value in locals().items() if name != "self"}
        for name, value, kind in (("budget", budget, Budget), ("view", view, View), ("limits", limits, Limits)):
            if not isinstance(value, kind):
                raise ShadeFastError(f"{name}={value!r}: give a {kind.__name__}, such as {kind()!r}")
        self.budget = budget
        self.view = view
        self.limits = limits
        self.optimizer = optimizer
        if preset not in PRESETS:
            raise ShadeFastError(f"preset {preset!r}: give one of {', '.join(PRESETS)}")
        self.steps = PRESETS[preset] if steps is None else at_least("steps", steps)
        self.stopping = Stopping(stop_ratio, patience)
        self.seed = at_least("seed", seed, 0)
        self.target_ratio = share("target_ratio", target_ratio)
        found = resolve_devices(devices)
        self.device, self.devices = found[0], tuple(map(str, found))
        self.backend = _one_backend(backend, found)
        self.uploader = Uploader(self.device)
        asked = 8 if batch_size == "auto" else at_least("batch_size", batch_size)
        self.batch_size = asked if "cuda" in (self.backend, self.device.type) else 1
        runtime.check_accuracy(self.backend, accuracy)
        self.accuracy = accuracy
        self.perceptual = _load_perceptual(perceptual, self.budget, self.device)
        specs = encoder if isinstance(encoder, list | tuple) else [encoder]
        if not specs:
            raise ShadeFastError("encoder: an empty list; give at least one")
        self.encoders = tuple(load_encoder(spec, self.device).to(self.device) for spec in specs)
        self.weights = _checked_weights(weights, len(self.encoders))
        #: what images are moved by; on a GPU figures are measured by exact networks, whatever moves the images
        self.moving = (self.encoders, self.perceptual)
        self._slots: Slots | None = None
        if self.backend != "reference":
            self.moving = self._frozen(accuracy)
            self.encoders, self.perceptual = self._frozen("exact") if self.backend == "cuda" else self.moving
        if self.backend == "cuda":
            self._slots = Slots(self.batch_size)
        check_optimizer(optimizer, budget, len(self.encoders), view, self.stopping)
        self.survival = survival
        if start is not None and optimizer != "momentum":
            raise ShadeFastError(f"optimizer {optimizer!r}: the published loops have no warm start; leave it out")
        self.start = WarmStart.load(start) if isinstance(start, str | PathLike) else start
        self.anchors = AnchorLibrary.embedded() if anchors is None else anchors
        self._footprint = Footprint(*self.moving, paper=optimizer == "paper")
        #: shape of images -> how many of them the device has memory for
        self._fitting: dict[tuple[int, ...], int] = {}
        self._pool: Pool | None = None
        self._end_pool: Callable[[], object] = lambda: None
        self._sent = options | {"backend": self.backend, "anchors": None, "weights": self.weights}
        if len(found) > 1:
            self._packed = packed(self._sent)

    def __enter__(self) -> Poisoner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the devices' processes; images that are protected afterwards start new ones."""
        self._end_pool()
        self._pool = None

    @property
    def factor(self) -> int:
        """Pixels that the view's sides are multiples of: what every encoder's latents divide."""
        return math.lcm(*(encoder.factor for encoder in self.encoders))

    def _frozen(self, accuracy: str) -> tuple[tuple[Encoder, ...], Perceptual | None]:
        """The networks as the backend runs them."""
        freeze = functools.partial(runtime.freeze, backend=self.backend, accuracy=accuracy)
        encoders = tuple(encoder.frozen(freeze) for encoder in self.encoders)
        return encoders, None if self.perceptual is None else self.perceptual.frozen(freeze)

    @property
    def window(self) -> int:
        """How many images of one size are held: more than a batch where an image may leave it for another to enter."""
        return self.batch_size * (4 if self._slots is not None and self.stopping != NEVER else 1)

    @property
    def encoder_name(self) -> str:
        return " + ".join(encoder.name for encoder in self.encoders)

    def anchor(self, target: Target | Anchor) -> Anchor:
        """The anchor that `target` means, checked against the encoders. Raises ShadeFastError."""
        anchor = resolve_anchor(target, self.anchors)
        if anchor.is_latent:
            for encoder in self.encoders:
                anchor.latents(encoder, (self.factor, self.factor))
        if self.start is not None:
            self.start.check(anchor, self.encoders)
        return anchor

    def poison_batch(
        self,
        images: Sequence[ImageLike] | torch.Tensor,
        target: Target | Anchor | Sequence[Target | Anchor],
        progress: Progress = None,
    ) -> PoisonResult:
        """`shade_fast.poison_batch` of this configuration: from one batch to the next the networks stay loaded, and
        what was prepared for an image's size."""
        images = listed(images)
        if isinstance(target, list | tuple):
            if len(target) != len(images):
                raise ShadeFastError(
                    f"target: a list of {len(target)} for {len(images)} images; give one anchor, or one per image"
                )
            targets = [self.anchor(one) for one in target]
        else:
            targets = [self.anchor(cast("Target | Anchor", target))] * len(images)
        started = time.perf_counter()
        results = []
        with tqdm(total=len(images), unit="image", disable=progress is not True) as bar:
            for protected in self.protect(zip(images, targets, strict=True)):
                results.append(protected.outcome)
                bar.update()
                if callable(progress):
                    progress(len(results), len(images))
        return PoisonResult(
            images=tuple(results),
            backend=self.backend,
            encoder=self.encoder_name,
            perceptual=None if self.perceptual is None else self.perceptual.name,
            device=", ".join(self.devices),
            seconds=time.perf_counter() - started,
        )

    def protect(
        self, images: Iterable[tuple[ImageLike | DecodedImage | ShadeFastError, Anchor]], output: Output | None = None
    ) -> Iterator[Protected]:
        """Protect (image, anchor) pairs; yields in order, as they become ready.

        Of an image that is not ready, at most 4 batches a device are taken behind it, to go together by their shapes.
        An image that could not be had is given as the error that says why, and yielded as failed in its place.
        output: how the images will be written (`Protected.encode`); figures are those of such a file, decoded again.

        Raises DevicesLostError where no device can begin; images for which none is left later fail with that reason.
        """
        most = WAITING_BATCHES * self.window * len(self.devices)
        return in_order(images, output, self.submit, self.window, most)

    def submit(self, batch: Sequence[Work], output: Output | None) -> Future[list[Protected]]:
        """Protect images of one size on whichever device is free: here and now, where there is but one.

        Waits while all are busy and as many batches wait. See `Pool.submit` for what becomes of the future.
        """
        if len(self.devices) == 1:
            done: Future[list[Protected]] = Future()
            done.set_result(self.protect_batch(batch, output))
            return done
        if self._pool is None:
            threads = max(1, torch.get_num_threads() // len(self.devices))
            stall = self.limits.stall_seconds
            start = functools.partial(Worker, options=self._packed, threads=threads, stall_seconds=stall)
            self._pool = Pool(self.devices, start)
            self._end_pool = weakref.finalize(self, self._pool.close)
        return self._pool.submit(batch, output)

    def submit_apart(self, batch: Sequence[Work], output: Output | None) -> Future[list[Protected]]:
        """Protect images in a process of its own, and wait for it: one over which it dies is failed, and says so.

        Raises ShadeFastError where there can be no such process.
        """
        if len(self.devices) > 1:
            return self.submit(batch, output)
        threads, stall = torch.get_num_threads(), self.limits.stall_seconds
        start = functools.partial(Worker, options=packed(self._sent), threads=threads, stall_seconds=stall)
        pool = Pool(self.devices, start)
        try:
            done = pool.submit(batch, output)
            done.exception()
            return done
        finally:
            pool.close()

    def protect_batch(
        self, batch: Sequence[Work], output: Output | None, pixels: torch.Tensor | None = None
    ) -> list[Protected]:
        """Protect images of one size together, in this process.

        Where memory runs out they are tried again, first without the memory of recorded steps, then by halves, as are
        others of this size from then on. What fails together otherwise is tried again one by one: a bad one fails
        alone.
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
                with contextlib.suppress(RuntimeError):  # of a device that has failed, which the next try shows
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
        """The outcomes; or, where there are none of several images together or memory has been freed, how many to try
        at a time."""
        others = self._slots is not None and self._slots.recorded > 0
        handled = sys.exc_info()[1]
        try:
            if pixels is None:
                pixels = self.uploader.upload([work.image.pixels for work in batch])()
            return self._optimize(batch, output, pixels)
        except Exception as error:  # whatever an encoder of the caller's raises, it ends one image, not the run
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

    def _optimize(self, batch: Sequence[Work], output: Output | None, clean: torch.Tensor) -> list[Protected]:
        started = time.perf_counter()
        plan = self.view.plan(clean.shape[2], clean.shape[3], self.factor)
        self._check_size(plan)
        self._check_memory(plan, len(batch))
        with torch.no_grad():
            view = plan.apply(clean / 255, backend=kernels(self.backend))
        picks, anchor_latents = [], []
        for index, work in enumerate(batch):
            pick, latents = self._nearest(work.anchor, view[index : index + 1], plan.crop)
            picks.append(pick)
            anchor_latents.append(latents)
        attempts = [[] if output is None else output.attempts(work.image) for work in batch]
        codecs = [
            [codec(work.image, output, jpeg) for jpeg in settings if output is not None and jpeg is not None]
            for work, settings in zip(batch, attempts, strict=True)
        ]

        def problem_of(encoders: Sequence[Encoder], perceptual: Perceptual | None) -> Problem:
            return Problem(
                clean,
                plan,
                encoders,
                [torch.cat(latents) for latents in zip(*anchor_latents, strict=True)],
                perceptual,
                self.backend,
                randoms=[self._random(work.image) for work in batch] if plan.transforms else (),
                weights=self.weights,
                visible=visible_pixels(batch, self.device),
                through=through_files(clean, [one[0] if one else None for one in codecs]),
            )

        problem = problem_of(self.encoders, self.perceptual)
        if not bool(torch.isfinite(problem.start).all()):
            raise ShadeFastError(f"the latent is not finite under encoder {self.encoder_name}; check its weights")
        start = None
        if self.start is not None:
            size = (clean.shape[2], clean.shape[3])
            start = torch.cat([self.start.perturbation(pick, plan.crop, size) for pick in picks]).to(self.device)
        moved = problem
        if self.backend == "cuda":
            moved = problem_of(*self.moving)
            if not bool(torch.isfinite(moved.start).all()):
                raise ShadeFastError(
                    f"the latent is not finite with accuracy {self.accuracy!r} under encoder {self.encoder_name}; give "
                    "'bf16' or 'fp32'"
                )
        made = optimize(moved, self.optimizer, self.budget, self.steps, start, self.stopping, self._slots)
        delta = made.delta if problem.visible is None else made.delta * problem.visible
        projected, places = project_to_files(problem, delta, self.budget, codecs)
        seconds = (time.perf_counter() - started) / len(batch)
        results = []
        for index, work in enumerate(batch):
            pixels = to_array(projected.pixels[index])
            before, after = float(problem.start[index]), float(projected.distance[index])
            levels = int(projected.levels[index])
            lpips = None if projected.lpips is None else float(projected.lpips[index])
            status, error = self._judge(before, after, bool(projected.held[index]), levels, lpips)
            outcome = PoisonedImage(
                image=None if status == "failed" else work.image.with_alpha(pixels),
                status=status,
                linf=levels / 255,
                lpips=lpips,
                distance_before=before,
                distance_after=after,
                encoder_distances=tuple(
                    (float(start[index]), float(end))
                    for start, end in zip(problem.starts, projected.distances[index], strict=True)
                ),
                steps=int(made.steps[index]),
                error=None if error is None else f"{work.image.name}: {error}",
                name=work.image.name,
                anchor=work.anchor.paths[picks[index]] if work.anchor.paths else None,
                history=tuple(made.history[: max(1, int(made.steps[index])), index].tolist()),
                seconds=seconds,
                survival=self._survival(work.image.pixels, pixels) if self.survival and status != "failed" else None,
            )
            jpeg = attempts[index][places[index]] if attempts[index] else None
            results.append(Protected(work.image, outcome, to_array(projected.stored[index]), jpeg))
        return results

    def _check_size(self, plan: ViewPlan) -> None:
        """Raise ShadeFastError for a view that is over the limits."""
        side, pixels, limits = max(plan.crop), math.prod(plan.crop), self.limits
        over = [f"--max view-side={side}"] if side > limits.view_side else []
        over += [f"--max view-pixels={pixels}"] if pixels > limits.view_pixels else []
        if over:
            raise ShadeFastError(
                f"the encoder would see {plan.crop[1]}x{plan.crop[0]} pixels; at most {limits.view_side} a side and "
                f"{limits.view_pixels:,} in all: cut it into parts, give a smaller --view, or {' '.join(over)}"
            )

    def _check_memory(self, plan: ViewPlan, images: int) -> None:
        """Raise ShadeFastError for images on a CPU that need more memory than there is, before they are begun."""
        bounded = self.limits.memory < Limits.memory
        if self.device.type != "cpu" or (math.prod(plan.crop) <= ORDINARY_PIXELS and not bounded):
            return
        needed = images * self._footprint.bytes(plan)
        size = f"{plan.crop[1]}x{plan.crop[0]} pixels need about {_gigabytes(needed)}"
        if needed > self.limits.memory:
            raise ShadeFastError(
                f"{size}, at most {_gigabytes(self.limits.memory)} are allowed: give a smaller --view, cut it into "
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
        return np.random.default_rng([self.seed, int.from_bytes(digest[:8])])

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
        return ("ok" if after <= self.target_ratio * before else "below_target"), None


def _one_backend(backend: str, devices: Sequence[torch.device]) -> str:
    """The backend that all devices run. Raises ShadeFastError where `auto` means another on one than on the next."""
    found = {str(device): resolve_backend(backend, device) for device in devices}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name} on {device}" for device, name in found.items())
        raise ShadeFastError(f"backend {backend!r}: would be {told}; name one, or leave devices out")
    return next(iter(found.values()))


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


def _checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1.0] * count
    if not isinstance(weights, Iterable):
        raise ShadeFastError(f"weights={weights!r}: give {count} numbers above 0, one for each encoder")
    given = list(weights.tolist() if isinstance(weights, torch.Tensor | np.ndarray) else weights)
    found = [number(weight) for weight in given]
    if len(found) != count or not all(weight is not None and weight > 0 for weight in found):
        raise ShadeFastError(f"weights={given}: give {count} numbers above 0, one for each encoder")
    return cast("list[float]", found)
