"""What becomes of each value of a frozen network's op before it is stored, and the masks that its ReLUs leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from shade_fast.terms.errors import ShadeFastError

#: Runs an op on the buffers that it was bound to; a status, for `native.check`.
Call = Callable[[], int]

BITS = 16


class Finish(NamedTuple):
    """Applied in this order, None leaves a part out:

    value += bias[c]; value += residual; positive = value > 0; relu: value = max(value, 0); value = 0 where gate is not

    bias: float32 [C]. residual: as the result, or the result itself, and then the op accumulates. positive, gate:
    masks, int16 [B, h, w, ceil(C / 16)], channel c in bit c % 16 of word c // 16, bits past the last channel 0.
    """

    bias: Tensor | None = None
    residual: Tensor | None = None
    positive: Tensor | None = None
    relu: bool = False
    gate: Tensor | None = None

    def pointers(self) -> tuple[int, int, int, bool, int]:
        """As the compiled module takes it; absent parts are 0."""
        bias, residual, positive, gate = (
            0 if tensor is None else tensor.data_ptr()
            for tensor in (self.bias, self.residual, self.positive, self.gate)
        )
        return bias, residual, positive, self.relu, gate

    def check(self, result: Tensor) -> None:
        """Raise ShadeFastError unless every part fits a channels-last result [B, C, h, w]."""
        parts = {"bias": self.bias, "residual": self.residual, "positive": self.positive, "gate": self.gate}
        for name, part in parts.items():
            if part is not None and part.device != result.device:
                raise ShadeFastError(f"{name} is on {part.device}, the result on {result.device}")
        bias, channels = self.bias, result.shape[1]
        if bias is not None and (bias.shape != (channels,) or bias.dtype != result.dtype or not bias.is_contiguous()):
            raise ShadeFastError(
                f"bias is {bias.dtype} {list(bias.shape)}: give contiguous {result.dtype} [{channels}]"
            )
        if self.residual is not None:
            check_channels_last("residual", self.residual, result.dtype)
            if self.residual.shape != result.shape:
                raise ShadeFastError(f"residual is {list(self.residual.shape)}, the result {list(result.shape)}")
        for name, mask in (("positive", self.positive), ("gate", self.gate)):
            if mask is None:
                continue
            if mask.dtype != torch.int16 or mask.shape != mask_shape(result.shape) or not mask.is_contiguous():
                raise ShadeFastError(
                    f"{name} is {mask.dtype} {list(mask.shape)}: give contiguous int16 {list(mask_shape(result.shape))}"
                )

    def reference(self, values: Tensor) -> Tensor:
        """The specification, in plain torch; `positive` is written in place."""
        if self.bias is not None:
            values = values + self.bias[:, None, None]
        if self.residual is not None:
            values = values + self.residual
        if self.positive is not None:
            self.positive.copy_(pack_mask(values > 0))
        if self.relu:
            values = values.clamp_min(0)
        if self.gate is not None:
            values = values * unpack_mask(self.gate, values.shape[1])
        return values


def check_channels_last(name: str, tensor: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Raise ShadeFastError unless a tensor is dense [B, C, h, w] of a dtype, its channels adjacent in memory."""
    if tensor.dtype != dtype or tensor.ndim != 4 or not tensor.permute(0, 2, 3, 1).is_contiguous():
        raise ShadeFastError(
            f"{name} is {tensor.dtype} {list(tensor.shape)} with strides {tensor.stride()}: "
            f"give {str(dtype).removeprefix('torch.')} [B, C, h, w] in the channels_last memory format"
        )


def mask_shape(shape: torch.Size | tuple[int, ...]) -> tuple[int, int, int, int]:
    """Shape of the mask of a tensor [B, C, h, w]."""
    batch, channels, height, width = shape
    return batch, height, width, -(-channels // BITS)


def pack_mask(condition: Tensor) -> Tensor:
    """The mask of a bool tensor [B, C, h, w]."""
    batch, height, width, words = mask_shape(condition.shape)
    bits = torch.zeros(batch, height, width, words * BITS, dtype=torch.int32, device=condition.device)
    bits[..., : condition.shape[1]] = condition.permute(0, 2, 3, 1)
    weights = 2 ** torch.arange(BITS, dtype=torch.int32, device=condition.device)
    return (bits.reshape(batch, height, width, words, BITS) * weights).sum(-1).to(torch.int16)


def unpack_mask(mask: Tensor, channels: int) -> Tensor:
    """The bool tensor [B, channels, h, w] of a mask."""
    bits = (mask.to(torch.int32)[..., None] >> torch.arange(BITS, dtype=torch.int32, device=mask.device)) & 1
    return bits.flatten(3)[..., :channels].permute(0, 3, 1, 2).bool()
