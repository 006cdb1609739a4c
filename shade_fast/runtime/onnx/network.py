"""A frozen network that ONNX Runtime executes, as a module that autograd can differentiate in its images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from shade_fast.ops import latent_distance
from shade_fast.runtime.autograd import differentiable
from shade_fast.runtime.names import FLOAT32, check_precision
from shade_fast.runtime.network import FrozenNetwork, Recent, shapes_of, wants_gradient
from shade_fast.runtime.onnx.export import cached, read_module
from shade_fast.runtime.onnx.half import in_precision
from shade_fast.runtime.onnx.libraries import check_onnxruntime
from shade_fast.runtime.onnx.session import Session
from shade_fast.runtime.onnx.trace import Source
from shade_fast.terms.errors import ShadeFastError

#: Sessions that a network keeps, each with its weights: of one kind, for inputs of one shape.
MOST_SESSIONS = 8


class OnnxNetwork(FrozenNetwork[Source]):
    """A network whose forward and input gradient are ONNX graphs; differentiable, once, in its first input alone.

    A module whose outputs are numbers of each image (distances) is one graph, forward and gradient in one run. For any
    other, the forward is one run, and its gradient another that makes the forward's values again.

    module: from float32 images [B, 3, h, w], and further tensors, to a tensor or a tuple of tensors.
    precision: of gradients and of what comes out of the same run (`PRECISIONS` in names.py), on a GPU; what no gradient
        is asked of, and so all that is measured and reported, is float32.
    shrink: whether a run gives the memory back that it worked in.
    """

    title = "a network run by ONNX Runtime"
    most_sizes = MOST_SESSIONS

    def __init__(self, module: nn.Module, provider: str, precision: str = FLOAT32) -> None:
        """Raises ShadeFastError where ONNX Runtime, the provider or the exporter's libraries are not there."""
        super().__init__(module)
        check_precision(provider, precision)
        check_onnxruntime(provider)
        self.provider = provider
        self.precision = precision
        self.shrink = False
        self._distances: OnnxNetwork | None = None
        self._sessions: Recent[Session] = Recent(MOST_SESSIONS)

    @functools.cached_property
    def _stepped(self) -> nn.Module:
        return in_precision(self.module, self.precision)

    def _traced(self, images: Tensor) -> nn.Module:
        """The module that a run on images is of."""
        return self._stepped if wants_gradient(images) else self.module

    def key(self, inputs: Sequence[Tensor]) -> Hashable:
        return self._traced(inputs[0]), super().key(inputs)

    def prepare(self, inputs: Sequence[Tensor]) -> Source:
        """The module's operators. Raises ShadeFastError for a module that cannot be traced: torch runs none here."""
        return read_module(self._traced(inputs[0]), inputs)

    def execute(self, program: Source, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        if wants_gradient(inputs[0]):
            return differentiable(GraphRun(self, program), inputs)
        return self.run("forward", program, inputs)

    def distance(self, images: Tensor, anchor_latents: Tensor) -> Tensor:
        """‖module(images) - anchor_latents‖₂, [B], whose gradient comes from the same run."""
        if not wants_gradient(images):
            return latent_distance(self(images), anchor_latents, backend="reference")
        if self._distances is None:
            self._distances = OnnxNetwork(LatentDistance(self.module), self.provider, self.precision)
        self._distances.shrink = self.shrink
        distance: Tensor = self._distances(images, anchor_latents)
        return distance

    def run(self, kind: str, source: Source, inputs: Sequence[Tensor], upstream: Sequence[Tensor] = ()) -> list[Tensor]:
        """The outputs of one kind of graph (see `trace.KINDS`); upstream: the outputs' gradients, for a pullback."""
        return self._session(kind, source, inputs).run((*inputs, *upstream), self.shrink)

    def _session(self, kind: str, source: Source, inputs: Sequence[Tensor]) -> Session:
        device = inputs[0].device
        key = (kind, shapes_of(inputs), device, torch.get_num_threads())
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                session = Session(cached(source, kind, source.names(kind)), self.provider, device)
                self._sessions.put(key, session)
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


class GraphRun:
    """A run with a gradient: one graph where the outputs are numbers of each image, else a forward and a pullback."""

    def __init__(self, network: OnnxNetwork, source: Source) -> None:
        self._network = network
        self._source = source
        self._inputs: Sequence[Tensor] = ()
        self._gradient: Tensor | None = None

    def forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        self._inputs = inputs
        if self._source.per_image:
            *outputs, self._gradient = self._network.run("step", self._source, inputs)
            return outputs
        source = self._network.program(inputs)
        assert source is not None
        return self._network.run("forward", source, inputs)

    def backward(self, upstream: Sequence[Tensor]) -> Tensor:
        # The step's gradient is that of the outputs' sum; each image's is its own, so that it may be scaled afterwards.
        if self._gradient is not None and all(torch.equal(other, upstream[0]) for other in upstream[1:]):
            gradient = self._gradient * upstream[0][:, None, None, None]
        else:
            (gradient,) = self._network.run("pullback", self._source, self._inputs, upstream)
        if self._network.precision != FLOAT32 and not bool(torch.isfinite(gradient).all()):
            raise ShadeFastError(
                f"the network's gradient does not fit {self._network.precision}: its values are too large; use "
                f"backend='onnxruntime:{self._network.provider}'"
            )
        return gradient
