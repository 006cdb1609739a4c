"""Frozen networks for a GPU: fused norms and epilogues around torch's convolutions, in one precision."""

from __future__ import annotations

from shade_fast.runtime.cuda.network import CudaNetwork

__all__ = ["CudaNetwork"]
