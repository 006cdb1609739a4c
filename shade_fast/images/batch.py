"""The images of a batch, as a caller may give them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from shade_fast.images import ImageLike
from shade_fast.terms.errors import ShadeFastError


def listed(images: Sequence[ImageLike] | torch.Tensor, name: str = "images") -> Sequence[ImageLike]:
    """The images of a batch. Raises ShadeFastError, which names the argument, for no images and for anything else."""
    if isinstance(images, torch.Tensor):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ShadeFastError(
                f"{name}: a {images.dtype} tensor of shape {tuple(images.shape)}; give uint8 [N, 3, H, W], 0 to 255"
            )
        images = list(images.permute(0, 2, 3, 1).cpu().numpy())
    if isinstance(images, np.ndarray) and images.ndim == 4:
        images = list(images)
    if isinstance(images, str | bytes) or not isinstance(images, Sequence):
        raise ShadeFastError(
            f"{name}: give a sequence of images or a uint8 tensor [N, 3, H, W]; got {type(images).__name__}"
        )
    if not images:
        raise ShadeFastError(f"{name}: none were given; give at least one")
    return images
