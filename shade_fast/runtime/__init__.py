"""Frozen networks made fast: the same maps, whose backward makes the gradient in the input alone."""

from __future__ import annotations

from shade_fast.runtime.cpu import ACCURACIES, BLOCKS, Frozen, Needs, Report
from shade_fast.runtime.cuda import PRECISIONS as CUDA_PRECISIONS
from shade_fast.runtime.cuda import CudaNetwork
from shade_fast.runtime.freeze import (
    ONNXRUNTIME,
    check_accuracy,
    freeze,
    gradient_error,
    latent_distance,
    latent_gradient,
    onnx_provider,
)
from shade_fast.runtime.onnx import PRECISIONS, OnnxNetwork, check_onnxruntime, check_precision
from shade_fast.runtime.switches import exact_products, products

__all__ = [
    "ACCURACIES",
    "BLOCKS",
    "CUDA_PRECISIONS",
    "CudaNetwork",
    "ONNXRUNTIME",
    "PRECISIONS",
    "Frozen",
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
