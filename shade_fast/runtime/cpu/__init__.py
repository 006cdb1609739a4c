"""Frozen networks for a CPU: compiled layers, laid out in memory that steps share."""

from __future__ import annotations

from shade_fast.runtime.cpu.arena import BLOCKS
from shade_fast.runtime.cpu.frozen import Frozen, Needs

__all__ = ["BLOCKS", "Frozen", "Needs"]
