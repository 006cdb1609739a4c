"""A frozen network that ONNX Runtime executes, as a module that autograd can differentiate in its images."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shade_fast.ops import latent_distance
from shade_fast.runtime.onnx.export import cached, read_module
from shade_fast.runtime.onnx.half import FLOAT32, PRECISIONS, in_precision
from shade_fast.runtime.onnx.libraries import CPU, check_onnxruntime
from shade_fast.runtime.onnx.session import Session
from shade_fast.runtime.onnx.trace import Source
from shade_fast.terms.errors import ShadeFastError

#: Sessions that a network keeps, each with its weights: of one kind, for inputs of one shape.
MOST_SESSIONS = 8

Shapes = tuple[tuple[int, ...], ...]


class OnnxNetwork(nn.Module):
    """A network whose forward and input gradient are ONNX graphs; differentiable, once, in its first input alone.

    A module whose outputs are numbers of each image (distances) is one graph, forward and gradient in one run. For any
    other, the forward is one run, and its gradient another that makes the forward's values again.

    module: from float32 images [B, 3, h, w], and further tensors, to a tensor or a tuple of tensors.
    precision: of gradients and of what is made together with them (`PRECISIONS`), on a GPU; what no gradient is asked
        of, and so all that is measured and reported, is float32.
    shrink: whether a run gives the memory back that it worked in.
    """

    def __init__(self, module: nn.Module, provider: str, precision: str = FLOAT32) -> None:
        """Raises ShadeFastError where ONNX Runtime, the provider or the exporter's libraries are not there."""
        super().__init__()
        check_precision(provider, precision)
        check_onnxruntime(provider)
        self.module = module
        self.provider = provider
        self.precision = precision
        self.shrink = False
        self._distances: OnnxNetwork | None = None
        self._lock = threading.RLock()
        self._sources: OrderedDict[tuple[nn.Module, Shapes], Source] = OrderedDict()
        self._sessions: OrderedDict[tuple[Any, ...], Session] = OrderedDict()

    def forward(self, *inputs: Tensor) -> Any:
        """The module's result. Raises ShadeFastError for images that are not float32 [B, C, h, w]."""
        images = inputs[0]
        if images.dtype != torch.float32 or images.ndim != 4:
            raise ShadeFastError(
                f"a network run by ONNX Runtime takes float32 images [B, C, h, w]; got {images.dtype} "
                f"{list(images.shape)}"
            )
        if not images.numel():
            return self.module(*inputs)
        if torch.is_grad_enabled() and images.requires_grad:
            kind, outputs = "step", _Run.apply(self, *inputs)  # type: ignore[no-untyped-call]
        else:
            kind, outputs = "forward", tuple(self.run("forward", inputs))
        return outputs[0] if self.source(inputs, kind).single else outputs

    @functools.cached_property
    def _stepped(self) -> nn.Module:
        return in_precision(self.module, self.precision)

    def distance(self, images: Tensor, anchor_latents: Tensor) -> Tensor:
        """‖module(images) - anchor_latents‖₂, [B], whose gradient comes from the same run."""
        if not (torch.is_grad_enabled() and images.requires_grad):
            return latent_distance(self(images), anchor_latents, backend="reference")
        if self._distances is None:
            self._distances = OnnxNetwork(LatentDistance(self.module), self.provider, self.precision)
        self._distances.shrink = self.shrink
        distance: Tensor = self._distances(images, anchor_latents)
        return distance

    def run(self, kind: str, inputs: Sequence[Tensor], upstream: Sequence[Tensor] = ()) -> list[Tensor]:
        """The outputs of one kind of graph (see `trace.KINDS`); upstream: the outputs' gradients, for a pullback."""
        return self._session(kind, inputs).run((*inputs, *upstream), self.shrink)

    def source(self, inputs: Sequence[Tensor], kind: str = "forward") -> Source:
        """The module's operators for inputs of these shapes, as graphs of one kind have them."""
        module = self.module if kind == "forward" else self._stepped
        key = (module, _shapes(inputs))
        with self._lock:
            if key not in self._sources:
                self._sources[key] = read_module(module, inputs)
                while len(self._sources) > MOST_SESSIONS:
                    self._sources.popitem(last=False)
            return self._sources[key]

    def _session(self, kind: str, inputs: Sequence[Tensor]) -> Session:
        key = (kind, _shapes(inputs), torch.get_num_threads())
        with self._lock:
            session = self._sessions.pop(key, None)
            if session is None:
                source = self.source(inputs, kind)
                session = Session(cached(source, kind, source.names(kind)), self.provider, inputs[0].device)
            self._sessions[key] = session
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
            return session


class LatentDistance(nn.Module):
    """Images [B, 3, h, w] and anchors' latents [B, C, h', w'] to the distances of the images' latents, [B]."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def over(self, change: Callable[[nn.Module], nn.Module]) -> LatentDistance:
        return LatentDistance(change(self.module))

    def forward(self, images: Tensor, anchor_latents: Tensor) -> Tensor:
        return latent_distance(self.module(images).float(), anchor_latents, backend="reference")


class _Run(torch.autograd.Function):
    """Forward and input gradient as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, network: OnnxNetwork, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.network, ctx.inputs = network, tuple(tensor.detach() for tensor in inputs)
        ctx.gradient = None
        if network.source(inputs, "step").per_image:
            *outputs, ctx.gradient = network.run("step", inputs)
        else:
            outputs = network.run("forward", inputs)
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # The step's gradient is that of the outputs' sum; each image's is its own, so that it may be scaled afterwards.
        if ctx.gradient is not None and all(torch.equal(one, upstream[0]) for one in upstream[1:]):
            gradient = ctx.gradient * upstream[0][:, None, None, None]
        else:
            (gradient,) = ctx.network.run("pullback", ctx.inputs, upstream)
        if ctx.network.precision != FLOAT32 and not bool(torch.isfinite(gradient).all()):
            raise ShadeFastError(
                f"the network's gradient does not fit {ctx.network.precision}: its values are too large; use "
                f"backend='onnxruntime:{ctx.network.provider}'"
            )
        return None, gradient, *([None] * (len(ctx.inputs) - 1))


def check_precision(provider: str, precision: str) -> None:
    """Raise ShadeFastError for a precision that is unknown, or that a provider does not compute in."""
    if precision not in PRECISIONS:
        raise ShadeFastError(f"precision {precision!r}: give one of {', '.join(PRECISIONS)}")
    if provider == CPU and precision != FLOAT32:
        raise ShadeFastError(
            f"backend 'onnxruntime:{CPU}:{precision}': ONNX Runtime computes in float32 on a CPU; use "
            f"backend='onnxruntime:{CPU}', or 'onnxruntime:cuda:{precision}'"
        )


def _shapes(inputs: Sequence[Tensor]) -> Shapes:
    return tuple(tuple(tensor.shape) for tensor in inputs)
