"""Frozen networks made fast: the same maps, whose backward makes the gradient in the input alone."""

from __future__ import annotations

from shade_fast.runtime.arena import BLOCKS
from shade_fast.runtime.cuda import PRECISIONS, CudaNetwork
from shade_fast.runtime.freeze import ONNXRUNTIME, Frozen, Report, freeze, onnx_provider
from shade_fast.runtime.onnx import OnnxNetwork, check_onnxruntime
from shade_fast.runtime.plan import ACCURACIES

__all__ = [
    "ACCURACIES",
    "BLOCKS",
    "PRECISIONS",
    "CudaNetwork",
    "ONNXRUNTIME",
    "Frozen",
    "OnnxNetwork",
    "Report",
    "check_onnxruntime",
    "freeze",
    "onnx_provider",
]
