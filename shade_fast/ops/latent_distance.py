"""The objective: the L2 distance of each image's latent to its anchor's."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from shade_fast.ops import gpu, native
from shade_fast.ops.layout import in_order, memory_order
from shade_fast.terms.errors import ShadeFastError


def latent_distance(latents: Tensor, anchor: Tensor, *, backend: str = "native") -> Tensor:
    """Measure how far each latent is from its anchor: distance = ‖latents − anchor‖₂, one figure an image.

    Its gradient is (latents − anchor) / distance, and 0 where the distance is 0; the anchor gets none.

    Args:
        latents: float [B, C, h, w].
        anchor: same shape, dtype and device.
        backend: "native" runs the Triton kernels on CUDA, for float16, bfloat16 and float32; on the CPU, and for
            float64, plain torch is the implementation. "reference" runs plain torch everywhere.

    Returns:
        [B], float64 for float64 latents, else float32; differences and sums are in that dtype. Differentiable once
        in latents ("reference": any number of times).

    Raises:
        ShadeFastError: shapes, dtypes or devices do not fit, or Triton is missing on CUDA.
    """
    if latents.ndim != 4 or latents.shape != anchor.shape or not latents.is_floating_point():
        raise ShadeFastError(
            f"latents are {latents.dtype} {list(latents.shape)}, the anchor is {list(anchor.shape)}: "
            "give two float tensors of one shape [B, C, h, w]"
        )
    if latents.dtype != anchor.dtype or latents.device != anchor.device:
        raise ShadeFastError(
            f"latents are {latents.dtype} on {latents.device}, the anchor is {anchor.dtype} on {anchor.device}: "
            "bring them to one dtype and device"
        )
    if backend == "reference":
        return reference(latents, anchor)
    if backend != "native" or latents.device.type not in native.DEVICES:
        raise native.missing_backend(backend, latents.device)
    distance: Tensor = _operator(latents, anchor)
    return distance


def reference(latents: Tensor, anchor: Tensor) -> Tensor:
    """The specification, in plain torch; arguments as in `latent_distance`."""
    dtype = _sum_dtype(latents)
    difference = latents.to(dtype) - anchor.detach().to(dtype)
    distance: Tensor = torch.linalg.vector_norm(difference.flatten(1), dim=1)
    return distance


@torch.library.custom_op("shade_fast::latent_distance", mutates_args=(), device_types="cpu")
def _operator(latents: Tensor, anchor: Tensor) -> Tensor:
    return reference(latents, anchor)


@_operator.register_kernel("cuda")
def _(latents: Tensor, anchor: Tensor) -> Tensor:
    if latents.dtype == torch.float64:
        return reference(latents, anchor)
    with gpu.selected(latents):
        distance: Tensor = _kernels().forward(*in_order(memory_order(latents), latents, anchor))
    return distance


@_operator.register_fake
def _(latents: Tensor, anchor: Tensor) -> Tensor:
    return latents.new_empty(latents.shape[0], dtype=_sum_dtype(latents))


@torch.library.custom_op("shade_fast::latent_distance_gradient", mutates_args=(), device_types="cpu")
def _gradient_operator(upstream: Tensor, latents: Tensor, anchor: Tensor, distance: Tensor) -> Tensor:
    return _reference_gradient(upstream, latents, anchor, distance)


@_gradient_operator.register_kernel("cuda")
def _(upstream: Tensor, latents: Tensor, anchor: Tensor, distance: Tensor) -> Tensor:
    if latents.dtype == torch.float64:
        return _reference_gradient(upstream, latents, anchor, distance)
    latents, anchor = in_order(memory_order(latents), latents, anchor)
    with gpu.selected(latents):
        gradient: Tensor = _kernels().backward(upstream.contiguous(), latents, anchor, distance)
    return gradient


@_gradient_operator.register_fake
def _(upstream: Tensor, latents: Tensor, anchor: Tensor, distance: Tensor) -> Tensor:
    return torch.empty_like(latents, memory_format=memory_order(latents))


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _differentiate(context: Any, upstream: Tensor) -> tuple[Tensor, None]:
    latents, anchor, distance = context.saved_tensors
    return _gradient_operator(upstream, latents, anchor, distance), None


_operator.register_autograd(_differentiate, setup_context=_save_for_backward)


def _reference_gradient(upstream: Tensor, latents: Tensor, anchor: Tensor, distance: Tensor) -> Tensor:
    factor = torch.where(distance > 0, upstream / distance, 0).view(-1, 1, 1, 1)
    gradient = (factor * (latents.to(factor.dtype) - anchor.to(factor.dtype))).to(latents.dtype)
    return gradient.clone(memory_format=memory_order(latents))


def _sum_dtype(latents: Tensor) -> torch.dtype:
    return torch.float64 if latents.dtype == torch.float64 else torch.float32


def _kernels() -> ModuleType:
    return gpu.triton("latent_distance")
