"""The fused optimizer update: momentum, normalisation, sign, step, L-infinity projection and the image's range."""

from __future__ import annotations

import torch
from torch import Tensor

from shade_fast.ops import gpu, native
from shade_fast.ops.layout import in_order, memory_order, per_image
from shade_fast.terms.errors import ShadeFastError

#: What shares of a step are counted in: this many are the whole of it.
WHOLE_STEP = 64


def optimizer_update(
    delta: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    clean: Tensor,
    *,
    step: float | Tensor,
    decay: float,
    linf: float,
    share: Tensor | None = None,
    backend: str = "native",
) -> Tensor:
    """Take one sign-momentum step with the perturbation of every image, inside its bounds.

    For each image, with mean = mean |gradient| summed in float64 and inverse = float32(1 / mean), or 0 where the mean
    is 0 or its inverse is no finite float32:

        momentum = decay * momentum + gradient * inverse
        delta    = clamp(delta - step * (share / 64) * sign(momentum), -linf, linf)
        delta    = clamp(delta, -clean / 255, 1 - clean / 255)

    in float32, each operation rounded on its own. Where the mean is not finite, the image's delta and momentum stay as
    they are. Dong et al., "Boosting Adversarial Attacks with Momentum", arXiv 1710.06081, with a per-value mean.

    Args:
        delta: float32 [B, 3, H, W], the perturbation in [0, 1] pixel units; changed in place; finite.
        momentum: float32 [B, 3, H, W]; changed in place.
        gradient: float32 [B, 3, H, W], of the objective with respect to delta.
        clean: uint8 [B, 3, H, W], the clean images.
        step: in [0, 1] pixel units; one number, or a float32 tensor [B] with one for each image.
        decay: how much of the momentum is kept, in [0, 1].
        linf: largest absolute value of delta, in [0, 1] pixel units.
        share: uint8 [B, 3, H, W], each value's share of its image's step, in 64ths (`WHOLE_STEP`); None for all of it.
        backend: "native" for the compiled kernels, "reference" for plain torch.

    Returns:
        float32 [B], mean |gradient| of each image; not finite where the image was left as it was.

    Any strides are allowed; contiguous and channels-last tensors of one order are worked on without a copy. No
    autograd: the update is not differentiable.

    Raises:
        ShadeFastError: shapes, dtypes, devices or bounds do not fit, or the compiled module is missing.
    """
    _check(delta, momentum, gradient, clean, share, step, decay, linf)
    with torch.no_grad():
        steps = step if isinstance(step, Tensor) else delta.new_full((delta.shape[0],), step)
        if backend == "reference":
            return reference(delta, momentum, gradient, clean, share, steps, decay, linf)
        if backend != "native" or delta.device.type not in native.DEVICES:
            raise native.missing_backend(backend, delta.device)
        mean: Tensor = _operator(delta, momentum, gradient, clean, share, steps, decay, linf)
        return mean


def reference(
    delta: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    clean: Tensor,
    share: Tensor | None,
    step: Tensor,
    decay: float,
    linf: float,
) -> Tensor:
    """The specification, in plain torch; arguments as in `optimizer_update`, `step` as a tensor [B]."""
    images, elements = per_image(delta)
    mean = gradient.double().abs().flatten(1).sum(1) / max(elements, 1)
    inverse = (1 / mean).float()
    inverse = torch.where((mean > 0) & inverse.isfinite(), inverse, 0).view(images, 1, 1, 1)
    finite = mean.isfinite().view(images, 1, 1, 1)

    moved_momentum = decay * momentum + gradient * inverse
    direction = (moved_momentum > 0).float() - (moved_momentum < 0).float()
    length = step.view(images, 1, 1, 1)
    if share is not None:
        length = length * (share.float() / WHOLE_STEP)
    moved = (delta - length * direction).clamp(-linf, linf)
    shown = clean.float() / 255
    moved = moved.clamp(-shown, 1 - shown)

    momentum.copy_(torch.where(finite, moved_momentum, momentum))
    delta.copy_(torch.where(finite, moved, delta))
    return mean.float()


