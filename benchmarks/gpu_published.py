"""The published step: the real modules in plain torch, counted op by op as it dispatches them on the meta device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import networks
from benchmarks.gpu_count import Count, Op, attention, images, on_meta, vgg


def published(batch: int, lpips: bool, size: int) -> Count:
    """The same modules in plain torch, float16, weights requiring gradients as a pipeline loads them."""
    encoder = on_meta(networks.encoder("kl")).requires_grad_()
    given = images(batch, size).to("meta", torch.float16)
    delta = torch.zeros_like(given).requires_grad_()
    saved: dict[int, int] = {}
    alive: list[Tensor] = []
    modules = [encoder]
    if lpips:
        modules.append(on_meta(vgg().activations))
    weights = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for module in modules
        for tensor in [*module.parameters(), *module.buffers()]
    }

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
        alive.append(tensor)
        return tensor

    recorder = _Recorder()
    with recorder, _FusedAttention(recorder), torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        perturbed = (given + delta).clamp(0, 1)
        latents = encoder(perturbed)
        loss = torch.linalg.vector_norm(latents - torch.zeros_like(latents))
        if lpips:
            with torch.no_grad():
                clean = [_unit(one) for one in modules[1](given)]
            for activations, target in zip(modules[1](perturbed), clean, strict=True):
                head = torch.empty(activations.shape[1], 1, 1, dtype=torch.float16, device="meta")
                loss = loss + ((_unit(activations) - target).square() * head).sum(1, keepdim=True).mean()
        (gradient,) = torch.autograd.grad(loss, delta)
        with torch.no_grad():
            torch.clamp(delta - 0.01 * gradient.sign(), -0.05, 0.05)
    return Count(recorder.ops, sum(saved.values()), recorder.largest, sum(weights.values()))


def _unit(activations: Tensor) -> Tensor:
    return activations / (activations.square().sum(1, keepdim=True).sqrt() + 1e-10)


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
        if views or name in ("empty", "empty_like", "detach", "_unsafe_view"):
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
        elif name == "convolution_backward":
            gradient, x, weight = args[:3]
            operations = 2.0 * gradient.numel() * math.prod(weight.shape[1:])
            moved = _size(gradient) + _size(weight) + written
            del x
        elif name in ("addmm", "mm", "bmm"):
            left = args[1] if name == "addmm" else args[0]
            operations = 2.0 * result.numel() * left.shape[-1]
        elif name == "native_group_norm":
            moved += _size(args[0])
        elif name == "native_group_norm_backward":
            moved += _size(args[0]) + _size(args[1])
        self.record(name, operations, moved, writes)
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


def _tensors(structure: Any) -> list[Tensor]:
    if isinstance(structure, Tensor):
        return [structure]
    if isinstance(structure, list | tuple):
        return [tensor for one in structure for tensor in _tensors(one)]
    return []


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
