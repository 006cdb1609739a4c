"""Elementwise layers of a frozen network: additions, ReLUs and their gradients, and SiLU.

Tensors are [B, C, h, w]. `reference...` take any float dtype and memory format. `bind...` take dense channels-last
float32 tensors on the CPU and return the call of the compiled kernel on those very buffers, which allocates nothing;
`out` may be an input, and a Finish's residual may be `out`. All raise ShadeFastError where a tensor does not fit.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from shade_fast.ops import native
from shade_fast.ops.binding import bound, check_images, extent
from shade_fast.ops.finish import Call, Finish


def reference(x: Tensor, finish: Finish) -> Tensor:
    """finish(x): with a residual an addition, with relu a ReLU, with a gate a ReLU's gradient."""
    return finish.reference(x)


def reference_silu(x: Tensor) -> Tensor:
    """x · σ(x), σ(x) = 1 / (1 + exp(-x)). The kernel has the limits 0 at -∞, where this is NaN, and ∞ at ∞."""
    return functional.silu(x)


def reference_silu_gradient(gradient: Tensor, x: Tensor, finish: Finish) -> Tensor:
    """finish(gradient · σ(x) · (1 + x · (1 - σ(x)))). The kernel's slope has the limits 0 at -∞ and 1 at ∞."""
    return finish.reference(gradient * x.sigmoid() * (1 + x * (-x).sigmoid()))


def bind(x: Tensor, out: Tensor, finish: Finish, threads: int) -> Call:
    """out = finish(x), every part of it allowed."""
    check_images(out, x=x)
    finish.check(out)
    return bound(native.cpu().pointwise, x, out, extent(out), finish, threads)


def bind_silu(x: Tensor, out: Tensor, threads: int) -> Call:
    """out = x · σ(x)."""
    check_images(out, x=x)
    return bound(native.cpu().silu, x, out, extent(out), threads)


def bind_silu_gradient(gradient: Tensor, x: Tensor, out: Tensor, finish: Finish, threads: int) -> Call:
    """out = finish(gradient · silu'(x)), x being what SiLU was given."""
    check_images(out, gradient=gradient, x=x)
    finish.check(out)
    return bound(native.cpu().silu_gradient, gradient, x, out, extent(out), finish, threads)
