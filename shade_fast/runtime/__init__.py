"""Frozen networks made fast: the same maps, whose backward makes the gradient in the input alone."""

from __future__ import annotations

from shade_fast.runtime.cpu import BLOCKS, Frozen, Needs
from shade_fast.runtime.cuda import CudaNetwork
from shade_fast.runtime.freeze import freeze
from shade_fast.runtime.names import (
    ACCURACIES,
    CUDA_PRECISIONS,
    ONNXRUNTIME,
    PRECISIONS,
    check_accuracy,
    check_precision,
    gradient_error,
    onnx_provider,
)
from shade_fast.runtime.network import FrozenNetwork, Report, latent_distance, latent_gradient
from shade_fast.runtime.onnx import OnnxNetwork, check_onnxruntime
from shade_fast.runtime.switches import exact_products, products

__all__ = [
    "ACCURACIES",
    "BLOCKS",
    "CUDA_PRECISIONS",
    "CudaNetwork",
    "ONNXRUNTIME",
    "PRECISIONS",
    "Frozen",
    "FrozenNetwork",
    "Needs",
    "OnnxNetwork",
    "Report",
    "check_accuracy",
    "check_onnxruntime",
    "check_precision",
    "exact_products",
    "freeze",
    "gradient_error",
    "latent_distance",
    "latent_gradient",
    "onnx_provider",
    "products",
]
