"""Visual masking: texture hides what flat areas show, so under an LPIPS bound pixels in texture take longer steps."""

from __future__ import annotations

import torch
from torch.nn import functional

from shade_fast.ops.optimizer_update import WHOLE_STEP

#: Pixels of the view on each side over which texture is measured; what is added to it, in levels of 255; and the power
#: by which steps grow with it.
RADIUS, FLOOR, EXPONENT = 4, 1.0, 0.35


@torch.no_grad()
def step_shares(clean: torch.Tensor, seen: tuple[int, int]) -> torch.Tensor:
    """Each value's share of its image's step, in 64ths: uint8 [B, 3, H, W], as `optimizer_update` takes them.

    share = (s + 1)^0.35 over its mean in the image, s being the grey value's standard deviation over 9x9 pixels of the
    view, in levels of 255. At most 4 (255 of the 64ths); an image without texture has 1 everywhere.

    clean: uint8 [B, 3, H, W]. seen: height and width of the whole image as a view shows it; texture is measured there
    where that is smaller.
    """
    size = (clean.shape[2], clean.shape[3])
    grey = clean.sum(dim=1, keepdim=True, dtype=torch.float32) / 3
    if seen[0] < size[0] or seen[1] < size[1]:
        grey = functional.interpolate(grey, (min(seen[0], size[0]), min(seen[1], size[1])), mode="area")
    # A small difference of large squares, so in float64.
    grey = grey.double()
    variance = _around(grey * grey) - _around(grey).square()
    length = ((variance.clamp_min(0).sqrt() + FLOOR) ** EXPONENT).float()
    if grey.shape[2:] != size:
        length = functional.interpolate(length, size, mode="bilinear")
    shares = WHOLE_STEP * length / length.mean(dim=(1, 2, 3), keepdim=True)
    return shares.round().clamp(1, 255).to(torch.uint8).expand_as(clean)


def _around(values: torch.Tensor) -> torch.Tensor:
    """The mean around each pixel, over those inside the image."""
    across = functional.avg_pool2d(values, (1, 2 * RADIUS + 1), 1, (0, RADIUS), count_include_pad=False)
    return functional.avg_pool2d(across, (2 * RADIUS + 1, 1), 1, (RADIUS, 0), count_include_pad=False)
