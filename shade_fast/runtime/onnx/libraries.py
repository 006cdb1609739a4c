"""ONNX's libraries, imported where they are first used, and what to install for each of ONNX Runtime's providers."""

from __future__ import annotations

import importlib
from typing import Any

from shade_fast.runtime.names import ONNX_CPU, ONNX_CUDA, ONNX_TENSORRT, PROVIDERS
from shade_fast.terms.errors import ShadeFastError

INSTALL = {
    ONNX_CPU: "pip install 'shade-fast[onnx]'",
    ONNX_CUDA: (
        "pip uninstall onnxruntime; pip install 'shade-fast[onnx-gpu]', with the CUDA and cuDNN that it asks for"
    ),
    ONNX_TENSORRT: "pip uninstall onnxruntime; pip install 'shade-fast[onnx-gpu]' tensorrt",
}


def runtime(provider: str = ONNX_CPU) -> Any:
    """The module onnxruntime, which offers the provider. Raises ShadeFastError that says what to install."""
    if provider not in PROVIDERS:
        raise ShadeFastError(f"ONNX Runtime's provider {provider!r}: give one of {', '.join(PROVIDERS)}")
    module = _imported("onnxruntime", provider)
    if not hasattr(module, "get_available_providers"):
        # onnxruntime and onnxruntime-gpu share a folder: who uninstalls one of both has neither.
        raise ShadeFastError(
            f"onnxruntime is there without its code: pip uninstall onnxruntime onnxruntime-gpu; {INSTALL[provider]}"
        )
    wanted = PROVIDERS[provider][0]
    offered = module.get_available_providers()
    if wanted not in offered:
        raise ShadeFastError(
            f"backend 'onnxruntime:{provider}': onnxruntime {module.__version__} here has no {wanted} (it has "
            f"{', '.join(offered)}); {INSTALL[provider]}, or use backend='onnxruntime:cpu'"
        )
    return module


def check_onnxruntime(provider: str) -> None:
    """Raise ShadeFastError, saying what to install, where graphs cannot be made, or this provider cannot run them."""
    runtime(provider)
    exporter()


def describe_onnxruntime() -> dict[str, str]:
    """Facts for `shade-fast info`: name and text, "built" the first of them."""
    try:
        module = runtime()
        exporter()
    except ShadeFastError as error:
        return {"built": "no", "why": str(error)}
    offered = module.get_available_providers()
    there = [name for name, wanted in PROVIDERS.items() if wanted[0] in offered]
    return {"built": "yes", "version": module.__version__, "providers": " ".join(there)}


def exporter() -> Any:
    """The module onnx, with onnxscript there beside it. Raises ShadeFastError that says what to install."""
    _imported("onnxscript", ONNX_CPU)
    return _imported("onnx", ONNX_CPU)


def versions() -> dict[str, str]:
    """Versions of all that a graph's text depends on."""
    exporter()
    return {name: str(importlib.import_module(name).__version__) for name in ("torch", "onnx", "onnxscript")}


def _imported(name: str, provider: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ShadeFastError(f"{name} is not there ({error}): {INSTALL[provider]}") from error
