"""What becomes of each value of a network's op before it is stored: bias, residual, ReLU, and a ReLU's gradient.

`Epilogue` is what other ops of CPU networks take, and `bind` applies one by itself: out = epilogue(x). `epilogue` is
the op of networks on a GPU. Both leave the same masks of their ReLUs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from shade_fast.ops import gpu, native
from shade_fast.ops.binding import bound, check_images, extent
from shade_fast.ops.layout import channels_last, check_channels_last
from shade_fast.ops.native import Call
from shade_fast.terms.errors import ShadeFastError

#: Channels in a word of a mask.
BITS = 16


class Epilogue(NamedTuple):
    """Parts, applied in this order; None leaves one out:

    value += bias[c]; value += residual; positive = value > 0; relu: value = max(value, 0); value = 0 where gate is not

    bias: float32 [C]. residual: as the result, or the result itself, and then the op accumulates. positive, gate:
    masks, int16 [B, h, w, ceil(C / 16)], channel c in bit c % 16 of word c // 16, bits past the last channel 0.
    """

    bias: Tensor | None = None
    residual: Tensor | None = None
    positive: Tensor | None = None
    relu: bool = False
    gate: Tensor | None = None

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


def bind(x: Tensor, out: Tensor, epilogue: Epilogue, threads: int) -> Call:
    """out = epilogue(x), every part of it allowed: with a gate alone it is a ReLU's gradient.

    x and out: dense channels-last float32 [B, C, h, w] on the CPU; out may be x. Raises ShadeFastError where a tensor
    does not fit.
    """
    check_images(out, x=x)
    epilogue.check(out)
    return bound(native.cpu().epilogue, x, out, extent(out), epilogue, threads)


def epilogue(x: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """Add a bias to each channel and another tensor to that, and cut off what is below 0.

        y = max(x + bias[c] + residual, 0)

    Args:
        x: float [B, C, h, w], channels-last; other layouts are copied.
        bias: float32 [C]. residual: as x. None for none. relu: whether negative values become 0.

    Returns:
        As x, channels-last; sums are float32, float64 for float64. The gradient in x and in the residual is one tensor;
        the bias gets none. Differentiable once: of a ReLU one bit a value is kept.

    Where the tensors are on a GPU, in float32, float16 or bfloat16, Triton's kernels run; elsewhere plain torch does,
    which is the specification.

    Raises:
        ShadeFastError: shapes or devices do not fit, or Triton is missing on a GPU.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ShadeFastError(f"x is {x.dtype} {list(x.shape)}: give float [B, C, h, w]")
    if bias is not None and bias.shape != x.shape[1:2]:
        raise ShadeFastError(f"bias is {list(bias.shape)}: x has {x.shape[1]} channels")
    if residual is not None:
        if residual.shape != x.shape or residual.device != x.device:
            raise ShadeFastError(
                f"residual is {list(residual.shape)} on {residual.device}: give {list(x.shape)} on {x.device}, as x is"
            )
        residual = channels_last(residual.to(x.dtype))
    result: Tensor = _Epilogue.apply(channels_last(x), bias, residual, relu)  # type: ignore[no-untyped-call]
    return result


def reference(x: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool) -> Tensor:
    """The specification, in plain torch; arguments as in `epilogue`."""
    values = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return channels_last(Epilogue(bias, residual, relu=relu).reference(values).to(x.dtype))


def reference_mask(y: Tensor) -> Tensor:
    """Where a ReLU of result y passes its gradient on, a NaN's too: a mask as an `Epilogue` has it."""
    return pack_mask(~(y <= 0))


def reference_gradient(gradient: Tensor, mask: Tensor) -> Tensor:
    """The gradient in what the ReLU was given, in plain torch."""
    return channels_last(torch.where(unpack_mask(mask, gradient.shape[1]), gradient, 0))


@torch.library.custom_op("shade_fast::epilogue", mutates_args=())
def _operator(x: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool, mark: bool) -> tuple[Tensor, Tensor]:
    """y and, with `mark`, the mask of its ReLU; else that is empty."""
    if not gpu.has_kernels(x):
        result = reference(x, bias, residual, relu)
        return result.clone() if result is x else result, reference_mask(result) if mark else _new_mask(x, mark)
    out, mask = torch.empty_like(x), _new_mask(x, mark)
    with gpu.selected(x):
        gpu.triton("epilogue").forward(x, bias, residual, out, relu, mask if mark else None)
    return out, mask


@_operator.register_fake
def _(x: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool, mark: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _new_mask(x, mark)


@torch.library.custom_op("shade_fast::epilogue_gradient", mutates_args=())
def _gradient_operator(gradient: Tensor, mask: Tensor) -> Tensor:
    if not gpu.has_kernels(gradient):
        return reference_gradient(gradient, mask)
    out = torch.empty_like(gradient)
    with gpu.selected(gradient):
        gpu.triton("epilogue").backward(gradient, mask, out)
    return out


@_gradient_operator.register_fake
def _(gradient: Tensor, mask: Tensor) -> Tensor:
    return torch.empty_like(gradient)


class _Epilogue(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool) -> Tensor:
        mark = relu and any(ctx.needs_input_grad)
        y: Tensor
        y, mask = _operator(x, bias, residual, relu, mark)
        ctx.adds = residual is not None
        ctx.save_for_backward(*([mask] if mark else []))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for mask in ctx.saved_tensors:
            gradient = _gradient_operator(channels_last(gradient), mask)
        return gradient, None, gradient if ctx.adds else None, None


def _new_mask(x: Tensor, mark: bool) -> Tensor:
    return x.new_empty(mask_shape(x.shape) if mark else 0, dtype=torch.int16)
