"""The view: what a trainer's loader does to a file before the encoder sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from shade_fast.ops import resize
from shade_fast.terms.checks import whole
from shade_fast.terms.errors import ShadeFastError
from shade_fast.views.transforms import Crop, Draw, Flip, Jpeg, OneOf, Resize, Transform, checked_transforms, compose

#: The transforms of `View.robust`: a resize, a crop or a flip, then JPEG.
ROBUST: tuple[Transform, ...] = (OneOf(Resize(), Crop(), Flip()), Jpeg())


@dataclass(frozen=True)
class View:
    """A trainer's loader: shorter side to `size` with antialiasing, aspect kept, centre crop to the encoder's factor.

    size: pixels of the shorter side, never enlarged to it; None leaves the file's own resolution.
    transforms: what else may happen on the way, in this order. The optimiser draws their parameters anew each step, for
        each image from its own seed; the anchor's latent moves with crops and flips. LPIPS, and every figure of a
        result, is of the view without them.
    Raises ShadeFastError for a size below 1, and for what is not a transform.
    """

    size: int | None = 512
    transforms: tuple[Transform, ...] = ()

    def __post_init__(self) -> None:
        if self.size is not None:
            size = whole(self.size)
            if size is None or size < 1:
                raise ShadeFastError(f"view size={self.size!r}: give a whole number of pixels, or None for no resize")
            object.__setattr__(self, "size", size)
        object.__setattr__(self, "transforms", checked_transforms("view transforms", self.transforms))

    @classmethod
    def robust(cls, size: int | None = 512) -> View:
        """A view through `ROBUST`; docs/strength.md says how much of the shift survives each treatment."""
        return cls(size, ROBUST)

    def plan(self, height: int, width: int, factor: int) -> ViewPlan:
        """The view of images of one size: height, width in pixels; factor is the encoder's pixels per latent.

        Raises ShadeFastError where nothing is left for the encoder to see.
        """
        resized = (height, width)
        shorter = min(height, width)
        if self.size is not None and self.size < shorter:
            longer = int(self.size * max(height, width) / shorter)
            resized = (self.size, longer) if height <= width else (longer, self.size)
        crop = (resized[0] // factor * factor, resized[1] // factor * factor)
        if 0 in crop:
            raise ShadeFastError(
                f"{width}x{height} pixels: the encoder sees multiples of {factor}, and no trainer's loader gives it "
                f"less than {factor}x{factor}; leave this image out, or enlarge it or the view"
            )
        return ViewPlan((height, width), resized, crop, self.transforms)


@dataclass(frozen=True)
class ViewPlan:
    """A view of images of one size. All sizes are (height, width) in pixels."""

    source: tuple[int, int]
    resized: tuple[int, int]
    crop: tuple[int, int]
    transforms: tuple[Transform, ...] = ()

    def draw(self, random: np.random.Generator, *, backend: str = "reference") -> Draw:
        """The transforms in their order, with their parameters drawn, for one image's view [1, 3, *crop]."""
        return compose([transform.draw(random, *self.crop, backend) for transform in self.transforms])

    def apply(self, images: torch.Tensor, *, backend: str = "reference") -> torch.Tensor:
        """What the encoder sees: [B, 3, *source] in [0, 1] -> [B, 3, *crop] in [0, 1]; linear and differentiable.

        backend: `reference` or `native`, as of the op `resize`.
        """
        if self.resized != self.source:
            images = resize(images, self.resized, backend=backend)
        top, left = ((self.resized[axis] - self.crop[axis]) // 2 for axis in (0, 1))
        return images[..., top : top + self.crop[0], left : left + self.crop[1]]
