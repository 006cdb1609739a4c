"""What every backend's frozen network is: programs by the inputs' shapes, and the module itself where there is none."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from shade_fast.terms.errors import ShadeFastError, reason

log = logging.getLogger(__name__)

V = TypeVar("V")


class Recent(Generic[V]):
    """Values by key, at most so many: the one that was used longest ago is forgotten first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable) -> V | None:
        """The value, now the one used last; None where there is none."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Hashable, value: V) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self.most:
            self._values.popitem(last=False)

    def values(self) -> list[V]:
        return list(self._values.values())


class SizedProgram(Protocol):
    """What a backend makes of a module for inputs of some shapes."""

    @property
    def single(self) -> bool:
        """Whether the module gives one tensor, not a tuple of them."""


P = TypeVar("P", bound=SizedProgram)


class FrozenNetwork(nn.Module, Generic[P]):
    """A module whose weights never change again, executed by a backend; differentiable, once, in its first input alone.

    A backend says how it prepares the module for inputs of some shapes, and how it executes what it has prepared. Where
    a module cannot be traced, torch runs it as it is, and `reasons` and `report` say why.

    module: from images [B, C, h, w], and further tensors, which get no gradient, to a tensor or a tuple of tensors.
    """

    #: How an error names the network, and the images that it takes.
    title = "a frozen network"
    takes = "float32"
    #: Sizes of inputs whose programs are kept.
    most_sizes = 32

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        #: why torch runs the whole module, for inputs of these shapes
        self.reasons: dict[Hashable, str] = {}
        self._lock = threading.RLock()
        self._programs: Recent[P] = Recent(self.most_sizes)

    def prepare(self, inputs: Sequence[Tensor]) -> P:
        """The program for inputs of these shapes. Raises ShadeFastError where the module is refused; for whatever else
        it raises, torch runs the module."""
        raise NotImplementedError

    def execute(self, program: P, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The outputs of a program, which autograd can differentiate where `wants_gradient`."""
        raise NotImplementedError

    def plain(self, *inputs: Tensor) -> Any:
        """The module's own result."""
        return self.module(*inputs)

    def accepts(self, images: Tensor) -> bool:
        """Whether images [B, C, h, w] are of a type, and where, this backend takes them."""
        return images.dtype == torch.float32

    def key(self, inputs: Sequence[Tensor]) -> Hashable:
        """What a program depends on."""
        return shapes_of(inputs), inputs[0].device

    def distance(self, images: Tensor, anchor_latents: Tensor) -> Tensor | None:
        """The latent distance [B], whose gradient comes from the same run; None where a backend has no such run."""
        return None

    def latent_gradient(
        self, images: Tensor, anchor_latents: Tensor, out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """The latent distance [B] and its gradient, without autograd; None where a backend has them with it alone."""
        return None

    def layer_reports(self, program: P, inputs: Sequence[Tensor]) -> Sequence[LayerReport]:
        """A report's rows; none where a backend does not time its layers by themselves."""
        return ()

    def forward(self, *inputs: Tensor) -> Any:
        """The module's result. Raises ShadeFastError for images that the backend does not take."""
        self.check(inputs[0])
        program = self.program(inputs) if inputs[0].numel() else None
        if program is None:
            return self.plain(*inputs)
        outputs = self.execute(program, inputs)
        return outputs[0] if program.single else tuple(outputs)

    def check(self, images: Tensor) -> None:
        """Raise ShadeFastError for images that the backend does not take."""
        if images.ndim != 4 or not self.accepts(images):
            raise ShadeFastError(
                f"{self.title} takes {self.takes} images [B, C, h, w]; got {images.dtype} {list(images.shape)} "
                f"on {images.device}"
            )

    def program(self, inputs: Sequence[Tensor]) -> P | None:
        """The program for inputs of these shapes, now the one used last; None where torch must run the module."""
        key = self.key(inputs)
        with self._lock:
            if key in self.reasons:
                return None
            program = self._programs.get(key)
            if program is None:
                try:
                    program = self.prepare(inputs)
                except ShadeFastError:
                    raise
                except Exception as error:  # a module's code may do whatever Python can
                    self.reasons[key] = f"it cannot be traced ({reason(error)})"
                    log.warning("torch runs a network as it is, in float32: %s", self.reasons[key])
                    return None
                self._programs.put(key, program)
            return program

    def report(self, *inputs: Tensor) -> Report:
        """How the network runs on these inputs. Raises ShadeFastError where none are given."""
        if not inputs:
            raise ShadeFastError("report: give it the images [B, 3, h, w] whose step is to be timed")
        program = self.program(inputs)
        if program is None:
            return Report((), self.reasons[self.key(inputs)])
        return Report(tuple(self.layer_reports(program, inputs)), None)


@dataclass(frozen=True)
class LayerReport:
    """One layer in a report: algorithms, milliseconds of a step, share of it, and operations of its products."""

    layer: str
    kind: str
    forward: str
    backward: str
    milliseconds: float
    share: float
    operations: float


@dataclass(frozen=True)
class Report:
    """What runs how: `rows` in the order of the forward; `reason` says why torch runs the whole module instead."""

    rows: tuple[LayerReport, ...]
    reason: str | None

    def __str__(self) -> str:
        if self.reason is not None:
            return f"torch runs the whole network: {self.reason}"
        lines = [f"{'layer':44} {'kind':24} {'forward':12} {'backward':12} {'ms':>9} {'share':>6} {'GFLOP/s':>8}"]
        for row in self.rows:
            rate = row.operations / row.milliseconds / 1e6 if row.operations else 0.0
            lines.append(
                f"{row.layer[-44:]:44} {row.kind[:24]:24} {row.forward[:12]:12} {row.backward[:12]:12} "
                f"{row.milliseconds:9.3f} {row.share:6.1%} {f'{rate:8.0f}' if rate else '':>8}"
            )
        return "\n".join(lines)


def wants_gradient(images: Tensor) -> bool:
    """Whether autograd is to differentiate what is made of images."""
    return torch.is_grad_enabled() and images.requires_grad


def shapes_of(inputs: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in inputs)


def latent_distance(network: nn.Module, images: Tensor, anchor_latents: Tensor) -> Tensor | None:
    """The latent distance [B] of images [B, 3, h, w] where a network has it and its gradient in one run, else None."""
    return network.distance(images, anchor_latents) if isinstance(network, FrozenNetwork) else None


def latent_gradient(
    network: nn.Module, images: Tensor, anchor_latents: Tensor, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor] | None:
    """The latent distance [B] and its gradient in images [B, 3, h, w], where a network has them without autograd, else
    None. out: what an earlier call for as large a batch gave, to be written over."""
    return network.latent_gradient(images, anchor_latents, out) if isinstance(network, FrozenNetwork) else None
