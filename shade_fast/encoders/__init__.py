"""Latent spaces: load, check and describe the frozen encoder that a protection is made against."""

from __future__ import annotations

from shade_fast.encoders.encoder import Encoder
from shade_fast.encoders.load import EncoderSpec, load_encoder

__all__ = ["Encoder", "EncoderSpec", "load_encoder"]
