"""JPEG's arithmetic on tensors: what a file of a quality shows, with a gradient."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

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


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Images as a JPEG file of this quality shows them, colours at half the resolution in both directions.

    images: float [B, 3, h, w] in [0, 1]; sides that are no multiple of 16 are continued with their edge's pixels.
    quality: 1 to 100, libjpeg's scale. Returns the same shape, in [0, 1].

    Its rounding of coefficients has no useful derivative; the gradient is that of all else (straight-through, Bengio
    et al., arXiv 1308.3432), and 0 where the result leaves [0, 1].
    """
    height, width = images.shape[2:]
    down, across = -height % 16, -width % 16
    if down or across:
        images = functional.pad(images, (0, across, 0, down), mode="replicate")
    result: Tensor = _Jpeg.apply(images, quality)  # type: ignore[no-untyped-call]
    return result[..., :height, :width]


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
    factor = 5000 / quality if quality < 50 else 200 - 2 * quality
    steps = ((torch.tensor(table, device=planes.device) * factor + 50) / 100).floor().clamp(1, 255).to(planes)
    grid = (batch * channels, height // 8, 8, width // 8, 8)
    blocks = planes.reshape(grid).transpose(2, 3).reshape(-1, 64)
    coefficients = ((blocks @ transform.T) / steps).round() * steps
    return (coefficients @ transform).view(grid[0], grid[1], grid[3], 8, 8).transpose(2, 3).reshape(planes.shape)


@functools.cache
def _cosines() -> Tensor:
    """The orthonormal transform of a flattened 8x8 block, [64, 64]."""
    place, frequency = np.arange(8)[None], np.arange(8)[:, None]
    one = np.cos((2 * place + 1) * frequency * np.pi / 16) * np.where(frequency == 0, np.sqrt(1 / 8), 0.5)
    return torch.tensor(np.kron(one, one), dtype=torch.float32)


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
