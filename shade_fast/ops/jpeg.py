"""JPEG's arithmetic on tensors: what a file of a quality shows, with a gradient."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shade_fast.ops import native
from shade_fast.terms.errors import ShadeFastError

#: ITU-T T.81, annex K: quantisation of luminance and chrominance, rows of 8.
LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)
#: RGB to Y, Cb, Cr, ITU-T T.871.
COLOURS = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)


def jpeg(images: Tensor, quality: int, *, backend: str = "native") -> Tensor:
    """Images as a JPEG file of this quality shows them, colours at half the resolution in both directions.

    Its rounding of coefficients has no useful derivative; the gradient is that of all else (straight-through, Bengio
    et al., arXiv 1308.3432), and 0 where the result leaves [0, 1].

    Args:
        images: float [B, 3, h, w] in [0, 1]; sides that are no multiple of 16 are continued with their edge's pixels.
        quality: 1 to 100, libjpeg's scale.
        backend: "native" runs the compiled kernels for float32 on the CPU; on CUDA, and for other dtypes, plain torch
            is the implementation. "reference" runs plain torch everywhere. Where a coefficient lies near a half, the
            two may round it to different sides.

    Returns:
        The same shape, in [0, 1].

    Raises:
        ShadeFastError: the shape or quality does not fit, or the compiled module is missing.
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:] or not images.is_floating_point():
        raise ShadeFastError(f"images is {images.dtype} {list(images.shape)}: give float [B, 3, h, w]")
    if not 1 <= quality <= 100:
        raise ShadeFastError(f"quality={quality}: give a whole number from 1 to 100")
    if backend == "reference":
        return reference(images, quality)
    if backend != "native" or images.device.type not in native.DEVICES:
        raise native.missing_backend(backend, images.device)
    if images.device.type != "cpu" or images.dtype != torch.float32:
        return reference(images, quality)
    result: Tensor = _NativeJpeg.apply(images, quality)  # type: ignore[no-untyped-call]
    return result


def reference(images: Tensor, quality: int) -> Tensor:
    """The specification, in plain torch; arguments as in `jpeg`."""
    height, width = images.shape[2:]
    down, across = -height % 16, -width % 16
    if down or across:
        images = functional.pad(images, (0, across, 0, down), mode="replicate")
    result: Tensor = _Jpeg.apply(images, quality)  # type: ignore[no-untyped-call]
    return result[..., :height, :width]


class _NativeJpeg(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, quality: int) -> Tensor:
        images = images.contiguous()
        result, inside = torch.empty_like(images), torch.empty_like(images, dtype=torch.uint8)
        tables = [_steps(table, quality).view(8, 8).T.contiguous() for table in (LUMINANCE, CHROMINANCE)]
        _run("jpeg", images.shape, images, *tables, result, inside)
        ctx.save_for_backward(inside)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (inside,) = ctx.saved_tensors
        result = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        _run("jpeg_gradient", gradient.shape, gradient.contiguous(), inside, result)
        return result, None


def _run(name: str, shape: torch.Size, *tensors: Tensor) -> None:
    module = native.cpu()
    scratch = torch.empty(module.jpeg_scratch(*shape[2:]), dtype=torch.float32, device="cpu")
    pointers = [tensor.data_ptr() for tensor in (*tensors, scratch)]
    native.check(module, getattr(module, name)(*pointers, shape[0], *shape[2:], torch.get_num_threads()))


class _Jpeg(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, quality: int) -> Tensor:
        colours = torch.tensor(COLOURS, dtype=images.dtype, device=images.device)
        planes = _mix(colours, 255 * images).round()
        luma = _rounded(planes[:, :1] - 128, LUMINANCE, quality) + 128
        chroma = _enlarge(_rounded(functional.avg_pool2d(planes[:, 1:], 2).round(), CHROMINANCE, quality))
        shown = _mix(torch.linalg.inv(colours), torch.cat([luma, chroma], dim=1)).round() / 255
        ctx.save_for_backward((shown >= 0) & (shown <= 1))
        return shown.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (inside,) = ctx.saved_tensors
        colours = torch.tensor(COLOURS, dtype=gradient.dtype, device=gradient.device)
        planes = _mix(torch.linalg.inv(colours).T, gradient * inside)
        smooth = _repeat(_shrink(planes[:, 1:])) / 4
        return _mix(colours.T, torch.cat([planes[:, :1], smooth], dim=1)), None


def _mix(matrix: Tensor, planes: Tensor) -> Tensor:
    return (matrix @ planes.flatten(2)).view_as(planes)


def _rounded(planes: Tensor, table: tuple[int, ...], quality: int) -> Tensor:
    """Planes [B, C, h, w] with each 8x8 block's cosine coefficients rounded to multiples of the table's."""
    batch, channels, height, width = planes.shape
    transform = _cosines().to(planes)
    steps = _steps(table, quality).to(planes)
    grid = (batch * channels, height // 8, 8, width // 8, 8)
    blocks = planes.reshape(grid).transpose(2, 3).reshape(-1, 64)
    coefficients = ((blocks @ transform.T) / steps).round() * steps
    return (coefficients @ transform).view(grid[0], grid[1], grid[3], 8, 8).transpose(2, 3).reshape(planes.shape)


@functools.lru_cache(maxsize=256)
def _steps(table: tuple[int, ...], quality: int) -> Tensor:
    """A table at a quality, float32 [64], as libjpeg scales it."""
    factor = 5000 / quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table, dtype=torch.float32, device="cpu") * factor + 50) / 100).floor().clamp(1, 255)


@functools.cache
def _cosines() -> Tensor:
    """The orthonormal transform of a flattened 8x8 block, [64, 64]."""
    place, frequency = np.arange(8)[None], np.arange(8)[:, None]
    cosines = np.cos((2 * place + 1) * frequency * np.pi / 16) * np.where(frequency == 0, np.sqrt(1 / 8), 0.5)
    return torch.tensor(np.kron(cosines, cosines), dtype=torch.float32, device="cpu")


def _enlarge(planes: Tensor) -> Tensor:
    """Twice the size by a triangle filter, as libjpeg does."""
    return functional.interpolate(planes, scale_factor=2, mode="bilinear")


def _shrink(gradient: Tensor) -> Tensor:
    """The adjoint of `_enlarge`."""
    adjoint: Tensor = torch.ops.aten.upsample_bilinear2d_backward(
        gradient.contiguous(),
        [gradient.shape[2], gradient.shape[3]],
        [*gradient.shape[:2], gradient.shape[2] // 2, gradient.shape[3] // 2],
        False,
    )
    return adjoint


def _repeat(planes: Tensor) -> Tensor:
    return planes.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
