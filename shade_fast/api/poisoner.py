"""The `Poisoner`: one configuration over all its devices, that `poison_batch` and the archive run."""

from __future__ import annotations

import dataclasses
import functools
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, cast

import torch
from tqdm import tqdm

from shade_fast.anchors import Anchor, AnchorLibrary, Target, resolve_anchor
from shade_fast.api.order import in_order
from shade_fast.encoders import Encoder
from shade_fast.engine import resolve_backend, resolve_devices
from shade_fast.images import DecodedImage, ImageLike, Output, UInt8Array
from shade_fast.images.batch import listed
from shade_fast.perceptual import Perceptual
from shade_fast.protect.batch import Protector
from shade_fast.protect.options import PRESETS, Options
from shade_fast.protect.outcome import PoisonResult, Protected, Work
from shade_fast.terms.errors import ShadeFastError
from shade_fast.terms.options import takes
from shade_fast.views import View
from shade_fast.workers import Pool, Worker, packed

__all__ = ["PRESETS", "WAITING_BATCHES", "Poisoner", "Progress"]

#: progress(done, total) after each image, or True for a progress bar.
Progress = Callable[[int, int], None] | bool | None

#: How many batches' worth of images may wait for others of their shape; beyond it, the one that waited longest goes.
WAITING_BATCHES = 4


class Poisoner:
    """One configuration with its networks loaded, for any number of images. Options are those of `poison_batch`, by
    name or as `Options`.

    This process has the networks on the first of the devices: `protector`. Where there are several, each has a process
    of its own, which its first images start; `close`, or the end of a `with`, ends them.
    """

    @takes(Options)
    def __init__(self, options: Options | None = None, **given: Any) -> None:
        self.options = Options(**given) if options is None else dataclasses.replace(options, **given)
        devices = resolve_devices(self.options.devices)
        self.devices = tuple(map(str, devices))
        backend = _one_backend(self.options.backend, devices)
        self.protector = Protector(self.options, devices[0], backend)
        self.anchors = AnchorLibrary.embedded() if self.options.anchors is None else self.options.anchors
        self._pool: Pool | None = None
        self._end_pool: Callable[[], object] = lambda: None
        #: the options that a worker gets; anchors come with the images
        self._sent = dataclasses.replace(self.options, backend=backend, anchors=None, weights=self.weights)
        if len(devices) > 1:
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
    def backend(self) -> str:
        """What executes."""
        return self.protector.backend

    @property
    def device(self) -> torch.device:
        """The first of the devices."""
        return self.protector.device

    @property
    def view(self) -> View:
        return self.protector.view

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The encoders that figures are measured by."""
        return self.protector.encoders

    @property
    def weights(self) -> list[float]:
        """The encoders' weights."""
        return self.protector.weights

    @property
    def perceptual(self) -> Perceptual | None:
        """The LPIPS network; None where none is loaded."""
        return self.protector.perceptual

    @property
    def factor(self) -> int:
        """Pixels that the view's sides are multiples of."""
        return self.protector.factor

    @property
    def window(self) -> int:
        """How many images of one size a device takes together."""
        return self.protector.window

    @property
    def encoder_name(self) -> str:
        return self.protector.encoder_name

    def anchor(self, target: Target | Anchor) -> Anchor:
        """The anchor that `target` means, checked against the encoders. Raises ShadeFastError."""
        anchor = resolve_anchor(target, self.anchors)
        if anchor.is_latent:
            for encoder in self.encoders:
                anchor.latents(encoder, (self.factor, self.factor))
        if self.protector.start is not None:
            self.protector.start.check(anchor, self.encoders)
        return anchor

    def poison_batch(
        self,
        images: Sequence[ImageLike] | torch.Tensor,
        target: Target | Anchor | Sequence[Target | Anchor],
        progress: Progress = None,
    ) -> PoisonResult:
        """`shade_fast.poison_batch` of this configuration. The networks, and what is prepared for an image's size, stay
        loaded from one batch to the next."""
        images = listed(images)
        if isinstance(target, list | tuple):
            if len(target) != len(images):
                raise ShadeFastError(
                    f"target: a list of {len(target)} for {len(images)} images; give one anchor, or one per image"
                )
            targets = [self.anchor(each) for each in target]
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

        While an image is not ready, at most 4 batches a device are taken after it, and sorted by shape. For an image
        that could not be read, give the error in its place; it is yielded as failed.
        output: how the images will be written (`Protected.encode`); figures are those of such a file, decoded again.

        Raises DevicesLostError where no device can begin; where all are lost later, the remaining images fail with that
        reason.
        """
        most = WAITING_BATCHES * self.window * len(self.devices)
        return in_order(images, output, self.submit, self.window, most)

    def submit(self, batch: Sequence[Work], output: Output | None) -> Future[list[Protected]]:
        """Protect images of one size on whichever device is free; with a single device, at once in this process.

        Waits while all are busy and as many batches wait. See `Pool.submit` for what becomes of the future.
        """
        if len(self.devices) == 1:
            done: Future[list[Protected]] = Future()
            done.set_result(self.protector.protect_batch(batch, output))
            return done
        if self._pool is None:
            threads = max(1, torch.get_num_threads() // len(self.devices))
            stall = self.options.limits.stall_seconds
            start = functools.partial(Worker, options=self._packed, threads=threads, stall_seconds=stall)
            self._pool = Pool(self.devices, start)
            self._end_pool = weakref.finalize(self, self._pool.close)
        return self._pool.submit(batch, output)

    def submit_apart(self, batch: Sequence[Work], output: Output | None) -> Future[list[Protected]]:
        """Protect images in a separate process, and wait for it. An image over which the process dies is failed, and
        says so.

        Raises ShadeFastError where there can be no such process.
        """
        if len(self.devices) > 1:
            return self.submit(batch, output)
        threads, stall = torch.get_num_threads(), self.options.limits.stall_seconds
        start = functools.partial(Worker, options=packed(self._sent), threads=threads, stall_seconds=stall)
        pool = Pool(self.devices, start)
        try:
            done = pool.submit(batch, output)
            done.exception()
            return done
        finally:
            pool.close()

    def measure(self, clean: UInt8Array, shown: UInt8Array, anchor: Anchor) -> tuple[float, float, float | None]:
        """Latent distance of a clean and of a perturbed image (uint8 [H, W, 3], one size), and their LPIPS distance."""
        return self.protector.measure(clean, shown, anchor)


def _one_backend(backend: str, devices: Sequence[torch.device]) -> str:
    """The backend that all devices run. Raises ShadeFastError where `auto` means different backends on them."""
    backends = {str(device): resolve_backend(backend, device) for device in devices}
    if len(set(backends.values())) > 1:
        meant = ", ".join(f"{name} on {device}" for device, name in backends.items())
        raise ShadeFastError(f"backend {backend!r}: would be {meant}; name one, or leave devices out")
    return next(iter(backends.values()))
