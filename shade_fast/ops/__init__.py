"""Ops: one file each, whose plain-torch body is the specification, and whose kernels are tested against it.

`backend="native"` runs the compiled kernel of the tensors' device, `backend="reference"` the plain-torch body anywhere.
"""

from __future__ import annotations

from shade_fast.ops.bisect_scale import bisect_scale
from shade_fast.ops.jpeg import jpeg
from shade_fast.ops.latent_distance import latent_distance
from shade_fast.ops.optimizer_update import optimizer_update
from shade_fast.ops.quantize import quantize
from shade_fast.ops.resize import resize
from shade_fast.ops.separable import Axis, axis, separable

__all__ = [
    "Axis",
    "axis",
    "bisect_scale",
    "jpeg",
    "latent_distance",
    "optimizer_update",
    "quantize",
    "resize",
    "separable",
]
