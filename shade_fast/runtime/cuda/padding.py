"""Zeros around an image that the convolution after them can add by itself, so that nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx


@dataclass(frozen=True)
class WiderPadding:
    """padding: a convolution's own, down and across. skipped: its first results that are too many, down and across."""

    padding: list[int]
    skipped: list[int]


def wider_padding(
    before: fx.Node, sides: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> WiderPadding | None:
    """What does in a convolution what a node before it does; None where that is not zeros, or costs too much.

    A convolution pads both ends of an axis alike. It is given what the end with more needs, and at the first end whole
    strides more than that end needs: then the results that are wanted begin after as many that are not. Paddings of a
    whole window or more are left alone.
    """
    around = _zeros(before)
    if around is None:
        return None
    wide, skipped = [], []
    for axis, (first, last) in enumerate((around[2:], around[:2])):
        most = max(first, last) + padding[axis]
        skipped.append(-(-(most - first - padding[axis]) // stride[axis]))
        wide.append(first + padding[axis] + skipped[-1] * stride[axis])
        if wide[-1] > dilation[axis] * (sides[axis] - 1):
            return None
    return WiderPadding(wide, skipped)


def _zeros(node: fx.Node) -> tuple[int, ...] | None:
    """How many zeros a node puts left, right, above and below an image; None where it is or does something else."""
    if str(node.target) != "aten.pad.default" or node.kwargs:
        return None
    margins: Any = node.args[1]
    mode, value = (node.args[place] if len(node.args) > place else None for place in (2, 3))
    if mode not in (None, "constant") or value not in (None, 0) or len(margins) > 4 or min(margins) < 0:
        return None
    return tuple([*margins, 0, 0][:4])
