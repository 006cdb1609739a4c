"""Group normalisation with frozen gamma and beta, an activation after it, and the gradient in its input.

    y = activation(gamma[c] · x̂ + beta[c]),  x̂ = (x - mean) / √(variance + epsilon)

with mean and (biased) variance over each group of C / groups channels of each image. For the gradient, with
d = gradient · activation'(gamma · x̂ + beta) · gamma and means over the group:

    dx = (d - mean(d) - x̂ · mean(d · x̂)) / √(variance + epsilon)

Tensors x, gradient, out are [B, C, h, w], gamma and beta [C], statistics [B, groups, 2]: mean and
1 / √(variance + epsilon). activation: "none", "relu" or "silu". `reference...` take any float dtype and memory format.
`bind...` take dense channels-last float32 tensors on the CPU and return the call of the compiled kernel on those very
buffers, which allocates nothing; `out` may be an input. All raise ShadeFastError where an argument does not fit.
`residual_group_norm` is the op on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from shade_fast.ops import native
from shade_fast.ops.binding import bound, check_array, check_images, check_scratch, extent
from shade_fast.ops.finish import Call, Finish
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
    finish: Finish,
) -> Tensor:
    """The gradient in x, finished."""
    mean, inverse = statistics[:, :, None, :].unbind(3)
    xhat = (_grouped(x, groups) - mean) * inverse
    y = xhat.reshape(x.shape) * gamma[:, None, None] + beta[:, None, None]
    d = (gradient * _slope(y, activation) * gamma[:, None, None]).reshape(xhat.shape)
    dx = (d - d.mean(2, keepdim=True) - xhat * (d * xhat).mean(2, keepdim=True)) * inverse
    return finish.reference(dx.reshape(x.shape))


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
    finish: Finish,
    scratch: Tensor,
    threads: int,
) -> Call:
    """out = finish(gradient in x), x being what the forward was given and `statistics` what it wrote."""
    check_images(out, gradient=gradient, x=x)
    _check(out, gamma, beta, statistics, groups, scratch, threads)
    finish.check(out)
    arrays, parameters = (gradient, x, gamma, beta, statistics, out), (groups, number(activation))
    return bound(native.cpu().group_norm_gradient, *arrays, extent(out), *parameters, finish, scratch, threads)


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
