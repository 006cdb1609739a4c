"""Whether float32 products on a GPU round their factors, which torch knows for a whole process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def products(tf32: bool) -> Iterator[None]:
    """cuDNN's and cuBLAS' switches as they are asked for, and afterwards as they were.

    Once a caller has set torch's newer ones (from 2.9 on), reading the older ones raises.
    """
    convolutions, matrices = torch.backends.cudnn, torch.backends.cuda.matmul
    newer: Any = getattr(convolutions, "conv", None)
    switches: list[tuple[Any, str, Any]] = [(convolutions, "deterministic", True)]
    if newer is not None and hasattr(newer, "fp32_precision"):
        switches += [(one, "fp32_precision", "tf32" if tf32 else "ieee") for one in (newer, matrices)]
    else:
        switches += [(one, "allow_tf32", tf32) for one in (convolutions, matrices)]
    before = [getattr(where, name) for where, name, _ in switches]
    for where, name, value in switches:
        setattr(where, name, value)
    try:
        yield
    finally:
        for (where, name, _), value in zip(switches, before, strict=True):
            setattr(where, name, value)
