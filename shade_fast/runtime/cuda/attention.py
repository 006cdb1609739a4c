"""Attention as products of matrices, with a gradient that is the same bits each time.

The kernels that torch fuses for it add up the gradient in queries atomically, in another order each time, and cut the
single head of 512 channels that autoencoders have into few blocks. Here scores are made in the features' dtype, in the
backward again, and of so many queries at a time that they take a bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from shade_fast.runtime.switches import products

#: Scores of an image's heads that are there at one time; what is more is done in turns.
MOST_SCORES = 2**25


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dtype: torch.dtype,
    tf32: bool | None,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(query · keyᵀ · scale) · value of [..., tokens, channels]; what masks or groups heads runs in torch."""
    query, key, value = (part.to(dtype) for part in (query, key, value))
    if mask is not None or dropout or causal or enable_gqa or query.ndim < 3 or query.shape[:-2] != key.shape[:-2]:
        return functional.scaled_dot_product_attention(
            query, key, value, mask, dropout, causal, scale=scale, enable_gqa=enable_gqa
        )
    heads = query.shape[-3] if query.ndim > 3 else 1
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    parts = [part.reshape(-1, *part.shape[-2:]) for part in (query, key, value)]
    result: Tensor = _Attention.apply(*parts, heads, scale, tf32)  # type: ignore[no-untyped-call]
    return result.reshape(*query.shape[:-1], value.shape[-1])


class _Attention(torch.autograd.Function):
    """Of [batch · heads, tokens, channels]; keeps what it is given."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, heads: int, scale: float, tf32: bool | None
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.options = heads, scale, tf32
        with products(tf32):
            results = [_shares(query[:, rows], key, scale) @ value for rows in _turns(query, key, heads)]
        return _joined(results)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        heads, scale, tf32 = ctx.options
        gradient = gradient.to(query.dtype)
        of_query, of_key, of_value = [], _Sum(), _Sum()
        with products(tf32):
            for rows in _turns(query, key, heads):
                shares = _shares(query[:, rows], key, scale)
                of_value.add(shares.mT @ gradient[:, rows])
                slopes = torch._softmax_backward_data(gradient[:, rows] @ value.mT, shares, -1, shares.dtype)
                del shares
                of_query.append(_product(slopes, key, scale))
                of_key.add(_product(slopes.mT, query[:, rows], scale))
        return _joined(of_query), of_key.total(query.dtype), of_value.total(query.dtype), None, None, None


class _Sum:
    """Of turns, in float32 where there is more than one."""

    def __init__(self) -> None:
        self._parts: Tensor | None = None

    def add(self, part: Tensor) -> None:
        self._parts = part if self._parts is None else self._parts.float() + part

    def total(self, dtype: torch.dtype) -> Tensor:
        assert self._parts is not None
        return self._parts.to(dtype)


def _turns(query: Tensor, key: Tensor, heads: int) -> Iterator[slice]:
    """Rows of queries that are done at one time: they follow from an image's size, not from how many there are."""
    rows = max(MOST_SCORES // max(heads * key.shape[1], 1), 1)
    for first in range(0, max(query.shape[1], 1), rows):
        yield slice(first, first + rows)


def _shares(query: Tensor, key: Tensor, scale: float) -> Tensor:
    return torch.softmax(_product(query, key.mT, scale), -1)


def _product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """left · right · scale; what it is added to, in torch's call, is not read."""
    return torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=scale)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
