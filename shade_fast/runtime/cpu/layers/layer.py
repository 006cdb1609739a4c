"""What a layer of a frozen network is: what it reads and writes, forward and backward, and the ops that run it.

Values lie in memory channels-last. A layer's backward makes the gradient in its input alone; what it keeps of the
forward for that is what it reads again: a convolution nothing, a normalisation its input, a ReLU one bit a value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shade_fast.runtime.cpu.arena import Buffer
from shade_fast.runtime.cpu.values import Operand, Value

if TYPE_CHECKING:
    from shade_fast.runtime.cpu.schedule import Schedule


@dataclass(eq=False)
class Layer:
    """One op of the network, with what was fused into it. `name` is the module's, `kind` what it does."""

    name: str
    output: Value
    kind: str = field(default="", kw_only=True)

    @property
    def jumps(self) -> bool:
        """Whether its gradient is not continuous in its input, so that rounding may decide what it is."""
        return self.output.gated

    @property
    def mixes_images(self) -> bool:
        """Whether an image's result may depend on the other images of its batch."""
        return False

    def operands(self) -> list[Operand]:
        raise NotImplementedError

    def forward(self, schedule: Schedule) -> None:
        raise NotImplementedError

    def backward(self, schedule: Schedule, gradient: Buffer) -> None:
        raise NotImplementedError
