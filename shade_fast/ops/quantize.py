"""Rounding of perturbed images to uint8, inside the L-infinity box."""

from __future__ import annotations

import torch
from torch import Tensor

from shade_fast.ops import gpu, native
from shade_fast.ops.layout import check_images, check_levels, in_order, memory_order, per_image
from shade_fast.terms.errors import ShadeFastError


def quantize(clean: Tensor, delta: Tensor, scale: Tensor, *, levels: int, backend: str = "native") -> Tensor:
    """Add a scaled perturbation to every image, as whole uint8 levels inside the L-infinity box.

        change = clamp(round_half_even((255 * scale) * delta), -levels, levels)
        result = clamp(clean + change, 0, 255)

    in float32, with one scale for each image; a change that is NaN counts as 0.

    Args:
        clean: uint8 [B, 3, H, W], the clean images.
        delta: float32 [B, 3, H, W], the perturbation in [0, 1] pixel units.
        scale: float32 [B], what each image's perturbation is multiplied by.
        levels: largest change of a value, a whole number in [0, 255]; floor(255 * linf) for a bound linf.
        backend: "native" for the compiled kernels, "reference" for plain torch.

    Returns:
        uint8 [B, 3, H, W], in the memory order of `clean`.

    Any strides are allowed; contiguous and channels-last tensors of one order are read without a copy.

    Raises:
        ShadeFastError: shapes, dtypes, devices or levels do not fit, or the compiled module is missing.
    """
    _check(clean, delta, scale, levels)
    with torch.no_grad():
        if backend == "reference":
            return reference(clean, delta, scale, levels)
        if backend != "native" or clean.device.type not in native.DEVICES:
            raise native.missing_backend(backend, clean.device)
        result: Tensor = _operator(clean, delta, scale, levels)
        return result


def reference(clean: Tensor, delta: Tensor, scale: Tensor, levels: int) -> Tensor:
    """The specification, in plain torch; arguments as in `quantize`."""
    change = (255 * scale).view(-1, 1, 1, 1) * delta
    change = torch.where(change.isnan(), 0, change).round().clamp(-levels, levels)
    result = (clean.float() + change).clamp(0, 255).to(torch.uint8)
    return result.clone(memory_format=memory_order(clean))


@torch.library.custom_op("shade_fast::quantize", mutates_args=(), device_types="cpu")
def _operator(clean: Tensor, delta: Tensor, scale: Tensor, levels: int) -> Tensor:
    module = native.cpu()
    clean, delta, scale, result = _arguments(clean, delta, scale)
    pointers = [tensor.data_ptr() for tensor in (clean, delta, scale, result)]
    native.check(module, module.quantize(*pointers, *per_image(clean), levels, torch.get_num_threads()))
    return result


@_operator.register_kernel("cuda")
def on_gpu(clean: Tensor, delta: Tensor, scale: Tensor, levels: int) -> Tensor:
    """The compiled CUDA kernel."""
    module = native.cuda()
    with gpu.stream(clean) as stream:
        clean, delta, scale, result = _arguments(clean, delta, scale)
        pointers = [tensor.data_ptr() for tensor in (clean, delta, scale, result)]
        native.check(module, module.quantize(*pointers, *per_image(clean), levels, stream))
    return result


@_operator.register_fake
def _(clean: Tensor, delta: Tensor, scale: Tensor, levels: int) -> Tensor:
    return torch.empty_like(clean, memory_format=memory_order(clean))


def _arguments(clean: Tensor, delta: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    order = memory_order(clean)
    clean, delta = in_order(order, clean, delta)
    return clean, delta, scale.contiguous(), torch.empty_like(clean, memory_format=order)


def _check(clean: Tensor, delta: Tensor, scale: Tensor, levels: int) -> None:
    check_images(clean, delta=delta)
    if scale.dtype != torch.float32 or scale.shape != clean.shape[:1]:
        raise ShadeFastError(f"scale is {scale.dtype} {list(scale.shape)}: give float32 [{clean.shape[0]}]")
    if scale.device != clean.device:
        raise ShadeFastError(f"scale is on {scale.device}, clean on {clean.device}: move it there")
    check_levels(levels)
