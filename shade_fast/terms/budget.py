"""The visual budget: how far a file may be changed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shade_fast.terms.checks import number
from shade_fast.terms.errors import ShadeFastError


@dataclass(frozen=True)
class Budget:
    """How far an image may be changed; both bounds hold on the file written. One of the two may be None (unbounded).

    linf: largest change of a pixel's channel, in [0, 1] units; in the file's uint8 values it is `levels`.
    lpips: largest LPIPS distance between the views of the clean and the perturbed image.

    Raises ShadeFastError for a bound that is not positive, or with no bound at all.
    """

    linf: float | None = 16 / 255
    lpips: float | None = 0.07

    def __post_init__(self) -> None:
        if self.linf is None and self.lpips is None:
            raise ShadeFastError("a budget needs linf, lpips or both; got None for both")
        for name, value in (("linf", self.linf), ("lpips", self.lpips)):
            if value is None:
                continue
            bound = number(value)
            if bound is None or bound <= 0:
                raise ShadeFastError(f"budget {name}={value!r}: give a number above 0, or None for no {name} bound")
            if name == "linf" and bound > 1:
                raise ShadeFastError(f"budget linf={value}: it is in [0, 1] units; for uint8 levels write {value}/255")
            object.__setattr__(self, name, bound)
        if self.levels < 1:
            raise ShadeFastError(f"budget linf={self.linf}: below one uint8 level; the smallest is 1/255")

    @property
    def levels(self) -> int:
        """Largest change of a uint8 value: floor(255·linf), 255 where linf is None."""
        return 255 if self.linf is None else math.floor(255 * self.linf + 1e-6)
