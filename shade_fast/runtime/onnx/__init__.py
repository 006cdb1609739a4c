"""Frozen networks as ONNX graphs, forward and input gradient, and ONNX Runtime to execute them.

Needs the extra `onnx` (CPU) or `onnx-gpu`; nothing of it is imported before it is asked for.
"""

from __future__ import annotations

from shade_fast.runtime.onnx.decompositions import OPSET
from shade_fast.runtime.onnx.export import model_of
from shade_fast.runtime.onnx.half import FLOAT32, PRECISIONS, in_precision
from shade_fast.runtime.onnx.libraries import CUDA, PROVIDERS, check_onnxruntime, describe_onnxruntime
from shade_fast.runtime.onnx.network import LatentDistance, OnnxNetwork, check_precision

__all__ = [
    "CUDA",
    "FLOAT32",
    "OPSET",
    "PRECISIONS",
    "PROVIDERS",
    "LatentDistance",
    "OnnxNetwork",
    "check_onnxruntime",
    "check_precision",
    "describe_onnxruntime",
    "in_precision",
    "model_of",
]
