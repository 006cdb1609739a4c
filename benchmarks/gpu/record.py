"""A step counted op by op as torch dispatches it on the meta device: operations, bytes, what is kept."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.count import TRANSPOSE, Count, Op, attention
from benchmarks.ops import launches_of


def recorded(step: Callable[[], None], weights: Iterable[Tensor]) -> Count:
    """What a step on the meta device takes; weights are there whatever the batch, and not counted as kept or held."""
    known = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in weights}
    recorder = _Recorder(known)
    kept = _Kept(recorder)
    with recorder, _FusedAttention(recorder), torch.autograd.graph.saved_tensors_hooks(kept.save, kept.read):
        step()
    return Count(recorder.ops, kept.most, sum(recorder.held.values()), recorder.largest, sum(known.values()))


class _Kept:
    """What autograd holds on to, and the most that it ever did: a graph lets go when it has been differentiated.

    Without what was there before the step: that is not there for the backward.
    """

    def __init__(self, recorder: _Recorder) -> None:
        self.most = 0
        self._recorder = recorder
        self._times: Counter[int] = Counter()
        self._bytes: dict[int, int] = {}

    def save(self, tensor: Tensor) -> _Saved:
        storage = tensor.untyped_storage()
        self._times[storage._cdata] += 1
        if self._recorder.makes(tensor):
            self._bytes[storage._cdata] = storage.nbytes()
        self.most = max(self.most, sum(self._bytes.values()))
        return _Saved(tensor, self._release)

    def read(self, saved: _Saved) -> Tensor:
        return saved.tensor

    def _release(self, key: int) -> None:
        self._times[key] -= 1
        if not self._times[key]:
            self._bytes.pop(key, None)


class _Saved:
    """A tensor in autograd's hands. The storage lives as long, so that no other has its address."""

    def __init__(self, tensor: Tensor, release: Callable[[int], None]) -> None:
        self.tensor = tensor
        weakref.finalize(self, release, tensor.untyped_storage()._cdata)


class _Recorder(TorchDispatchMode):
    """Each op that does something, with its products' operations and the bytes of its tensors."""

    def __init__(self, weights: Iterable[int]) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.largest = 0.0
        #: bytes of storages that were there before, by their address
        self.held: dict[int, int] = {}
        self._weights = set(weights)
        self._made: set[int] = set()

    def makes(self, tensor: Tensor) -> bool:
        """Whether a tensor was not there before the step."""
        return tensor.untyped_storage()._cdata in self._made

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors([args, list((kwargs or {}).values())]):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._made | self._weights:
                self.held[storage._cdata] = storage.nbytes()
        result = self._call(function, args, kwargs)
        storages = {tensor.untyped_storage()._cdata for tensor in _tensors(result)}
        self._made |= storages - self.held.keys() - self._weights
        return result

    def _call(self, function: Any, args: Any, kwargs: Any) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        returns = [value.alias_info for value in function._schema.returns]
        views = any(alias is not None and not alias.is_write for alias in returns)
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
            x, weight, bias = args[:3]
            operations = 2.0 * (x if args[6] else result).numel() * math.prod(weight.shape[1:])
            moved -= _size(bias) if bias is not None else 0
            result = self._laid(x, weight, result)
            name = "convolution_backward" if args[6] else name  # the frozen networks' gradients are transposed ones
        elif name == "convolution_backward":
            gradient, _, weight = args[:3]
            operations = 2.0 * gradient.numel() * math.prod(weight.shape[1:])
            moved = _size(gradient) + _size(weight) + written
            result = (self._laid(gradient, weight, result[0]), *result[1:])
        elif name == "constant_pad_nd" and args[0].is_contiguous(memory_format=torch.channels_last):
            result = result.to(memory_format=torch.channels_last)  # as on a device, but not on the meta device
        elif name in ("addmm", "mm", "bmm", "baddbmm"):
            left = args[1] if name in ("addmm", "baddbmm") else args[0]
            operations = 2.0 * result.numel() * left.shape[-1]
        elif name == "native_group_norm":
            moved += _size(args[0])
        elif name == "native_group_norm_backward":
            moved += _size(args[0]) + _size(args[1])
        launches = launches_of(name)
        moved += sum(_size(tensor) for tensor in launches.again(args, result))
        moved += sum(_size(tensor) for tensor in _changed(function, args))
        self.record(name, operations, moved, writes)
        for _ in range(launches.kernels - 1):
            self.record(name, 0.0, 0.0, [])
        if name == "convolution" and args[2] is not None:
            self.record("bias", 0.0, 2 * _size(result), [])
        return result

    def _laid(self, x: Tensor, weight: Tensor, result: Tensor) -> Tensor:
        """A convolution's result as cuDNN lays it, which the meta device does not know: NHWC where one of the others is
        so; else it transposes what it takes and what it makes."""
        if any(_is_channels_last(tensor) for tensor in (x, weight)):
            return result.to(memory_format=torch.channels_last)
        for tensor in (x, result):
            self.record(TRANSPOSE, 0.0, 2 * _size(tensor), [])
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
    if any(value.alias_info is not None for value in function._schema.returns):
        return
    for argument, given in zip(function._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield given


def _tensors(structure: Any) -> list[Tensor]:
    if isinstance(structure, Tensor):
        return [structure]
    if isinstance(structure, list | tuple):
        return [tensor for part in structure for tensor in _tensors(part)]
    return []


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
