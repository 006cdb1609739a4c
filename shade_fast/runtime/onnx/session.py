"""One ONNX graph loaded by ONNX Runtime for one provider, run on torch's tensors where they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shade_fast.runtime.names import ONNX_CPU, ONNX_CUDA, PROVIDERS
from shade_fast.runtime.onnx import libraries
from shade_fast.runtime.onnx.libraries import INSTALL
from shade_fast.terms.errors import ShadeFastError, reason


class Session:
    """A graph with float32 inputs and outputs of fixed shapes.

    Results are written straight into torch's tensors, and inputs are read where they lie; on a GPU that torch does not
    use, inputs are copied there, those after the first one only when they have changed.
    """

    def __init__(self, model: Path | bytes, provider: str, device: torch.device) -> None:
        """Raises ShadeFastError where the graph cannot be loaded, or ONNX Runtime would run it elsewhere."""
        onnxruntime = libraries.runtime(provider)
        self.provider = provider
        self.device = device
        self._onnxruntime = onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        # Threads that spin on between runs would take the cores from torch, whose turn is next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        if provider == ONNX_CUDA:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        index = {"device_id": str(device.index or 0)}
        providers = [name if name.startswith("CPU") else (name, index) for name in PROVIDERS[provider]]
        try:
            self._session = onnxruntime.InferenceSession(
                str(model) if isinstance(model, Path) else model, options, providers=providers, enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's errors have no common class
            raise ShadeFastError(
                f"backend 'onnxruntime:{provider}': ONNX Runtime {onnxruntime.__version__} cannot load the graph "
                f"({reason(error, 300)})" + ("" if provider == ONNX_CPU else f"; {INSTALL[provider]}")
            ) from error
        check_providers(self._session.get_providers(), provider, onnxruntime.__version__)
        self._inputs = self._session.get_inputs()
        self._outputs = self._session.get_outputs()
        self._held: dict[str, tuple[Tensor, int, Any]] = {}

    def run(self, inputs: Sequence[Tensor], shrink: bool = False) -> list[Tensor]:
        """The graph's outputs, new tensors. shrink: whether the memory that runs work in is given back afterwards."""
        binding = self._session.io_binding()
        kept = []  # until the run has read them
        for number, (described, tensor) in enumerate(zip(self._inputs, inputs, strict=True)):
            if list(tensor.shape) != described.shape or tensor.dtype != torch.float32:
                raise ShadeFastError(
                    f"a graph's input {described.name} is float32 {described.shape}; got {tensor.dtype} "
                    f"{list(tensor.shape)}"
                )
            tensor = tensor.detach().contiguous()
            kept.append(tensor)
            if self.provider != ONNX_CPU and tensor.device.type == "cpu" and number:
                binding.bind_ortvalue_input(described.name, self._on_device(described.name, tensor))
            else:
                binding.bind_input(described.name, *_place(tensor))
        results = [torch.empty(described.shape, device=self.device) for described in self._outputs]
        for described, tensor in zip(self._outputs, results, strict=True):
            binding.bind_output(described.name, *_place(tensor))
        options = None
        if shrink:
            options = self._onnxruntime.RunOptions()
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        if self.device.type == "cuda":
            # ONNX Runtime's own stream does not wait for torch's.
            torch.cuda.current_stream(self.device).synchronize()
        self._session.run_with_iobinding(binding, options)
        if self.provider != ONNX_CPU:
            binding.synchronize_outputs()
        return results

    def _on_device(self, name: str, tensor: Tensor) -> Any:
        """A tensor of the CPU's memory on the provider's device; copied anew only where it is another or changed."""
        held = self._held.get(name)
        if held is not None and held[0].data_ptr() == tensor.data_ptr() and held[1] == tensor._version:
            return held[2]
        value = self._onnxruntime.OrtValue.ortvalue_from_numpy(tensor.numpy(), "cuda", self.device.index or 0)
        self._held[name] = (tensor, tensor._version, value)
        return value


def _place(tensor: Tensor) -> tuple[str, int, type, tuple[int, ...], int]:
    """A float32 tensor's memory, as a binding takes it."""
    return tensor.device.type, tensor.device.index or 0, np.float32, tuple(tensor.shape), tensor.data_ptr()


def check_providers(runs: Sequence[str], provider: str, version: str) -> None:
    """Raise ShadeFastError where a session does not run on the provider that was asked for.

    ONNX Runtime leaves a provider out that it cannot load, for want of a library perhaps, and takes the CPU's.
    """
    wanted = PROVIDERS[provider][0]
    if wanted not in runs:
        raise ShadeFastError(
            f"backend 'onnxruntime:{provider}': onnxruntime {version} could not start {wanted} and would run on "
            f"{', '.join(runs)} instead, which nobody asked for; {INSTALL[provider]}, or use "
            "backend='onnxruntime:cpu'"
        )
