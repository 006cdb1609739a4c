"""Networks of half precision between float32 images and float32 results.

Weights and activations have 16 bits; what sums many values up (a norm's statistics, distances, a gradient's largest
value) stays float32. Gradients of distances are far below what float16 can hold, so each image's are multiplied, where
they enter the network, to a largest magnitude of `LARGEST`, and the image's gradient is divided by the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from shade_fast.runtime.names import FLOAT32, PRECISIONS

#: Of an image's gradients that enter a network: far from float16's 65504, and its 6e-8 far from what counts.
LARGEST = 64.0
#: Gradients below count as none.
LEAST = 1e-30


class Summing(Protocol):
    """A module that sums up what a network makes, in float32."""

    def over(self, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """The same sums over what `change` makes of the network."""


def in_precision(module: nn.Module, precision: str) -> nn.Module:
    """The module with its weights and activations in a precision, a copy; itself for float32.

    Of a `Summing` module the network alone is changed.
    """
    if precision == FLOAT32:
        return module
    dtype = PRECISIONS[precision].dtype
    if hasattr(module, "over"):
        return cast(Summing, module).over(lambda network: Half(network, dtype))
    return Half(module, dtype)


class Half(nn.Module):
    """A copy of a network, from images to a tensor or several, whose weights and activations are of `dtype`."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Any:
        """float32 [B, 3, h, w] to float32."""
        outputs = self.network(images.to(self.dtype))
        return widen(outputs) if isinstance(outputs, Tensor) else tuple(widen(output) for output in outputs)


@torch.library.custom_op("shade_fast::widen", mutates_args=())
def widen(values: Tensor) -> Tensor:
    """A network's result in float32. An operator of its own: gradients enter the network here."""
    return values.to(torch.float32, copy=True)


@widen.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values, dtype=torch.float32)


def _keep_dtype(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.dtype = inputs[0].dtype


def _narrow(ctx: Any, upstream: Tensor) -> Tensor:
    return upstream.to(ctx.dtype)


widen.register_autograd(_narrow, setup_context=_keep_dtype)


def scale_of(entering: list[Tensor]) -> Tensor:
    """What to multiply gradients [B, ...] with, [B, 1, 1, 1]: each image's largest becomes `LARGEST`."""
    largest = torch.stack([gradient.flatten(1).abs().amax(dim=1) for gradient in entering]).amax(dim=0)
    return (LARGEST / largest.clamp_min(LEAST))[:, None, None, None]
