"""One layer's share of the LPIPS distance, and its gradient in the activations (arXiv 1801.03924, equation 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shade_fast.errors import ShadeFastError
from shade_fast.ops import native
from shade_fast.ops.binding import bound, check_array, check_images, check_scratch, extent
from shade_fast.ops.finish import Call, Finish

EPSILON = 1e-10


def lpips_layer(activations: Tensor, clean: Tensor, head: Tensor, *, backend: str = "native") -> Tensor:
    """Measure how far activations are from the clean image's, whose directions were computed before.

        distance = mean over pixels of Σ_c head[c] · (unit(activations)[c] - clean[c])²,
        unit(a) = a / (|a| + 1e-10), the length being over the channels of each pixel

    A pixel whose length is 0 has the unit 0 and the gradient 0. `clean` and `head` get no gradient.

    Args:
        activations: float [B, C, h, w], a network's.
        clean: same shape, dtype and device; `unit_length` of the clean image's activations.
        head: [C], same dtype and device, weights of 0 or more.
        backend: "native" runs the compiled kernels for float32 on the CPU, on channels-last copies where the input is
            not channels-last; on CUDA, and for other dtypes, plain torch is the implementation. "reference" runs plain
            torch everywhere.

    Returns:
        [B], same dtype. Differentiable once in activations ("reference": any number of times).

    Raises:
        ShadeFastError: shapes, dtypes or devices do not fit, or the compiled module is missing.
    """
    _check(activations, clean, head)
    if backend == "reference":
        return reference(activations, clean, head)
    if backend != "native" or activations.device.type not in ("cpu", "cuda"):
        raise native.missing_backend(backend, activations.device)
    distance: Tensor = _operator(activations, clean, head)
    return distance


def unit_length(activations: Tensor, *, backend: str = "native") -> Tensor:
    """The directions of activations [B, C, h, w]: activations / (|activations| + 1e-10), 0 where the length is 0.

    Arguments, result and errors as in `lpips_layer`; differentiable with backend="reference" only.
    """
    if activations.ndim != 4 or not activations.is_floating_point():
        raise ShadeFastError(f"activations are {activations.dtype} {list(activations.shape)}: give float [B, C, h, w]")
    if backend == "reference":
        return reference_unit(activations)
    if backend != "native" or activations.device.type not in ("cpu", "cuda"):
        raise native.missing_backend(backend, activations.device)
    unit: Tensor = _unit_operator(activations)
    return unit


def reference(activations: Tensor, clean: Tensor, head: Tensor) -> Tensor:
    """The specification, in plain torch; arguments as in `lpips_layer`."""
    # The head comes after the mean over pixels: the same sum, without a weighted copy of the feature map.
    return torch.mv((reference_unit(activations) - clean.detach()).square().mean(dim=(2, 3)), head.detach())


def reference_unit(activations: Tensor) -> Tensor:
    """The specification of `unit_length`, in plain torch."""
    unit: Tensor = activations / _divisor(torch.linalg.vector_norm(activations, dim=1, keepdim=True))
    return unit


def reference_gradient(upstream: Tensor, activations: Tensor, clean: Tensor, head: Tensor) -> Tensor:
    """The gradient of Σ upstream · distance in the activations, in plain torch.

    With u = unit(a), d = 2 · upstream / pixels · head · (u - clean): (d - a · Σ_c(u · d) / |a|) / (|a| + 1e-10).
    """
    length: Tensor = torch.linalg.vector_norm(activations, dim=1, keepdim=True)
    unit = activations / _divisor(length)
    pixels = activations.shape[2] * activations.shape[3]
    outer = (2 / pixels * upstream)[:, None, None, None] * head[:, None, None] * (unit - clean)
    inner = (unit * outer).sum(1, keepdim=True) / length.masked_fill(length == 0, torch.inf)
    gradient: Tensor = (outer - activations * inner) / _divisor(length)
    return gradient


def _divisor(length: Tensor) -> Tensor:
    # Divided by infinity, a pixel of length 0 is 0, and so is its gradient.
    divisor: Tensor = (length + EPSILON).masked_fill(length == 0, torch.inf)
    return divisor


def bind(activations: Tensor, clean: Tensor, head: Tensor, distance: Tensor, scratch: Tensor, threads: int) -> Call:
    """distance [B] of dense channels-last float32 activations and clean [B, C, h, w]; head [C]; no allocation."""
    check_images(activations, clean=clean)
    check_array("head", head, (activations.shape[1],))
    check_array("distance", distance, (activations.shape[0],))
    check_scratch(scratch, scratch_size(activations.shape))
    return bound(native.cpu().lpips_layer, activations, clean, head, distance, extent(activations), scratch, threads)


def bind_gradient(
    activations: Tensor, clean: Tensor, head: Tensor, upstream: Tensor, out: Tensor, finish: Finish, threads: int
) -> Call:
    """out = finish(the gradient of Σ upstream[b] · distance[b] in the activations); out may be the activations."""
    check_images(out, activations=activations, clean=clean)
    check_array("head", head, (out.shape[1],))
    check_array("upstream", upstream, (out.shape[0],))
    finish.check(out)
    kernel = native.cpu().lpips_layer_gradient
    return bound(kernel, activations, clean, head, upstream, out, extent(out), finish, threads)


def bind_unit(activations: Tensor, out: Tensor, threads: int) -> Call:
    """out = unit_length(activations), both dense channels-last float32 [B, C, h, w]."""
    check_images(out, activations=activations)
    return bound(native.cpu().unit_length, activations, out, extent(out), threads)


def scratch_size(shape: Sequence[int]) -> int:
    """How many float32 values of scratch memory the distance of activations [B, C, h, w] needs."""
    images, channels, height, width = shape
    size: int = native.cpu().lpips_layer_scratch((images, height * width, channels))
    return size


@torch.library.custom_op("shade_fast::lpips_layer", mutates_args=())
def _operator(activations: Tensor, clean: Tensor, head: Tensor) -> Tensor:
    if not _has_kernels(activations):
        return reference(activations, clean, head)
    activations, clean = _channels_last(activations), _channels_last(clean)
    distance = activations.new_empty(activations.shape[0])
    scratch = activations.new_empty(scratch_size(activations.shape))
    _run(bind(activations, clean, head.contiguous(), distance, scratch, torch.get_num_threads()))
    return distance


@_operator.register_fake
def _(activations: Tensor, clean: Tensor, head: Tensor) -> Tensor:
    return activations.new_empty(activations.shape[0])


@torch.library.custom_op("shade_fast::lpips_layer_gradient", mutates_args=())
def _gradient_operator(upstream: Tensor, activations: Tensor, clean: Tensor, head: Tensor) -> Tensor:
    if not _has_kernels(activations):
        return _channels_last(reference_gradient(upstream, activations, clean, head))
    activations, clean = _channels_last(activations), _channels_last(clean)
    out = torch.empty_like(activations, memory_format=torch.channels_last)
    arguments = (activations, clean, head.contiguous(), upstream.contiguous(), out)
    _run(bind_gradient(*arguments, Finish(), torch.get_num_threads()))
    return out


@_gradient_operator.register_fake
def _(upstream: Tensor, activations: Tensor, clean: Tensor, head: Tensor) -> Tensor:
    return torch.empty_like(activations, memory_format=torch.channels_last)


@torch.library.custom_op("shade_fast::unit_length", mutates_args=())
def _unit_operator(activations: Tensor) -> Tensor:
    if not _has_kernels(activations):
        return _channels_last(reference_unit(activations))
    activations = _channels_last(activations)
    out = torch.empty_like(activations, memory_format=torch.channels_last)
    _run(bind_unit(activations, out, torch.get_num_threads()))
    return out


@_unit_operator.register_fake
def _(activations: Tensor) -> Tensor:
    return torch.empty_like(activations, memory_format=torch.channels_last)


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
    return _gradient_operator(upstream, *ctx.saved_tensors), None, None


def _refuse(ctx: Any, upstream: Tensor) -> None:
    raise ShadeFastError("the compiled lpips_layer is differentiable once, unit_length not at all: take the reference")


_operator.register_autograd(_differentiate, setup_context=_keep_inputs)
_gradient_operator.register_autograd(_refuse)
_unit_operator.register_autograd(_refuse)


def _has_kernels(activations: Tensor) -> bool:
    return activations.device.type == "cpu" and activations.dtype == torch.float32


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _run(call: Call) -> None:
    native.check(native.cpu(), call())


def _check(activations: Tensor, clean: Tensor, head: Tensor) -> None:
    if activations.ndim != 4 or activations.shape != clean.shape or not activations.is_floating_point():
        raise ShadeFastError(
            f"activations are {activations.dtype} {list(activations.shape)}, clean ones {list(clean.shape)}: "
            "give two float tensors of one shape [B, C, h, w]"
        )
    if head.shape != activations.shape[1:2]:
        raise ShadeFastError(f"head is {list(head.shape)}: activations have {activations.shape[1]} channels")
    for name, other in (("clean", clean), ("head", head)):
        if other.dtype != activations.dtype or other.device != activations.device:
            raise ShadeFastError(
                f"activations are {activations.dtype} on {activations.device}, {name} is {other.dtype} on "
                f"{other.device}: bring them to one dtype and device"
            )
