"""A step counted op by op as torch dispatches it on the meta device: operations, bytes, what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_count import Count, Op, attention

#: Kernels of an op that has more than one.
_LAUNCHES = {
    "shade_fast::residual_group_norm": 3,
    "shade_fast::residual_group_norm_gradient": 3,
    "shade_fast::lpips_layer": 2,
    "shade_fast::latent_distance": 2,
    "shade_fast::optimizer_update": 2,
}


def recorded(step: Callable[[], None], weights: Iterable[Tensor]) -> Count:
    """What a step on the meta device takes; weights are there whatever the batch, and not counted as kept."""
    known = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in weights}
    saved: dict[int, int] = {}
    alive: list[Tensor] = []

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage.nbytes()
        alive.append(tensor)
        return tensor

    recorder = _Recorder()
    with recorder, _FusedAttention(recorder), torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        step()
    return Count(recorder.ops, sum(saved.values()), recorder.largest, sum(known.values()))


class _Recorder(TorchDispatchMode):
    """Each op that does something, with its products' operations and the bytes of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.largest = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        views = any(one.alias_info is not None and not one.alias_info.is_write for one in function._schema.returns)
        if views or name in ("empty", "empty_like", "new_empty", "detach", "_unsafe_view"):
            return result
        reads = _tensors(args)
        if kwargs:
            reads += _tensors(list(kwargs.values()))
        writes = _tensors(result)
        written = sum(_size(tensor) for tensor in writes)
        moved = sum(_size(tensor) for tensor in {id(tensor): tensor for tensor in reads}.values()) + written
        operations = 0.0
        if name == "convolution":
            operations = 2.0 * result.numel() * math.prod(args[1].shape[1:])
            moved -= _size(args[2]) if args[2] is not None else 0
            if not args[1].is_contiguous():
                # As cuDNN lays it, which the meta device does not know.
                result = result.to(memory_format=torch.channels_last)
        elif name == "convolution_backward":
            gradient, _, weight = args[:3]
            operations = 2.0 * gradient.numel() * math.prod(weight.shape[1:])
            moved = _size(gradient) + _size(weight) + written
            if weight.ndim == 4 and not weight.is_contiguous():
                result = (result[0].to(memory_format=torch.channels_last), *result[1:])
        elif name in ("addmm", "mm", "bmm"):
            left = args[1] if name == "addmm" else args[0]
            operations = 2.0 * result.numel() * left.shape[-1]
        elif name == "native_group_norm":
            moved += _size(args[0])
        elif name == "native_group_norm_backward":
            moved += _size(args[0]) + _size(args[1])
        elif name == "shade_fast::residual_group_norm":
            # The statistics' pass reads x and writes the sum; the other reads that, or x.
            moved += _size(result[0]) or _size(args[0])
        elif name == "shade_fast::residual_group_norm_gradient":
            moved += _size(args[0]) + _size(args[1])
        moved += sum(_size(tensor) for tensor in _changed(function, args))
        self.record(name, operations, moved, writes)
        for _ in range(_LAUNCHES.get(name, 1) - 1):
            self.record(name, 0.0, 0.0, [])
        if name == "convolution" and args[2] is not None:
            self.record("bias", 0.0, 2 * _size(result), [])
        return result

    def record(self, name: str, operations: float, moved: float, writes: Sequence[Tensor]) -> None:
        self.ops.append(Op(name, operations, moved))
        self.largest = max([self.largest, *(float(_size(tensor)) for tensor in writes)])


class _FusedAttention(TorchFunctionMode):
    """Attention as one op forward and one backward, as it runs on a GPU; on the meta device torch takes it apart."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is nn.functional.scaled_dot_product_attention:
            named = [kwargs[name] for name in ("query", "key", "value") if name in kwargs]
            return _Attention.apply(self._recorder, *args[:3], *named)
        return function(*args, **kwargs)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recorder: _Recorder, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, result)
        ctx.recorder = recorder
        recorder.record("attention", *_attention_of(query, key, False), [result])
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, _ = ctx.saved_tensors
        ctx.recorder.record("attention gradient", *_attention_of(query, key, True), [])
        return None, torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attention_of(query: Tensor, key: Tensor, gradient: bool) -> tuple[float, float]:
    batch, heads, tokens, size = query.shape
    return attention((batch, heads * size, 1, tokens), (batch, heads * size, 1, key.shape[2]), gradient)


def _changed(function: Any, args: Any) -> Iterator[Tensor]:
    """What an op writes in place without giving it back."""
    if any(one.alias_info is not None for one in function._schema.returns):
        return
    for argument, given in zip(function._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield given


def _tensors(structure: Any) -> list[Tensor]:
    if isinstance(structure, Tensor):
        return [structure]
    if isinstance(structure, list | tuple):
        return [tensor for one in structure for tensor in _tensors(one)]
    return []


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
