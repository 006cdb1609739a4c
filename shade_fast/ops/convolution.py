"""Convolutions with frozen weights, channels-last, and their data gradients, which are convolutions too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from shade_fast.ops import native
from shade_fast.ops.binding import bound, check_device, check_scratch
from shade_fast.ops.epilogue import Epilogue
from shade_fast.ops.layout import check_channels_last
from shade_fast.ops.native import Call
from shade_fast.terms.errors import ShadeFastError

#: Algorithms, each with the compiled module's number for it.
NUMBERS = {"direct": 0, "narrow": 1, "winograd2": 2, "winograd4": 4, "winograd6": 6, "tiles": 10}
ALGORITHMS = tuple(NUMBERS)


@dataclass(frozen=True)
class Convolution:
    """A convolution, or the data gradient of one:

        result[n, k, y, x] = Σ over c, i, j of weight[k, c, i, j] · input[n, c, v, u],
        v = (y·stride + i - padding[0]) / up, u = (x·stride + j - padding[1]) / up, where both are whole and inside

    The result's size is the caller's choice: taps outside the input count for nothing.

    Attributes:
        channels, filters: of the input and of the result.
        kernel: height and width.
        stride, up: at least 1, and one of them is 1.
        padding: pixels above and left of the input's first; may be negative.
    """

    channels: int
    filters: int
    kernel: tuple[int, int]
    stride: int = 1
    up: int = 1
    padding: tuple[int, int] = (0, 0)

    def gradient(self) -> Convolution:
        """The gradient in the input, as a function of the gradient in the result; its weight is `rotated(weight)`."""
        padding = (self.kernel[0] - 1 - self.padding[0], self.kernel[1] - 1 - self.padding[1])
        return Convolution(self.filters, self.channels, self.kernel, self.up, self.stride, padding)

    def _fields(self, x_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> tuple[int, ...]:
        images, channels, height, width = x_shape
        _, filters, out_height, out_width = out_shape
        sizes = (images, height, width, channels, out_height, out_width, filters)
        return (*sizes, *self.kernel, self.stride, self.up, *self.padding)

    def _unsized(self) -> tuple[int, ...]:
        return self._fields((1, self.channels, 1, 1), (1, self.filters, 1, 1))


def rotated(weight: Tensor) -> Tensor:
    """The weight [C, K, kh, kw] of the data gradient of the convolution with weight [K, C, kh, kw]."""
    return weight.flip(2, 3).transpose(0, 1)


def supports(algorithm: str, convolution: Convolution) -> bool:
    """Whether an algorithm computes a convolution; "direct" computes every one.

    direct: a product of matrices. narrow: sums along the channels, for 1 to 8 filters. winograd2, winograd4, winograd6:
    F(2x2), F(4x4), F(6x6) of 3x3 kernels with stride and up 1 (arXiv 1509.09308), each less exact than the one before.
    tiles: direct sums in AMX's tiles, each float32 as two bfloat16s, where the instruction set is "amx".

    Raises:
        ShadeFastError: no such algorithm, or no such convolution.
    """
    if algorithm not in NUMBERS:
        raise ShadeFastError(f"algorithm={algorithm!r}: one of {', '.join(ALGORITHMS)}")
    module = native.cpu()
    if not module.convolution_supports(NUMBERS["direct"], convolution._unsized()):
        raise ShadeFastError(f"{convolution}: sizes are at least 1, and one of stride and up is 1")
    return bool(module.convolution_supports(NUMBERS[algorithm], convolution._unsized()))


def pack(algorithm: str, convolution: Convolution, weight: Tensor) -> Tensor:
    """Weights in the order in which the selected instruction set's kernels read them, transformed in float64.

    Those of "tiles" are pairs of bfloat16s in float32's memory.

    Args:
        algorithm: one that `supports` the convolution.
        weight: [filters, channels, *kernel], rounded to float32.

    Returns:
        float32 [n].

    Raises:
        ShadeFastError: the algorithm does not support the convolution, or the weight's shape does not fit it.
    """
    _require(algorithm, convolution)
    if weight.shape != (convolution.filters, convolution.channels, *convolution.kernel):
        raise ShadeFastError(f"weight is {list(weight.shape)}: it does not fit {convolution}")
    module, number = native.cpu(), NUMBERS[algorithm]
    weight = weight.detach().to("cpu", torch.float32).contiguous()
    size = module.packed_weights_size(number, convolution._unsized())
    packed = torch.empty(size, dtype=torch.float32, device="cpu")
    native.check(module, module.pack_weights(number, convolution._unsized(), weight.data_ptr(), packed.data_ptr()))
    return packed


def scratch_size(
    algorithm: str, convolution: Convolution, x_shape: tuple[int, ...], out_shape: tuple[int, ...], threads: int
) -> int:
    """How many float32 values of scratch memory a call takes, on at most `threads` threads."""
    _require(algorithm, convolution)
    fields = convolution._fields(x_shape, out_shape)
    return int(native.cpu().convolution_scratch(NUMBERS[algorithm], fields, threads))


def bind(
    algorithm: str,
    convolution: Convolution,
    packed: Tensor,
    x: Tensor,
    out: Tensor,
    epilogue: Epilogue,
    scratch: Tensor,
    threads: int,
) -> Call:
    """A call of the kernels on these very buffers, which it keeps alive; it returns a status.

    Args:
        algorithm: one that `supports` the convolution.
        packed: from `pack`, under the instruction set that is selected when the call runs.
        x: float32 [B, channels, H, W], channels-last.
        out: float32 [B, filters, h, w], channels-last; h and w are free.
        epilogue: applied to each value before it is stored; its residual may be `out`.
        scratch: float32, `scratch_size` values or more, no other call's meanwhile.
        threads: at most this many; the result does not depend on it.

    Raises:
        ShadeFastError: a tensor does not fit.
    """
    _require(algorithm, convolution)
    for name, tensor in (("x", x), ("out", out)):
        check_channels_last(name, tensor)
        check_device(name, tensor)
    if (x.shape[1], out.shape[1]) != (convolution.channels, convolution.filters) or x.shape[0] != out.shape[0]:
        raise ShadeFastError(f"x {list(x.shape)} and out {list(out.shape)} do not fit {convolution}")
    epilogue.check(out)
    if threads < 1:
        raise ShadeFastError(f"threads={threads}: at least 1")
    module, number = native.cpu(), NUMBERS[algorithm]
    fields = convolution._fields(tuple(x.shape), tuple(out.shape))
    check_scratch(packed, module.packed_weights_size(number, fields), name="packed")
    check_scratch(scratch, module.convolution_scratch(number, fields, threads))
    return bound(module.convolve, number, fields, packed, x, out, epilogue, scratch, threads)


def reference(
    convolution: Convolution, weight: Tensor, x: Tensor, out_size: tuple[int, int], epilogue: Epilogue | None = None
) -> Tensor:
    """The specification, in plain torch, for any float dtype and memory order; returns [B, filters, *out_size]."""
    batch, channels, *size = x.shape
    spread = x.new_zeros(batch, channels, *((length - 1) * convolution.up + 1 if length else 0 for length in size))
    spread[:, :, :: convolution.up, :: convolution.up] = x
    padding = []
    for axis in (1, 0):
        before = convolution.padding[axis]
        needed = (max(out_size[axis], 1) - 1) * convolution.stride + convolution.kernel[axis]
        padding += [before, needed - before - spread.shape[2 + axis]]
    values = functional.conv2d(functional.pad(spread, padding), weight.to(x.dtype), stride=convolution.stride)
    values = values[:, :, : out_size[0], : out_size[1]]
    return values if epilogue is None else epilogue.reference(values)


def _require(algorithm: str, convolution: Convolution) -> None:
    if not supports(algorithm, convolution):
        raise ShadeFastError(f"{algorithm} does not support {convolution}")
