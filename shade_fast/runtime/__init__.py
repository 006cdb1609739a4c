"""Frozen networks made fast: the same maps, whose backward makes the gradient in the input alone."""

from __future__ import annotations

from shade_fast.runtime.arena import BLOCKS
from shade_fast.runtime.freeze import Frozen, Report, freeze
from shade_fast.runtime.plan import ACCURACIES

__all__ = ["ACCURACIES", "BLOCKS", "Frozen", "Report", "freeze"]
