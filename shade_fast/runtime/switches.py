"""Whether float32 products on a GPU round their factors, which torch knows for a whole process.

Torch has older switches, and from 2.9 on newer ones. Once a caller has set newer ones alone, it may refuse to tell how
the older ones stand, and some of its own code asks: what is set here is set by the older ones where they can be read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

_convolutions, _matrices = torch.backends.cudnn, torch.backends.cuda.matmul


@contextlib.contextmanager
def products(tf32: bool | None) -> Iterator[None]:
    """cuDNN's algorithms give the same bits each time, and float32 factors of convolutions and matrices are rounded to
    10 bits of mantissa or are not; afterwards all is as it was. tf32: None where no factors are float32."""
    before, _convolutions.deterministic = _convolutions.deterministic, True
    try:
        if tf32 is None:
            yield
            return
        with _kept():
            if _older(_convolutions) is not None and _older(_matrices) is not None:
                _convolutions.allow_tf32 = _matrices.allow_tf32 = tf32
            # An older switch that is off leaves some of the newer ones to what they inherit from.
            for where in _newer():
                where.fp32_precision = "tf32" if tf32 else "ieee"
            yield
    finally:
        _convolutions.deterministic = before


def exact_products(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Around networks that run in plain torch, which on a GPU rounds factors by itself: meanwhile it does not."""
    return products(tf32=False) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """The older switches can be read meanwhile, as torch does where it traces; afterwards all is as it was."""
    if _older(_convolutions) is not None:
        yield
        return
    with _kept():
        _convolutions.allow_tf32 = True
        yield


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Afterwards the switches are as they were; older ones that could not be read are not known, and stay."""
    older: list[tuple[Any, bool | None]] = [(where, _older(where)) for where in (_convolutions, _matrices)]
    newer = [(where, where.fp32_precision) for where in _newer()]
    precision = _precision()
    try:
        yield
    finally:
        for where, flag in older:
            if flag is not None and _older(where) != flag:
                where.allow_tf32 = flag
        if precision is not None and _precision() != precision:
            torch.set_float32_matmul_precision(precision)
        for where, value in newer:
            # What inherits is to go on inheriting, as far as torch lets it.
            where.fp32_precision = "none"
            if where.fp32_precision != value:
                where.fp32_precision = value


def _newer() -> list[Any]:
    """Where the newer switches are; nowhere before torch 2.9."""
    cudnn: Any = _convolutions
    return [cudnn.conv, cudnn.rnn, _matrices] if hasattr(cudnn, "conv") else []


def _older(where: Any) -> bool | None:
    """How an older switch stands; None where torch refuses to tell."""
    try:
        return bool(where.allow_tf32)
    except RuntimeError:
        return None


def _precision() -> str | None:
    """Of float32 matrices, which tells "medium" from "high"; None where torch refuses to tell."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
