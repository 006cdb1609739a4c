"""Group normalisation with frozen gamma and beta, an activation after it, and the gradient in its input.

    y = activation(gamma[c] · x̂ + beta[c]),  x̂ = (x - mean) / √(variance + epsilon)

with mean and (biased) variance over each group of C / groups channels of each image. For the gradient, with
d = gradient · activation'(gamma · x̂ + beta) · gamma and means over the group:

    dx = (d - mean(d) - x̂ · mean(d · x̂)) / √(variance + epsilon)

Tensors x, gradient, out are [B, C, h, w], gamma and beta [C], statistics [B, groups, 2]: mean and
1 / √(variance + epsilon). activation: "none", "relu" or "silu". `reference...` take any float dtype and memory format.
`bind...` are for networks on the CPU: they take dense channels-last float32 tensors and return the call of the compiled
kernel on those very buffers, which allocates nothing; `out` may be an input. `group_norm` is the op of networks on a
GPU; it normalises a sum, as residual networks have it. All raise ShadeFastError where an argument does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from shade_fast.ops import gpu, native
from shade_fast.ops.binding import bound, check_array, check_images, check_scratch, extent
from shade_fast.ops.epilogue import Epilogue
from shade_fast.ops.layout import channels_last
from shade_fast.ops.native import Call
from shade_fast.terms.errors import ShadeFastError

#: Names of the activations, in the order of the compiled module's numbers.
ACTIVATIONS = ("none", "relu", "silu")


def reference(
    x: Tensor, gamma: Tensor, beta: Tensor, groups: int, epsilon: float, activation: str
) -> tuple[Tensor, Tensor]:
    """The result and the statistics."""
    grouped = _grouped(x, groups)
    mean = grouped.mean(2, keepdim=True)
    inverse = ((grouped - mean).square().mean(2, keepdim=True) + epsilon).rsqrt()
    xhat = ((grouped - mean) * inverse).reshape(x.shape)
    y = xhat * gamma[:, None, None] + beta[:, None, None]
    return _activated(y, activation), torch.cat([mean, inverse], dim=2)


def reference_gradient(
    gradient: Tensor,
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    statistics: Tensor,
    groups: int,
    activation: str,
    epilogue: Epilogue,
) -> Tensor:
    """The gradient in x, with the epilogue."""
    mean, inverse = statistics[:, :, None, :].unbind(3)
    xhat = (_grouped(x, groups) - mean) * inverse
    y = xhat.reshape(x.shape) * gamma[:, None, None] + beta[:, None, None]
    d = (gradient * _slope(y, activation) * gamma[:, None, None]).reshape(xhat.shape)
    dx = (d - d.mean(2, keepdim=True) - xhat * (d * xhat).mean(2, keepdim=True)) * inverse
    return epilogue.reference(dx.reshape(x.shape))


def _grouped(x: Tensor, groups: int) -> Tensor:
    return x.reshape(x.shape[0], groups, x.shape[1:].numel() // groups)


def _activated(y: Tensor, activation: str) -> Tensor:
    if activation == "none":
        return y
    return functional.relu(y) if activation == "relu" else functional.silu(y)


def _slope(y: Tensor, activation: str) -> Tensor:
    if activation == "none":
        return torch.ones_like(y)
    return (y > 0).to(y.dtype) if activation == "relu" else y.sigmoid() * (1 + y * (-y).sigmoid())


def statistics_shape(shape: Sequence[int], groups: int) -> tuple[int, int, int]:
    """Shape of the statistics of a tensor [B, C, h, w]."""
    return shape[0], groups, 2


def scratch_size(shape: Sequence[int], groups: int, threads: int) -> int:
    """How many float32 values of scratch memory the forward, or the gradient, of a tensor [B, C, h, w] needs."""
    images, channels, height, width = shape
    size: int = native.cpu().group_norm_scratch((images, height * width, channels), groups, threads)
    return size


def bind(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    statistics: Tensor,
    out: Tensor,
    groups: int,
    epsilon: float,
    activation: str,
    scratch: Tensor,
    threads: int,
) -> Call:
    """out = activation(normalised x); `statistics` are written for the gradient."""
    check_images(out, x=x)
    _check(out, gamma, beta, statistics, groups, scratch, threads)
    if not epsilon >= 0:
        raise ShadeFastError(f"epsilon={epsilon}: it is 0 or more")
    arrays, parameters = (x, gamma, beta, statistics, out), (groups, epsilon, number(activation))
    return bound(native.cpu().group_norm, *arrays, extent(out), *parameters, scratch, threads)


def bind_gradient(
    gradient: Tensor,
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    statistics: Tensor,
    out: Tensor,
    groups: int,
    activation: str,
    epilogue: Epilogue,
    scratch: Tensor,
    threads: int,
) -> Call:
    """out = epilogue(gradient in x), x being what the forward was given and `statistics` what it wrote."""
    check_images(out, gradient=gradient, x=x)
    _check(out, gamma, beta, statistics, groups, scratch, threads)
    epilogue.check(out)
    arrays, parameters = (gradient, x, gamma, beta, statistics, out), (groups, number(activation))
    return bound(native.cpu().group_norm_gradient, *arrays, extent(out), *parameters, epilogue, scratch, threads)


def _check(
    out: Tensor, gamma: Tensor, beta: Tensor, statistics: Tensor, groups: int, scratch: Tensor, threads: int
) -> None:
    channels = out.shape[1]
    if groups < 1 or channels % groups:
        raise ShadeFastError(f"groups={groups} does not divide {channels} channels")
    check_array("gamma", gamma, (channels,))
    check_array("beta", beta, (channels,))
    check_array("statistics", statistics, statistics_shape(out.shape, groups))
    check_scratch(scratch, scratch_size(out.shape, groups, threads))


def number(activation: str) -> int:
    """The compiled modules' number for an activation. Raises ShadeFastError for a name that is none."""
    if activation not in ACTIVATIONS:
        raise ShadeFastError(f"activation={activation!r}: it is one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS.index(activation)


def group_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    groups: int,
    epsilon: float,
    activation: str = "none",
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    keep: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """Add what is to be added, and normalise the sum.

        total = x + bias[c] + addend,    y = activation(group_norm(total)·gamma[c] + beta[c])

    Whoever else needs the sum takes the first result: the gradient that comes back through it is added by the pass that
    makes the norm's. Without an addend that is x as it is: a bias costs nothing here and in most of what follows, a sum
    with it would be written for it alone. The gradient in x and in the addend is one tensor; bias, gamma and beta get
    none.

    Args:
        x: float [B, C, h, w], channels-last; other layouts are copied.
        gamma, beta: float32 [C].
        groups: of channels; divides C. epsilon: on the variance, 0 or more. activation: none, relu or silu.
        bias: float32 [C]. addend: as x. None for none.
        keep: whether the first result is asked for.

    Returns:
        The total, rounded to x's dtype; without an addend x, without its bias; None where it is not asked for. And y,
        of x's dtype and shape, channels-last. Sums are float32, float64 for float64.

    Where the tensors are on a GPU, in float32, float16 or bfloat16, Triton's kernels run; elsewhere plain torch does,
    which is the specification. Differentiable once.

    Raises:
        ShadeFastError: shapes, devices, groups or activation do not fit, or Triton is missing on a GPU.
    """
    _check_sum(x, gamma, beta, groups, epsilon, bias, addend)
    x = channels_last(x)
    addend = None if addend is None else channels_last(addend.to(x.dtype))
    result: tuple[Tensor | None, Tensor] = _GroupNorm.apply(  # type: ignore[no-untyped-call]
        x, addend, bias, gamma, beta, groups, epsilon, number(activation), keep
    )
    return (result[0] if keep else None), result[1]


def reference_of_sum(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    bias: Tensor | None,
    addend: Tensor | None,
    groups: int,
    epsilon: float,
    activation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The specification, in plain torch: total (empty without an addend), y, statistics [B, groups, 2]."""
    sums = _sum_dtype(x)
    total = x.to(sums)
    if bias is not None:
        total = total + bias[:, None, None]
    kept = x.new_empty(0)
    if addend is not None:
        kept = channels_last((total + addend).to(x.dtype))
        total = kept.to(sums)
    y, statistics = reference(total, gamma.to(sums), beta.to(sums), groups, epsilon, ACTIVATIONS[activation])
    return kept, channels_last(y.to(x.dtype)), statistics


def reference_gradient_of_sum(
    gradient: Tensor,
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    bias: Tensor | None,
    statistics: Tensor,
    residual: Tensor | None,
    groups: int,
    activation: int,
) -> Tensor:
    """The gradient in the total, x being that or what a bias alone makes it of, and the residual on it."""
    sums = statistics.dtype
    total = x.to(sums) if bias is None else x.to(sums) + bias[:, None, None]
    epilogue = Epilogue(residual=None if residual is None else residual.to(sums))
    arrays = (gradient.to(sums), total, gamma.to(sums), beta.to(sums), statistics)
    dx = reference_gradient(*arrays, groups, ACTIVATIONS[activation], epilogue)
    return channels_last(dx.to(x.dtype))


@torch.library.custom_op("shade_fast::group_norm", mutates_args=())
def _operator(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    bias: Tensor | None,
    addend: Tensor | None,
    groups: int,
    epsilon: float,
    activation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    if not gpu.has_kernels(x):
        return reference_of_sum(x, gamma, beta, bias, addend, groups, epsilon, activation)
    total = None if addend is None else torch.empty_like(x)
    out, statistics = torch.empty_like(x), _new_statistics(x, groups)
    parameters = (_new_scratch(x, groups), groups, epsilon, activation)
    with gpu.selected(x):
        _kernels().forward(x, gamma, beta, statistics, out, *parameters, bias, addend, total)
    return x.new_empty(0) if total is None else total, out, statistics


@_operator.register_fake
def _(
    x: Tensor, gamma: Tensor, beta: Tensor, bias: Tensor | None, addend: Tensor | None, groups: int, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    total = x.new_empty(0) if addend is None else torch.empty_like(x)
    return total, torch.empty_like(x), _new_statistics(x, groups)


@torch.library.custom_op("shade_fast::group_norm_gradient", mutates_args=())
def _gradient_operator(
    gradient: Tensor,
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    bias: Tensor | None,
    statistics: Tensor,
    residual: Tensor | None,
    groups: int,
    activation: int,
) -> Tensor:
    if not gpu.has_kernels(x):
        return reference_gradient_of_sum(gradient, x, gamma, beta, bias, statistics, residual, groups, activation)
    out = torch.empty_like(x)
    arrays = (gradient, x, gamma, beta, statistics, out, _new_scratch(x, groups))
    with gpu.selected(x):
        _kernels().backward(*arrays, groups, activation, residual, bias)
    return out


@_gradient_operator.register_fake
def _(gradient: Tensor, x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        addend: Tensor | None,
        bias: Tensor | None,
        gamma: Tensor,
        beta: Tensor,
        groups: int,
        epsilon: float,
        activation: int,
        keep: bool,
    ) -> tuple[Tensor | None, Tensor]:
        total, y, statistics = _operator(x, gamma, beta, bias, addend, groups, epsilon, activation)
        ctx.adds = addend is not None
        source = total if ctx.adds else x
        ctx.save_for_backward(source, statistics, gamma, beta, None if ctx.adds else bias)
        ctx.parameters = groups, activation
        ctx.set_materialize_grads(False)
        return (source if keep else None), y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, residual: Tensor | None, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        source, statistics, gamma, beta, bias = ctx.saved_tensors
        residual = None if residual is None else channels_last(residual.to(source.dtype))
        of_input = residual
        if gradient is not None:
            gradient = channels_last(gradient.to(source.dtype))
            of_input = _gradient_operator(gradient, source, gamma, beta, bias, statistics, residual, *ctx.parameters)
        return of_input, of_input if ctx.adds else None, *[None] * 7


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _new_statistics(x: Tensor, groups: int) -> Tensor:
    return x.new_empty(statistics_shape(x.shape, groups), dtype=_sum_dtype(x))


def _new_scratch(x: Tensor, groups: int) -> Tensor:
    images, channels, height, width = x.shape
    return x.new_empty(_kernels().scratch_size(images, height * width, channels, groups), dtype=torch.float32)


def _kernels() -> ModuleType:
    return gpu.triton("group_norm")


def _check_sum(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    epsilon: float,
    bias: Tensor | None,
    addend: Tensor | None,
) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise ShadeFastError(f"x is {x.dtype} {list(x.shape)}: give float [B, C, h, w]")
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise ShadeFastError(f"groups={groups} does not divide {channels} channels")
    if not epsilon >= 0:
        raise ShadeFastError(f"epsilon={epsilon}: it is 0 or more")
    for name, array in (("gamma", gamma), ("beta", beta), ("bias", bias)):
        if array is not None and (array.shape != (channels,) or array.dtype not in (torch.float32, _sum_dtype(x))):
            raise ShadeFastError(f"{name} is {array.dtype} {list(array.shape)}: give float32 [{channels}]")
    if addend is not None and (addend.shape != x.shape or addend.device != x.device):
        raise ShadeFastError(
            f"addend is {list(addend.shape)} on {addend.device}: give {list(x.shape)} on {x.device}, as x is"
        )