@torch.library.custom_op("shade_fast::optimizer_update", mutates_args=("delta", "momentum"), device_types="cpu")
def _operator(
    delta: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    clean: Tensor,
    share: Tensor | None,
    step: Tensor,
    decay: float,
    linf: float,
) -> Tensor:
    module = native.cpu()
    images, elements = per_image(delta)
    order = memory_order(delta)
    tensors = in_order(order, delta, momentum, gradient, clean)
    shares = None if share is None else in_order(order, share)[0]
    mean = delta.new_empty(images)
    steps = step.contiguous()
    pointers = _pointers(*tensors, shares, steps, mean)
    native.check(module, module.optimizer_update(*pointers, images, elements, decay, linf, torch.get_num_threads()))
    _copy_back(tensors, delta, momentum)
    return mean


@_operator.register_kernel("cuda")
def on_gpu(
    delta: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    clean: Tensor,
    share: Tensor | None,
    step: Tensor,
    decay: float,
    linf: float,
) -> Tensor:
    """The compiled CUDA kernels."""
    module = native.cuda()
    images, elements = per_image(delta)
    order = memory_order(delta)
    with gpu.stream(delta) as stream:
        tensors = in_order(order, delta, momentum, gradient, clean)
        shares = None if share is None else in_order(order, share)[0]
        mean = delta.new_empty(images)
        scratch = delta.new_empty(module.optimizer_update_scratch(images, elements), dtype=torch.float64)
        steps = step.contiguous()
        pointers = _pointers(*tensors, shares, steps, mean, scratch)
        native.check(module, module.optimizer_update(*pointers, images, elements, decay, linf, stream))
        _copy_back(tensors, delta, momentum)
    return mean


@_operator.register_fake
def _(
    delta: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    clean: Tensor,
    share: Tensor | None,
    step: Tensor,
    decay: float,
    linf: float,
) -> Tensor:
    return delta.new_empty(delta.shape[0])


def _pointers(*tensors: Tensor | None) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _copy_back(worked_on: tuple[Tensor, ...], *mutated: Tensor) -> None:
    for source, target in zip(worked_on, mutated, strict=False):
        if source is not target:
            target.copy_(source)


def _check(
    delta: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    clean: Tensor,
    share: Tensor | None,
    step: float | Tensor,
    decay: float,
    linf: float,
) -> None:
    named = {"delta": delta, "momentum": momentum, "gradient": gradient, "clean": clean}
    if share is not None:
        named["share"] = share
    for name, tensor in named.items():
        dtype = torch.uint8 if name in ("clean", "share") else torch.float32
        if tensor.dtype != dtype:
            raise ShadeFastError(f"{name} is {tensor.dtype}: convert it to {dtype}")
        if tensor.ndim != 4 or tensor.shape[1] != 3 or tensor.shape != delta.shape:
            raise ShadeFastError(
                f"{name} is {list(tensor.shape)}: delta, momentum, gradient, clean and share have one shape "
                "[B, 3, H, W]"
            )
        if tensor.device != delta.device:
            raise ShadeFastError(f"{name} is on {tensor.device}, delta on {delta.device}: move it there")
    if isinstance(step, Tensor) and (
        step.shape != delta.shape[:1] or step.dtype != torch.float32 or step.device != delta.device
    ):
        raise ShadeFastError(
            f"step is {step.dtype} {list(step.shape)} on {step.device}: "
            f"give one number, or a float32 tensor [{delta.shape[0]}] on {delta.device}"
        )
    if not linf >= 0:
        raise ShadeFastError(f"linf={linf}: it must be 0 or larger")
    if not 0 <= decay <= 1:
        raise ShadeFastError(f"decay={decay}: it must lie in [0, 1]")
