"""From a network's bfloat16 input back to uint8 images, inside the L-infinity box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shade_fast.ops import gpu, native
from shade_fast.ops.layout import check_images, check_levels, in_order, per_image
from shade_fast.ops.normalize import check_factors, factors
from shade_fast.terms.errors import ShadeFastError


def denormalize(
    values: Tensor,
    clean: Tensor,
    *,
    levels: int,
    gain: Sequence[float] = (2.0, 2.0, 2.0),
    offset: Sequence[float] = (-1.0, -1.0, -1.0),
    backend: str = "native",
) -> Tensor:
    """Take what `normalize` made back to whole uint8 levels, none further than `levels` from the clean image's.

        change = clamp(round_half_even((values - offset[c]) / gain[c] * 255 - clean), -levels, levels)
        result = clamp(clean + change, 0, 255)

    in float32; a change that is NaN counts as 0. With gains of up to 2, bfloat16 tells neighbouring levels apart.

    Args:
        values: bfloat16 [B, 3, H, W].
        clean: uint8 [B, 3, H, W], the clean images.
        levels: largest change of a value, a whole number in [0, 255].
        gain, offset, backend: as in `normalize`.

    Returns:
        uint8 [B, 3, H, W], channels-last.

    Any strides are allowed; channels-last tensors are read without a copy.

    Raises:
        ShadeFastError: shapes, dtypes, devices, factors or levels do not fit, or the compiled module is missing.
    """
    check_images(clean)
    check_factors(gain, offset)
    if values.dtype != torch.bfloat16 or values.shape != clean.shape or values.device != clean.device:
        raise ShadeFastError(
            f"values are {values.dtype} {list(values.shape)} on {values.device}: "
            f"give bfloat16 {list(clean.shape)} on {clean.device}, as clean has"
        )
    check_levels(levels)
    with torch.no_grad():
        if backend == "reference":
            return reference(values, clean, levels, gain, offset)
        if backend != "native" or clean.device.type not in native.DEVICES:
            raise native.missing_backend(backend, clean.device)
        result: Tensor = _operator(values, clean, levels, list(gain), list(offset))
        return result


def reference(values: Tensor, clean: Tensor, levels: int, gain: Sequence[float], offset: Sequence[float]) -> Tensor:
    """The specification, in plain torch; arguments as in `denormalize`."""
    factor, shift = factors(gain, offset, clean.device)
    change = (values.float() - shift) / factor * 255 - clean.float()
    change = torch.where(change.isnan(), 0, change).round().clamp(-levels, levels)
    result = (clean.float() + change).clamp(0, 255).to(torch.uint8)
    return result.contiguous(memory_format=torch.channels_last)


_operator = torch.library.custom_op("shade_fast::denormalize", reference, mutates_args=(), device_types="cpu")


@_operator.register_kernel("cuda")
def on_gpu(values: Tensor, clean: Tensor, levels: int, gain: Sequence[float], offset: Sequence[float]) -> Tensor:
    """The compiled CUDA kernel."""
    module = native.cuda()
    with gpu.stream(clean) as stream:
        values, clean = in_order(torch.channels_last, values, clean)
        result = torch.empty_like(clean)
        pointers = [tensor.data_ptr() for tensor in (values, clean, result)]
        native.check(module, module.denormalize(*pointers, *per_image(clean), gain, offset, levels, stream))
    return result


@_operator.register_fake
def _(values: Tensor, clean: Tensor, levels: int, gain: Sequence[float], offset: Sequence[float]) -> Tensor:
    return torch.empty_like(clean, memory_format=torch.channels_last)
