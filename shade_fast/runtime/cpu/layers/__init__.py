"""The layers of a network frozen for the CPU, a file for each kind of them."""

from __future__ import annotations

from shade_fast.runtime.cpu.layers.attention import AttentionLayer
from shade_fast.runtime.cpu.layers.convolution import ConvolutionLayer
from shade_fast.runtime.cpu.layers.layer import Layer
from shade_fast.runtime.cpu.layers.norm import GroupNormLayer
from shade_fast.runtime.cpu.layers.perceptual import LpipsLayer, UnitLengthLayer
from shade_fast.runtime.cpu.layers.pointwise import PointwiseLayer, SiluLayer
from shade_fast.runtime.cpu.layers.torch_op import TorchLayer
from shade_fast.runtime.cpu.layers.windows import BlurLayer, MaxPoolLayer

__all__ = [
    "AttentionLayer",
    "BlurLayer",
    "ConvolutionLayer",
    "GroupNormLayer",
    "Layer",
    "LpipsLayer",
    "MaxPoolLayer",
    "PointwiseLayer",
    "SiluLayer",
    "TorchLayer",
    "UnitLengthLayer",
]
