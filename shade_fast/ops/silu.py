"""SiLU of a frozen network, and its gradient.

Tensors are [B, C, h, w]. `reference...` take any float dtype and memory format. `bind...` take dense channels-last
float32 tensors on the CPU and return the call of the compiled kernel on those very buffers, which allocates nothing;
`out` may be an input, and an Epilogue's residual may be `out`. All raise ShadeFastError where a tensor does not fit.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from shade_fast.ops import native
from shade_fast.ops.binding import bound, check_images, extent
from shade_fast.ops.epilogue import Epilogue
from shade_fast.ops.native import Call


def reference(x: Tensor) -> Tensor:
    """x · σ(x), σ(x) = 1 / (1 + exp(-x)). The kernel has the limits 0 at -∞, where this is NaN, and ∞ at ∞."""
    return functional.silu(x)


def reference_gradient(gradient: Tensor, x: Tensor, epilogue: Epilogue) -> Tensor:
    """epilogue(gradient · σ(x) · (1 + x · (1 - σ(x)))). The kernel's slope has the limits 0 at -∞ and 1 at ∞."""
    return epilogue.reference(gradient * x.sigmoid() * (1 + x * (-x).sigmoid()))


def bind(x: Tensor, out: Tensor, threads: int) -> Call:
    """out = x · σ(x)."""
    check_images(out, x=x)
    return bound(native.cpu().silu, x, out, extent(out), threads)


def bind_gradient(gradient: Tensor, x: Tensor, out: Tensor, epilogue: Epilogue, threads: int) -> Call:
    """out = epilogue(gradient · silu'(x)), x being what SiLU was given."""
    check_images(out, gradient=gradient, x=x)
    epilogue.check(out)
    return bound(native.cpu().silu_gradient, gradient, x, out, extent(out), epilogue, threads)
