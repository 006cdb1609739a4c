"""What this machine offers the engine: devices, backends, weights, versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from shade_fast.anchors import AnchorLibrary
from shade_fast.ops import gpu, native
from shade_fast.perceptual import available
from shade_fast.runtime.onnx import describe_onnxruntime
from shade_fast.terms.version import __version__

_PACKAGES = (
    *("torch", "diffusers", "transformers", "triton", "numpy", "pillow", "lpips", "stlpips-pytorch"),
    *("onnxruntime", "onnxruntime-gpu", "onnx", "onnxscript"),
)


def describe_machine() -> dict[str, Any]:
    """Facts as JSON types: version, python, packages, devices, backends, perceptual networks, anchors."""
    compiled = native.describe()
    return {
        "version": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": [
            {"name": "cpu", "detail": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"},
            *(
                {"name": f"cuda:{index}", "detail": torch.cuda.get_device_name(index)}
                for index in range(torch.cuda.device_count())
            ),
        ],
        "backends": {
            "reference": {"built": "yes", "compiler": "none: plain torch"},
            "native": compiled["cpu"],
            "cuda": compiled["cuda"] | _runs(),
            "onnxruntime": describe_onnxruntime(),
        },
        "perceptual": [network._asdict() for network in available()],
        "anchors": {name: len(anchor) for name, anchor in AnchorLibrary.embedded().items()},
    }


def _runs() -> dict[str, str]:
    """Which GPUs backend `cuda` runs on, or why it does not and the fix."""
    refusals = {index: gpu.refusal(index) for index in range(max(torch.cuda.device_count(), 1))}
    able = " ".join(f"cuda:{index}" for index, refusal in refusals.items() if refusal is None)
    refused = {f"not on cuda:{index}": refusal for index, refusal in refusals.items() if refusal is not None}
    return ({"runs on": able} if able else {"runs": "no"}) | refused


def info_lines(facts: dict[str, Any]) -> list[str]:
    """`describe_machine`'s facts for reading."""
    lines = [f"shade_fast {facts['version']}, Python {facts['python']}"]
    lines += _section("packages", {name: version or "not installed" for name, version in facts["packages"].items()})
    lines += _section("devices", {device["name"]: device["detail"] for device in facts["devices"]})
    lines += _section(
        "backends",
        {
            name: ", ".join(f"{fact} {text}" for fact, text in details.items())
            for name, details in facts["backends"].items()
        },
    )
    lines += _section(
        "perceptual networks",
        {
            network["name"]: f"{'found' if network['found'] else 'missing'}: {network['detail']}"
            for network in facts["perceptual"]
        },
    )
    return lines + _section("anchors", {name: f"{count} images" for name, count in facts["anchors"].items()})


def _section(title: str, entries: dict[str, Any]) -> list[str]:
    width = max((len(name) for name in entries), default=0)
    return ["", title, *(f"  {name:<{width}}  {value}" for name, value in entries.items())]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
