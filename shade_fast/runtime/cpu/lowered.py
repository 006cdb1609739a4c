"""What a graph is lowered to: layers in the order of the forward, from images to outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from shade_fast.runtime.cpu.layers import Layer
from shade_fast.runtime.cpu.values import Value


@dataclass(eq=False)
class ImagesLayer:
    """The images as the first layers take them: scale · images + shift, per channel, channels-last."""

    output: Value
    scale: Tensor | None
    shift: Tensor | None


@dataclass(eq=False)
class LoweredNetwork:
    """Layers in the order of the forward, from images to outputs. The images' affine map is the first layer's."""

    layers: list[Layer]
    images: list[ImagesLayer]
    outputs: list[Value]
    #: size and strides of each output
    views: list[tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def separable(self) -> bool:
        """Whether each image's results are known to be of that image alone: nothing here mixes images but torch's ops
        may, and memory that is cut into other images than there are."""
        batch = self.images[0].output.dims[0] if self.images else 0
        cuts = [operand.dims for layer in self.layers for operand in layer.operands()]
        cuts += [layer.output.dims for layer in self.layers]
        return (
            not any(layer.mixes_images for layer in self.layers)
            and all(dims[0] == batch for dims in cuts)
            and all(size[:1] == (batch,) and strides[0] == math.prod(size[1:]) for size, strides in self.views)
        )

    @property
    def largest(self) -> int:
        """Bytes of the largest value of one image."""
        return max((4 * math.prod(layer.output.dims[1:]) for layer in self.layers), default=0)
