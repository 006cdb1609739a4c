"""One layer's share of the LPIPS distance, and its gradient in the activations (arXiv 1801.03924, equation 1)."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from shade_fast.ops import gpu, native
from shade_fast.ops.binding import bound, check_array, check_images, check_scratch, extent
from shade_fast.ops.epilogue import Epilogue
from shade_fast.ops.layout import channels_last
from shade_fast.ops.native import Call
from shade_fast.terms.errors import ShadeFastError

EPSILON = 1e-10


def lpips_layer(activations: Tensor, clean: Tensor, head: Tensor, *, backend: str = "native") -> Tensor:
    """Measure how far activations are from the clean image's, whose directions were computed before.

        distance = mean over pixels of Σ_c head[c] · (unit(activations)[c] - clean[c])²,
        unit(a) = a / (|a| + 1e-10), the length being over the channels of each pixel

    A pixel whose length is 0 has the unit 0 and the gradient 0. `clean` and `head` get no gradient.

    Args:
        activations: float [B, C, h, w], a network's.
        clean: same shape, dtype and device; `unit_length` of the clean image's activations.
        head: [C], same device, of the same dtype or float32, weights of 0 or more.
        backend: "native" runs the compiled kernels for float32 on the CPU, and the Triton kernels for float32, float16
            and bfloat16 on CUDA, on channels-last copies where the input is not channels-last; for other dtypes plain
            torch is the implementation. "reference" runs plain torch everywhere.

    Returns:
        [B], float64 for float64 activations, else float32; everything in between is of that dtype. Differentiable once
        in activations ("reference": any number of times).

    Raises:
        ShadeFastError: shapes, dtypes or devices do not fit, or the compiled module is missing.
    """
    check(activations, clean, head)
    if backend == "reference":
        return reference(activations, clean, head)
    if backend != "native" or activations.device.type not in native.DEVICES:
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
    if backend != "native" or activations.device.type not in native.DEVICES:
        raise native.missing_backend(backend, activations.device)
    unit: Tensor = _unit_operator(activations)
    return unit


def reference(activations: Tensor, clean: Tensor, head: Tensor) -> Tensor:
    """The specification, in plain torch; arguments as in `lpips_layer`."""
    activations, clean, head = _summed(activations, clean.detach(), head.detach())
    # The head comes after the mean over pixels: the same sum, without a weighted copy of the feature map.
    return torch.mv((reference_unit(activations) - clean).square().mean(dim=(2, 3)), head)


def reference_unit(activations: Tensor) -> Tensor:
    """The specification of `unit_length`, in plain torch."""
    (values,) = _summed(activations)
    unit: Tensor = values / _divisor(torch.linalg.vector_norm(values, dim=1, keepdim=True))
    return unit.to(activations.dtype)


def reference_gradient(upstream: Tensor, activations: Tensor, clean: Tensor, head: Tensor) -> Tensor:
    """The gradient of Σ upstream · distance in the activations, in plain torch.

    With u = unit(a), d = 2 · upstream / pixels · head · (u - clean): (d - a · Σ_c(u · d) / |a|) / (|a| + 1e-10).
    """
    values, clean, head = _summed(activations, clean, head)
    length: Tensor = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    unit = values / _divisor(length)
    pixels = values.shape[2] * values.shape[3]
    outer = (2 / pixels * upstream)[:, None, None, None] * head[:, None, None] * (unit - clean)
    inner = (unit * outer).sum(1, keepdim=True) / length.masked_fill(length == 0, torch.inf)
    gradient: Tensor = (outer - values * inner) / _divisor(length)
    return gradient.to(activations.dtype)


def _sum_dtype(activations: Tensor) -> torch.dtype:
    return torch.float64 if activations.dtype == torch.float64 else torch.float32


def _summed(activations: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Tensors in the dtype of the sums."""
    return tuple(tensor.to(_sum_dtype(activations)) for tensor in (activations, *others))


def _divisor(length: Tensor) -> Tensor:
    # Divided by infinity, a pixel of length 0 is 0, and so is its gradient.
    divisor: Tensor = (length + EPSILON).masked_fill(length == 0, torch.inf)
    return divisor


def bind(activations: Tensor, clean: Tensor, head: Tensor, distance: Tensor, scratch: Tensor, threads: int) -> Call:
    """distance [B] of dense channels-last activations and clean [B, C, h, w]; head [C]; no allocation.

    float32 on the CPU; on a GPU also float16 or bfloat16, distance and scratch staying float32.
    """
    check_images(activations, or_gpu=True, clean=clean)
    _check_arrays(activations, head, distance=distance)
    device = "cuda" if gpu.on_gpu(activations) else "cpu"
    check_scratch(scratch, scratch_size(activations.shape, device), activations.device)
    arrays = (activations, clean, head, distance)
    if gpu.on_gpu(activations):
        return gpu.launched(_kernels().forward, activations, *arrays, scratch)
    return bound(native.cpu().lpips_layer, *arrays, extent(activations), scratch, threads)


