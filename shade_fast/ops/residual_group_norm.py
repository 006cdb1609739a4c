"""Group normalisation of a sum with an activation after it, as residual networks have it, and its input gradient."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from shade_fast.ops import gpu, group_norm
from shade_fast.ops.finish import Finish
from shade_fast.ops.layout import channels_last
from shade_fast.terms.errors import ShadeFastError


def residual_group_norm(
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
    _check(x, gamma, beta, groups, epsilon, bias, addend)
    x = channels_last(x)
    addend = None if addend is None else channels_last(addend.to(x.dtype))
    number = group_norm.number(activation)
    result: tuple[Tensor | None, Tensor] = _Norm.apply(  # type: ignore[no-untyped-call]
        x, addend, bias, gamma, beta, groups, epsilon, number, keep
    )
    return (result[0] if keep else None), result[1]


def reference(
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
    y, statistics = group_norm.reference(
        total, gamma.to(sums), beta.to(sums), groups, epsilon, group_norm.ACTIVATIONS[activation]
    )
    return kept, channels_last(y.to(x.dtype)), statistics


def reference_gradient(
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
    finish = Finish(residual=None if residual is None else residual.to(sums))
    made = group_norm.reference_gradient(
        *(gradient.to(sums), total, gamma.to(sums), beta.to(sums), statistics, groups),
        *(group_norm.ACTIVATIONS[activation], finish),
    )
    return channels_last(made.to(x.dtype))


@torch.library.custom_op("shade_fast::residual_group_norm", mutates_args=())
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
        return reference(x, gamma, beta, bias, addend, groups, epsilon, activation)
    total = None if addend is None else torch.empty_like(x)
    out, statistics = torch.empty_like(x), _new_statistics(x, groups)
    parameters = (_new_scratch(x, groups), groups, epsilon, activation)
    with gpu.selected(x):
        _kernels().forward(x, gamma, beta, statistics, out, *parameters, bias, addend, total)
    return x.new_empty(0) if total is None else total, out, statistics


@_operator.register_fake
def _(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    bias: Tensor | None,
    addend: Tensor | None,
    groups: int,
    epsilon: float,
    activation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    total = x.new_empty(0) if addend is None else torch.empty_like(x)
    return total, torch.empty_like(x), _new_statistics(x, groups)


@torch.library.custom_op("shade_fast::residual_group_norm_gradient", mutates_args=())
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
        return reference_gradient(gradient, x, gamma, beta, bias, statistics, residual, groups, activation)
    out = torch.empty_like(x)
    arrays = (gradient, x, gamma, beta, statistics, out, _new_scratch(x, groups))
    with gpu.selected(x):
        _kernels().backward(*arrays, groups, activation, residual, bias)
    return out


@_gradient_operator.register_fake
def _(
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
    return torch.empty_like(x)


class _Norm(torch.autograd.Function):
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
        made = residual
        if gradient is not None:
            gradient = channels_last(gradient.to(source.dtype))
            made = _gradient_operator(gradient, source, gamma, beta, bias, statistics, residual, *ctx.parameters)
        return made, made if ctx.adds else None, *[None] * 7


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _new_statistics(x: Tensor, groups: int) -> Tensor:
    return x.new_empty(group_norm.statistics_shape(x.shape, groups), dtype=_sum_dtype(x))


def _new_scratch(x: Tensor, groups: int) -> Tensor:
    images, channels, height, width = x.shape
    return x.new_empty(_kernels().scratch_size(images, height * width, channels, groups), dtype=torch.float32)


def _kernels() -> ModuleType:
    return gpu.triton("group_norm_silu")


def _check(
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
