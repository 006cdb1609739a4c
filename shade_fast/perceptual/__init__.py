"""LPIPS networks: how far a person would say that two images are apart, with the clean image's features kept."""

from __future__ import annotations

from shade_fast.perceptual.load import Availability, available, load_perceptual
from shade_fast.perceptual.lpips import Perceptual

__all__ = ["Availability", "Perceptual", "available", "load_perceptual"]
