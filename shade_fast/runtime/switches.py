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
    if tf32 is None:
        with _set(_convolutions, "deterministic", True):
            yield
        return
    with _kept(), _set(_convolutions, "deterministic", True):
        if _older(_convolutions) is None or _older(_matrices) is None:
            for where in (_convolutions.conv, _matrices):  # type: ignore[attr-defined]
                where.fp32_precision = "tf32" if tf32 else "ieee"
        else:
            _convolutions.allow_tf32 = _matrices.allow_tf32 = tf32
        yield


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """The older switches can be read meanwhile, as torch does where it traces; afterwards all is as it was."""
    with _kept():
        if _older(_convolutions) is None:
            _convolutions.allow_tf32 = True
        yield


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Afterwards the switches are as they were; older ones that could not be read are not known, and stay."""
    newer = [where for where in (*_of_cudnn(), _matrices) if hasattr(where, "fp32_precision")]
    before = [(where, "allow_tf32", _older(where)) for where in (_convolutions, _matrices)]
    # An older switch takes the newer ones with it.
    before += [(where, "fp32_precision", where.fp32_precision) for where in newer]
    try:
        yield
    finally:
        for where, name, value in before:
            if value is not None:
                setattr(where, name, value)


@contextlib.contextmanager
def _set(where: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(where, name)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, before)


def _of_cudnn() -> list[Any]:
    """Where the newer switches of cuDNN are; nowhere before torch 2.9."""
    return [getattr(_convolutions, name) for name in ("conv", "rnn") if hasattr(_convolutions, name)]


def _older(where: Any) -> bool | None:
    """How an older switch stands; None where torch refuses to tell."""
    try:
        return bool(where.allow_tf32)
    except RuntimeError:
        return None
