"""How much memory an image takes on a CPU, estimated before it is begun."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from shade_fast import runtime
from shade_fast.encoders import Encoder
from shade_fast.perceptual import Perceptual
from shade_fast.views import ViewPlan

#: Bytes of the engine's own tensors for each pixel of the image, of its view, and of a view that autograd tracks to the
#: encoder: perturbation, momentum, gradient, the best so far, and intermediates.
OF_A_PIXEL, OF_A_VIEW_PIXEL, OF_ITS_GRADIENT = 70, 100, 80
#: Sides of the images that torch's memory is measured at.
SIDES = (128, 256)
#: How much more torch and ONNX Runtime take than autograd keeps: copies in other orders, and what allocators hold on
#: to.
TORCH, ONNX = 1.25, 3.6


class Footprint:
    """Bytes that one image takes, by the networks that move it and its size.

    For frozen networks it is what their programs plan. Where torch runs them it is what autograd keeps: measured on two
    small images, and extended as a linear and (for attention) quadratic function of pixels. ONNX Runtime takes a
    multiple of that. A network that takes no small images is left out.

    together: whether the optimiser keeps all networks' steps at the same time, as the paper's loop does.
    """

    def __init__(self, encoders: Sequence[Encoder], perceptual: Perceptual | None, together: bool) -> None:
        self._encoders = encoders
        self._perceptual = perceptual
        self._joint = together
        # Each ONNX Runtime session keeps the memory that it once had.
        self._together = together or any(isinstance(encoder.module, runtime.OnnxNetwork) for encoder in encoders)
        self._measured: dict[nn.Module, tuple[float, float]] = {}

    def bytes(self, plan: ViewPlan) -> int:
        """Bytes for one image with this view."""
        steps = [self._of_encoder(encoder, plan.crop) for encoder in self._encoders]
        step, kept = sum(steps) if self._together else max(steps), 0
        if self._perceptual is not None:
            perceptual, kept = self._of_perceptual(self._perceptual, plan.crop)
            step = step + perceptual if self._together else max(step, perceptual)
        of_view = OF_A_VIEW_PIXEL + (OF_ITS_GRADIENT if plan.transforms or self._joint else 0)
        return step + kept + OF_A_PIXEL * math.prod(plan.source) + of_view * math.prod(plan.crop)

    def _of_encoder(self, encoder: Encoder, size: tuple[int, int]) -> int:
        module = encoder.module
        needs = module.needs((1, 3, *size)) if isinstance(module, runtime.Frozen) else None
        if needs is not None:
            return needs.bytes
        plain = _plain(module)
        return self._grown(module, lambda images: [plain(images)], encoder.factor, size)

    def _of_perceptual(self, perceptual: Perceptual, size: tuple[int, int]) -> tuple[int, int]:
        """Bytes of its step, and of the clean image's features, which stay."""
        clean, distances = perceptual.clean_side, perceptual.distances
        if isinstance(clean, runtime.Frozen) and isinstance(distances, runtime.Frozen):
            features = clean.needs((1, 3, *size), differentiable=False)
            step = None if features is None else distances.needs((1, 3, *size), *features.outputs)
            if features is not None and step is not None:
                return max(features.bytes, step.bytes), sum(4 * math.prod(shape) for shape in features.outputs)

        def run(images: Tensor) -> Iterable[Tensor]:
            shares: Iterable[Tensor] = _plain(distances)(images, *_plain(clean)(images.detach()))
            return shares

        # The features are what autograd keeps of the clean side.
        return self._grown(distances, run, 1, size), 0

    def _grown(
        self, network: nn.Module, run: Callable[[Tensor], Iterable[Tensor]], factor: int, size: tuple[int, int]
    ) -> int:
        """Bytes at a size, from those at two small ones."""
        if network not in self._measured:
            sides = [-(-side // factor) * factor for side in SIDES]
            few, many = (side * side for side in sides)
            try:
                small, large = (_kept_by(run, _plain(network), torch.rand(1, 3, side, side)) for side in sides)
            except Exception:  # a caller's encoder that takes a single size may raise anything
                small = large = 0
            square = max(0.0, (large / many - small / few) / (many - few))
            self._measured[network] = (large / many - square * many, square)
        line, square = self._measured[network]
        pixels, more = math.prod(size), ONNX if isinstance(network, runtime.OnnxNetwork) else TORCH
        return int(more * (line * pixels + square * pixels * pixels))


def _plain(network: nn.Module) -> nn.Module:
    """The module as torch runs it."""
    return network.module if isinstance(network, runtime.Frozen | runtime.OnnxNetwork) else network


def _kept_by(run: Callable[[Tensor], Iterable[Tensor]], module: nn.Module, images: Tensor) -> int:
    """Bytes that autograd keeps for the gradient in images, with room for the largest gradient and its source."""
    known = {weight.untyped_storage().data_ptr() for weight in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = list(run(images.requires_grad_()))
    bytes_kept = sum(kept.values()) + 2 * max(kept.values(), default=0)
    del outputs
    return bytes_kept
