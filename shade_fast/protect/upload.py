"""Images on their way to the device that works on them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch

from shade_fast.images import UInt8Array


class Uploader:
    """Copies batches to a device, on a GPU while that computes: out of page-locked memory, on a stream of its own.

    There are two page-locked buffers, used by turns: one is filled while the other's copy may still be on its way. On
    the CPU the batch is only stacked.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._turn = 0
        self._copied: list[torch.cuda.Event | None] = [None, None]
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._pinned = [torch.empty(0, dtype=torch.uint8, pin_memory=True) for _ in range(2)]

    def upload(self, images: Sequence[UInt8Array]) -> Callable[[], torch.Tensor]:
        """Start to copy images of one size, uint8 [H, W, 3]; from any thread.

        Returns a function that gives them on the device, uint8 [B, 3, H, W], to the stream that calls it.
        """
        height, width = images[0].shape[:2]
        shape = (len(images), 3, height, width)
        if self._device.type != "cuda":
            batch = _filled(torch.empty(shape, dtype=torch.uint8), images).to(self._device)
            return lambda: batch
        with self._lock:
            turn = self._turn = 1 - self._turn
            before = self._copied[turn]
            if before is not None:
                before.synchronize()
            size = len(images) * 3 * height * width
            if self._pinned[turn].numel() < size:
                self._pinned[turn] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            pinned = _filled(self._pinned[turn][:size].view(shape), images)
            # The device is selected first, as leaving a stream would create a context on the device selected before.
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                copied = pinned.to(self._device, non_blocking=True)
                event = self._copied[turn] = self._stream.record_event()

        def arrived() -> torch.Tensor:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(event)
            # Otherwise its memory could be reused while this stream still reads it.
            copied.record_stream(stream)
            return copied

        return arrived


def _filled(batch: torch.Tensor, images: Sequence[UInt8Array]) -> torch.Tensor:
    for place, image in zip(batch.numpy(), images, strict=True):
        np.copyto(place, image.transpose(2, 0, 1))
    return batch