def bind_gradient(
    activations: Tensor, clean: Tensor, head: Tensor, upstream: Tensor, out: Tensor, epilogue: Epilogue, threads: int
) -> Call:
    """out = epilogue(the gradient of Σ upstream[b] · distance[b] in the activations); out may be the activations.

    Tensors as in `bind`; on a GPU without a epilogue.
    """
    check_images(out, or_gpu=True, activations=activations, clean=clean)
    _check_arrays(out, head, upstream=upstream)
    epilogue.check(out)
    arrays = (activations, clean, head, upstream, out)
    if gpu.on_gpu(out):
        if epilogue.relu or any(isinstance(part, Tensor) for part in epilogue):
            raise ShadeFastError("on a GPU an LPIPS layer's gradient takes no epilogue")
        return gpu.launched(_kernels().backward, out, *arrays)
    return bound(native.cpu().lpips_layer_gradient, *arrays, extent(out), epilogue, threads)


def _check_arrays(activations: Tensor, head: Tensor, **of_images: Tensor) -> None:
    dtype = head.dtype if gpu.on_gpu(activations) and head.dtype == activations.dtype else torch.float32
    check_array("head", head, (activations.shape[1],), dtype, activations.device)
    for name, tensor in of_images.items():
        check_array(name, tensor, (activations.shape[0],), device=activations.device)


def _kernels() -> ModuleType:
    return gpu.triton("lpips_layer")


def bind_unit(activations: Tensor, out: Tensor, threads: int) -> Call:
    """out = unit_length(activations), both dense channels-last float32 [B, C, h, w]."""
    check_images(out, activations=activations)
    return bound(native.cpu().unit_length, activations, out, extent(out), threads)


def scratch_size(shape: Sequence[int], device: str = "cpu") -> int:
    """How many float32 values of scratch memory the distance of activations [B, C, h, w] needs."""
    images, channels, height, width = shape
    if device == "cuda":
        size: int = _kernels().scratch_size(images, height * width, channels)
    else:
        size = native.cpu().lpips_layer_scratch((images, height * width, channels))
    return size


@torch.library.custom_op("shade_fast::lpips_layer", mutates_args=())
def _operator(activations: Tensor, clean: Tensor, head: Tensor) -> Tensor:
    if not _has_kernels(activations):
        return reference(activations, clean, head)
    activations, clean = channels_last(activations), channels_last(clean)
    distance, scratch = new_distance(activations), new_scratch(activations)
    _run(bind(activations, clean, head.contiguous(), distance, scratch, torch.get_num_threads()))
    return distance


@_operator.register_fake
def _(activations: Tensor, clean: Tensor, head: Tensor) -> Tensor:
    return new_distance(activations)


@torch.library.custom_op("shade_fast::lpips_layer_gradient", mutates_args=())
def _gradient_operator(upstream: Tensor, activations: Tensor, clean: Tensor, head: Tensor) -> Tensor:
    if not _has_kernels(activations):
        return channels_last(reference_gradient(upstream, activations, clean, head))
    activations, clean = channels_last(activations), channels_last(clean)
    out = torch.empty_like(activations, memory_format=torch.channels_last)
    arguments = (activations, clean, head.contiguous(), upstream.contiguous(), out)
    _run(bind_gradient(*arguments, Epilogue(), torch.get_num_threads()))
    return out


@_gradient_operator.register_fake
def _(upstream: Tensor, activations: Tensor, clean: Tensor, head: Tensor) -> Tensor:
    return torch.empty_like(activations, memory_format=torch.channels_last)


@torch.library.custom_op("shade_fast::unit_length", mutates_args=())
def _unit_operator(activations: Tensor) -> Tensor:
    if gpu.on_gpu(activations) or not _has_kernels(activations):
        return channels_last(reference_unit(activations))
    activations = channels_last(activations)
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
    return activations.dtype in (gpu.DTYPES if gpu.on_gpu(activations) else (torch.float32,))


def new_distance(activations: Tensor) -> Tensor:
    """Room for the distance [B] of activations."""
    return activations.new_empty(activations.shape[0], dtype=_sum_dtype(activations))


def new_scratch(activations: Tensor) -> Tensor:
    """Room for the kernels' sums."""
    device = "cuda" if gpu.on_gpu(activations) else "cpu"
    return activations.new_empty(scratch_size(activations.shape, device), dtype=torch.float32)


def _run(call: Call) -> None:
    status = call()
    if status:
        native.check(native.cpu(), status)


def check(activations: Tensor, clean: Tensor, head: Tensor) -> None:
    """Raise ShadeFastError unless clean features and head fit activations."""
    if activations.ndim != 4 or activations.shape != clean.shape or not activations.is_floating_point():
        raise ShadeFastError(
            f"activations are {activations.dtype} {list(activations.shape)}, clean ones {list(clean.shape)}: "
            "give two float tensors of one shape [B, C, h, w]"
        )
    if head.shape != activations.shape[1:2]:
        raise ShadeFastError(f"head is {list(head.shape)}: activations have {activations.shape[1]} channels")
    for name, other in (("clean", clean), ("head", head)):
        dtypes = (activations.dtype,) if name == "clean" else (activations.dtype, _sum_dtype(activations))
        if other.dtype not in dtypes or other.device != activations.device:
            raise ShadeFastError(
                f"activations are {activations.dtype} on {activations.device}, {name} is {other.dtype} on "
                f"{other.device}: bring them to one dtype and device"
            )
