"""Frozen networks made fast: `freeze(module, backend)` gives the same map, whose backward makes the input gradient alone."""

from __future__ import annotations

from shade_fast.runtime.arena import BLOCKS
from shade_fast.runtime.freeze import Frozen, Report, freeze

__all__ = ["BLOCKS", "Frozen", "Report", "freeze"]
