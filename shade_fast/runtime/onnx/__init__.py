"""Frozen networks as ONNX graphs, forward and input gradient, and ONNX Runtime to execute them.

Needs the extra `onnx` (CPU) or `onnx-gpu`; nothing of it is imported before it is asked for.
"""

from __future__ import annotations

from shade_fast.runtime.names import FLOAT32, PRECISIONS
from shade_fast.runtime.onnx.decompositions import OPSET
from shade_fast.runtime.onnx.export import model_of
from shade_fast.runtime.onnx.half import in_precision
from shade_fast.runtime.onnx.libraries import check_onnxruntime, describe_onnxruntime
from shade_fast.runtime.onnx.network import LatentDistance, OnnxNetwork

__all__ = [
    "FLOAT32",
    "OPSET",
    "PRECISIONS",
    "LatentDistance",
    "OnnxNetwork",
    "check_onnxruntime",
    "describe_onnxruntime",
    "in_precision",
    "model_of",
]
