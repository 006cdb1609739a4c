"""From a traced graph to a network of layers, with what stands together fused."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from shade_fast.ops.convolution import Convolution
from shade_fast.ops.windows import LARGEST_KERNEL
from shade_fast.runtime.cpu.layers import (
    AttentionLayer,
    BlurLayer,
    ConvolutionLayer,
    GroupNormLayer,
    Layer,
    LpipsLayer,
    MaxPoolLayer,
    PointwiseLayer,
    SiluLayer,
    TorchLayer,
    UnitLengthLayer,
)
from shade_fast.runtime.cpu.lowered import ImagesLayer, LoweredNetwork
from shade_fast.runtime.cpu.refs import (
    Ref,
    channels_last,
    count,
    dims_of,
    map_refs,
    meta_of,
    metas_of,
    refs_of,
    same_layout,
)
from shade_fast.runtime.cpu.values import Operand, Value
from shade_fast.runtime.graph import Graph, layer_name, mapped

aten = torch.ops.aten


#: Packed weights by what they are packed from, and for what: a weight's identity, the convolution, the direction and
#: the algorithm.
Packs = dict[tuple[Any, ...], Tensor]


def lower(graph: Graph, inputs: Sequence[Tensor], packs: Packs) -> LoweredNetwork:
    """The network of a traced graph for inputs of these shapes, the first the images [B, 3, h, w].

    packs: filled with the convolutions' packed weights as programs need them.
    Raises NotImplementedError for a graph that no layers stand for.
    """
    return _CpuLowering(graph, inputs, packs).network()


class _CpuLowering:
    def __init__(self, graph: Graph, inputs: Sequence[Tensor], packs: Packs) -> None:
        self.graph = graph
        self.packs = packs
        self.layers: list[Layer] = []
        self.images: list[ImagesLayer] = []
        self.environment: dict[fx.Node, Any] = {}
        self.made_by: dict[Value, Layer] = {}
        self._inputs = dict(zip(graph.inputs, inputs, strict=True))

    def network(self) -> LoweredNetwork:
        outputs: list[Ref] = []
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.environment[node] = self._placeholder(node)
            elif node.op == "call_function":
                if node.users:
                    self.environment[node] = self._call(node)
            elif node.op == "output":
                results: Any = node.args[0]
                outputs = [self._materialized(self.environment[result]) for result in results]
            else:
                raise NotImplementedError(f"{node.op} in a traced graph")
        values = [self._value(ref) for ref in outputs]
        for layer in self.layers:
            for operand in layer.operands():
                operand.value.consumers += 1
        for value in values:
            value.consumers += 1
        views = [(tuple(ref.meta.shape), ref.meta.stride()) for ref in outputs]
        return LoweredNetwork(self.layers, self.images, values, views)

    def _placeholder(self, node: fx.Node) -> Any:
        if node.name in self.graph.constants:
            return self.graph.constants[node.name]
        number = self.graph.inputs.index(node.name)
        given = self._inputs[node.name]
        meta = meta_of(given.shape)
        if number:
            return Ref(None, meta, False, extra=number - 1)
        meta = meta.to(memory_format=torch.channels_last)
        ones = torch.ones(given.shape[1], dtype=torch.float32, device="cpu")
        return Ref(None, meta, len(node.users) == 1, affine=(ones, torch.zeros_like(ones)))

    def _call(self, node: fx.Node) -> Any:
        args = fx.node.map_arg(node.args, lambda before: self.environment[before])
        kwargs = fx.node.map_arg(node.kwargs, lambda before: self.environment[before])
        padded = args[0] if args and isinstance(args[0], _Padded) else None
        if padded is None and not refs_of((args, kwargs)):
            return node.target(*args, **kwargs)  # type: ignore[operator]
        handler = _HANDLERS.get(node.target) or _of_shade_fast(node.target) or _refuse
        lowered = handler(self, node, *args, **kwargs)
        if lowered is NotImplemented and padded is not None:
            args = (self._torch(padded.node, *padded.arguments), *args[1:])
            lowered = handler(self, node, *args, **kwargs)
        if lowered is NotImplemented:
            lowered = self._view(node, args, kwargs)
        if lowered is NotImplemented:
            lowered = self._torch(node, args, kwargs)
        return lowered

    def _view(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """A node that only looks at the same memory in another shape."""
        refs = refs_of((args, kwargs))
        if len(refs) != 1 or refs[0].extra is not None:
            return NotImplemented
        metas = metas_of((args, kwargs))
        try:
            result = node.target(*metas[0], **metas[1])  # type: ignore[operator]
        except RuntimeError:
            return NotImplemented
        source = refs[0].meta
        if (
            not isinstance(result, Tensor)
            or result.untyped_storage()._cdata != source.untyped_storage()._cdata
            or result.numel() != source.numel()
            or result.dtype != source.dtype
        ):
            return NotImplemented
        ref = refs[0] if refs[0].value is not None or same_layout(result, source) else self._materialized(refs[0])
        return replace(ref, meta=result, single=ref.single and len(node.users) == 1)

    def _torch(self, node: fx.Node, args: Any, kwargs: Any) -> Ref:
        """A node that torch runs."""
        refs = refs_of((args, kwargs))
        if any(ref.extra is not None for ref in refs):
            raise NotImplementedError(f"{node.target} takes one of the further inputs")
        metas = metas_of((args, kwargs))
        # Values lie channels-last, also where the module has made them contiguous for a view.
        target: Any = aten.reshape.default if node.target is aten.view.default else node.target
        result = target(*metas[0], **metas[1])
        if not isinstance(result, Tensor) or result.dtype != torch.float32:
            raise NotImplementedError(f"{node.target} gives more than one float32 tensor")
        refs = [self._materialized(ref) for ref in refs]
        meta = result.contiguous()
        if result.ndim == 4:
            meta = meta.contiguous(memory_format=torch.channels_last)
        value = Value(dims_of(meta))
        positions = iter(range(len(refs)))
        slots = map_refs((args, kwargs), lambda ref: _Slot(next(positions)))

        def function(*tensors: Tensor) -> Tensor:
            filled = _map_slots(slots, tensors)
            output: Tensor = target(*filled[0], **filled[1])
            return output

        layer = TorchLayer(
            layer_name(node),
            value,
            function=function,
            sources=[Operand(self._value(ref), self._value(ref).dims) for ref in refs],
            views=[(tuple(ref.meta.shape), ref.meta.stride()) for ref in refs],
            output_view=(tuple(meta.shape), meta.stride()),
            kind=str(target).removeprefix("aten.").removesuffix(".default"),
        )
        return self._add(node, layer, meta)

    def _add(self, node: fx.Node, layer: Layer, meta: Tensor) -> Ref:
        self.layers.append(layer)
        self.made_by[layer.output] = layer
        return Ref(layer.output, meta, len(node.users) == 1)

    def _materialized(self, ref: Ref) -> Ref:
        """The ref with a value: the images are taken in, with what has been made of them."""
        if ref.value is not None or ref.affine is None:
            return ref
        scale, shift = ref.affine
        for layer in self.images:
            if _equal(layer.scale, scale, 1.0) and _equal(layer.shift, shift, 0.0):
                return replace(ref, value=layer.output)
        value = Value(dims_of(ref.meta))
        plain = bool((scale == 1).all()), bool((shift == 0).all())
        self.images.append(ImagesLayer(value, None if plain[0] else scale, None if plain[1] else shift))
        return replace(ref, value=value)

    def _value(self, ref: Ref) -> Value:
        if ref.value is None:
            raise NotImplementedError("a further input is taken as it is")
        return ref.value

    def _operand(self, ref: Any, channel: int = 1) -> Operand | None:
        """The ref as [B, C, h, w], its channels those of dimension `channel`; None where memory has another order."""
        if not isinstance(ref, Ref) or ref.extra is not None or ref.meta.ndim < 2:
            return None
        ref = self._materialized(ref)
        value = self._value(ref)
        order = [axis for axis in range(ref.meta.ndim) if axis != channel % ref.meta.ndim]
        if not ref.meta.permute(*order, channel).is_contiguous() or ref.meta.numel() != count(value.dims):
            return None
        sides = [ref.meta.shape[axis] for axis in order[1:]]
        height, width = sides if len(sides) == 2 else (1, count(sides))
        return Operand(value, (ref.meta.shape[0], ref.meta.shape[channel], height, width))

    def _fusable(self, ref: Ref, kinds: type[Layer] | tuple[type[Layer], ...]) -> Any:
        """The layer that made this ref for its one user, where it is of the kinds and can still take something in."""
        layer = self.made_by.get(ref.value) if ref.value is not None and ref.single else None
        return layer if isinstance(layer, kinds) and not layer.output.gated else None

    def _filters(self, ref: Ref) -> Any:
        """The convolution whose filters are this ref's dimension 1, where they can still be changed."""
        layer = self._fusable(ref, ConvolutionLayer)
        fits = layer is not None and layer.residual is None and same_layout(ref.meta, channels_last(layer.out_dims))
        return layer if fits else None

    # Handlers of ops: each gives NotImplemented where the layer does not fit.

    def convolution(
        self,
        node: fx.Node,
        x: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = (1, 1),
        padding: Any = (0, 0),
        dilation: Any = (1, 1),
        groups: int = 1,
    ) -> Any:
        x, edges, mirrored = self._before_padding(x)
        operand = self._operand(x)
        if operand is None or not isinstance(weight, Tensor) or isinstance(padding, str) or isinstance(bias, Ref):
            return NotImplemented
        stride, padding, dilation = ([sides[0], sides[-1]] for sides in (stride, padding, dilation))
        if stride[0] != stride[1] or dilation != [1, 1]:
            return NotImplemented
        top, left = edges[2] + padding[0], edges[0] + padding[1]
        batch, channels, height, width = operand.dims
        kernel = (weight.shape[2], weight.shape[3])
        rows = (height + edges[2] + edges[3] + 2 * padding[0] - kernel[0]) // stride[0] + 1
        columns = (width + edges[0] + edges[1] + 2 * padding[1] - kernel[1]) // stride[0] + 1
        dims = (batch, weight.shape[0], rows, columns)
        meta = channels_last(dims)
        if groups == channels == weight.shape[0] and kernel[0] == kernel[1] and bias is None:
            same = bool((weight == weight[:1]).all())
            mirror_fits = mirrored and max(padding) == 0 and len(set(edges)) == 1
            if kernel[0] > LARGEST_KERNEL or not same or not (mirror_fits or (max(top, left) == 0 and max(edges) == 0)):
                return NotImplemented
            layer: Layer = BlurLayer(
                *(layer_name(node), Value(dims), operand, weight[0, 0].float().contiguous().clone(), stride[0], top)
            )
            return self._add(node, layer, meta)
        if groups != 1 or mirrored:
            return NotImplemented
        layer = ConvolutionLayer(
            layer_name(node),
            Value(dims),
            source=operand,
            weight=weight.float(),
            bias=None if bias is None else bias.float().contiguous(),
            convolution=Convolution(channels, dims[1], kernel, stride[0], 1, (top, left)),
            out_dims=dims,
            **self._packing(node.args[1]),
        )
        return self._add(node, layer, meta)

    def _packing(self, weight: Any) -> dict[str, Any]:
        """Where a layer's packed weight is kept: for all sizes, unless it is computed, maybe differently, for each."""
        name = self.graph.names.get(weight.name)
        return {} if name is None else {"packs": self.packs, "identity": (name,)}

    def _before_padding(self, x: Any) -> tuple[Any, list[int], bool]:
        """What a convolution's input was before it was padded: (ref, [left, right, top, bottom], mirrored)."""
        if isinstance(x, _Padded):
            return x.source, x.edges, x.mirrored
        return x, [0, 0, 0, 0], False

    def pad(self, node: fx.Node, x: Any, edges: Any, mode: str = "constant", value: Any = None) -> Any:
        """Padding that the convolutions after it take in."""
        users = [user.target for user in node.users]
        if not isinstance(x, Ref) or any(user is not aten.conv2d.default for user in users):
            return NotImplemented
        if len(edges) != 4 or min(edges) < 0 or mode not in ("constant", "reflect") or (value or 0) != 0:
            return NotImplemented
        if mode == "reflect" and any(user.args[-1] != x.meta.shape[1] for user in node.users):
            return NotImplemented
        return _Padded(x, list(edges), mode == "reflect", node, ((x, edges, mode, value), {}))

    def linear(self, node: fx.Node, x: Any, weight: Any, bias: Any = None) -> Any:
        operand = self._operand(x, -1)
        if operand is None or not isinstance(weight, Tensor) or isinstance(bias, Ref):
            return NotImplemented
        dims = (operand.dims[0], weight.shape[0], *operand.dims[2:])
        layer = ConvolutionLayer(
            layer_name(node),
            Value(dims),
            source=operand,
            weight=weight.float()[:, :, None, None],
            bias=None if bias is None else bias.float().contiguous(),
            convolution=Convolution(weight.shape[1], weight.shape[0], (1, 1)),
            out_dims=dims,
            **self._packing(node.args[1]),
        )
        return self._add(node, layer, meta_of((*x.meta.shape[:-1], weight.shape[0])))

    def group_norm(
        self,
        node: fx.Node,
        x: Any,
        groups: int,
        gamma: Any = None,
        beta: Any = None,
        epsilon: float = 1e-5,
        _: Any = True,
    ) -> Any:
        operand = self._operand(x)
        if operand is None or isinstance(gamma, Ref) or isinstance(beta, Ref):
            return NotImplemented
        channels = operand.dims[1]
        ones = torch.ones(channels, dtype=torch.float32, device="cpu")
        gamma = ones if gamma is None else gamma.float().contiguous()
        beta = torch.zeros_like(ones) if beta is None else beta.float().contiguous()
        layer = GroupNormLayer(layer_name(node), Value(operand.dims), operand, gamma, beta, groups, epsilon)
        return self._add(node, layer, x.meta)

    def relu(self, node: fx.Node, x: Any) -> Any:
        layer = self._fusable(x, (ConvolutionLayer, PointwiseLayer, GroupNormLayer))
        if isinstance(layer, GroupNormLayer):
            if layer.activation == "none":
                layer.activation = "relu"
                layer.kind = "group norm, relu"
                return replace(x, single=len(node.users) == 1)
            layer = None
        if layer is not None:
            layer.output.gated = True
            layer.kind += ", relu"
            return replace(x, single=len(node.users) == 1)
        operand = self._operand(x)
        if operand is None:
            return NotImplemented
        return self._add(
            node, PointwiseLayer(layer_name(node), Value(operand.dims, True), operand, kind="relu"), x.meta
        )

    def silu(self, node: fx.Node, x: Any) -> Any:
        layer = self._fusable(x, GroupNormLayer)
        if layer is not None and layer.activation == "none":
            layer.activation = "silu"
            layer.kind = "group norm, silu"
            return replace(x, single=len(node.users) == 1)
        operand = self._operand(x)
        if operand is None:
            return NotImplemented
        return self._add(node, SiluLayer(layer_name(node), Value(operand.dims), operand), x.meta)

    def add(self, node: fx.Node, a: Any, b: Any, alpha: Any = 1) -> Any:
        if not (isinstance(a, Ref) and isinstance(b, Ref)):
            return self._affine(node, a, b, operator.add) if alpha == 1 else NotImplemented
        if alpha != 1 or not same_layout(a.meta, b.meta) or a.extra is not None or b.extra is not None:
            return NotImplemented
        a, b = self._materialized(a), self._materialized(b)
        candidates = [
            (self.layers.index(layer), ref, other, layer)
            for ref, other in ((a, b), (b, a))
            if (layer := self._fusable(ref, ConvolutionLayer)) is not None and layer.residual is None
        ]
        for index, ref, other, layer in sorted(candidates, key=lambda candidate: -candidate[0]):
            maker = self.made_by.get(self._value(other))
            if (maker is None or self.layers.index(maker) < index) and count(layer.out_dims) == other.meta.numel():
                layer.residual = Operand(self._value(other), layer.out_dims)
                layer.kind += ", sum"
                return replace(ref, single=len(node.users) == 1)
        if a.meta.numel() != count(self._value(a).dims):
            return NotImplemented
        dims = self._value(a).dims
        layer = PointwiseLayer(
            *(layer_name(node), Value(dims), Operand(self._value(a), dims), Operand(self._value(b), dims)), kind="sum"
        )
        return self._add(node, layer, a.meta)

    def subtract(self, node: fx.Node, a: Any, b: Any, alpha: Any = 1) -> Any:
        return self._affine(node, a, b, operator.sub) if alpha == 1 else NotImplemented

    def multiply(self, node: fx.Node, a: Any, b: Any) -> Any:
        return self._affine(node, a, b, operator.mul)

    def divide(self, node: fx.Node, a: Any, b: Any) -> Any:
        return self._affine(node, a, b, operator.truediv)

    def _affine(self, node: fx.Node, a: Any, b: Any, function: Callable[[Any, Any], Any]) -> Any:
        """An operation with a constant, one for each channel or for all: taken into the images or a convolution."""
        ref = a if isinstance(a, Ref) else b
        constant = b if isinstance(a, Ref) else a
        if isinstance(constant, Ref) or ref.extra is not None or ref.meta.ndim != 4:
            return NotImplemented
        if function is operator.truediv and ref is b:
            return NotImplemented
        channels = ref.meta.shape[1]
        if isinstance(constant, Tensor):
            if constant.numel() not in (1, channels) or (
                (constant.numel() > 1 and constant.ndim not in (3, 4))
                or (constant.ndim == 4 and constant.shape[0] != 1)
            ):
                return NotImplemented
            if constant.numel() > 1 and constant.shape[-3] != channels:
                return NotImplemented
        constant = torch.as_tensor(constant, dtype=torch.float64, device="cpu").reshape(-1).expand(channels)
        zero, ones = torch.zeros_like(constant), torch.ones_like(constant)
        operands = (lambda value: (value, constant)) if ref is a else (lambda value: (constant, value))
        shift = function(*operands(zero))
        scale = function(*operands(ones)) - shift
        if bool((scale == 1).all()) and bool((shift == 0).all()):
            return replace(ref, single=ref.single and len(node.users) == 1)
        if ref.value is None and ref.affine is not None:
            before = [ones.double() for ones in ref.affine]
            affine = ((before[0] * scale).float(), (before[1] * scale + shift).float())
            return replace(ref, affine=affine, single=ref.single and len(node.users) == 1)
        layer = self._filters(ref)
        if layer is None:
            return NotImplemented
        bias = zero if layer.bias is None else layer.bias.double()
        layer.weight = (layer.weight.double() * scale[:, None, None, None]).float()
        layer.bias = (bias * scale + shift).float()
        layer.identity += ("scaled", *scale.tolist())
        return replace(ref, single=len(node.users) == 1)

    def slice(self, node: fx.Node, x: Any, axis: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
        """A choice of a convolution's filters."""
        layer = self._filters(x)
        if layer is None or axis != 1:
            return NotImplemented
        chosen = slice(start, end, step)
        layer.weight = layer.weight[chosen].contiguous()
        layer.identity += ("chosen", start, end, step)
        layer.bias = None if layer.bias is None else layer.bias[chosen].contiguous()
        batch, _, height, width = layer.out_dims
        layer.out_dims = layer.output.dims = (batch, len(layer.weight), height, width)
        layer.convolution = replace(layer.convolution, filters=len(layer.weight))
        return replace(x, meta=channels_last(layer.out_dims), single=len(node.users) == 1)

    def max_pool(
        self,
        node: fx.Node,
        x: Any,
        kernel: Any,
        stride: Any = (),
        padding: Any = (0, 0),
        dilation: Any = (1, 1),
        ceil: bool = False,
    ) -> Any:
        operand = self._operand(x)
        stride = stride or kernel
        if operand is None or any(sides[0] != sides[-1] for sides in (kernel, stride, padding, dilation)):
            return NotImplemented
        if kernel[0] > LARGEST_KERNEL or dilation[0] != 1:
            return NotImplemented
        shape = torch.nn.functional.max_pool2d(x.meta, kernel, stride, padding, dilation, ceil).shape
        dims = (shape[0], shape[1], shape[2], shape[3])
        layer = MaxPoolLayer(layer_name(node), Value(dims), operand, kernel[0], stride[0], padding[0])
        return self._add(node, layer, channels_last(dims))

    def attention(
        self,
        node: fx.Node,
        query: Any,
        key: Any,
        value: Any,
        mask: Any = None,
        dropout: float = 0.0,
        causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        refs = [query, key, value]
        if mask is not None or dropout or causal or enable_gqa or not all(isinstance(ref, Ref) for ref in refs):
            return NotImplemented
        if any(ref.meta.ndim != 4 or ref.meta.shape[1:2] != query.meta.shape[1:2] for ref in refs):
            return NotImplemented
        operands = []
        for ref in refs:
            tokens = ref.meta.transpose(1, 2)  # [B, tokens, heads, size]
            if not tokens.is_contiguous() or ref.value is None or ref.meta.numel() != count(ref.value.dims):
                return NotImplemented
            operands.append(
                Operand(ref.value, (tokens.shape[0], tokens.shape[2] * tokens.shape[3], 1, tokens.shape[1]))
            )
        batch, heads, tokens_count, size = query.meta.shape
        if value.meta.shape[3] != size or key.meta.shape[3] != size:
            return NotImplemented
        layer = AttentionLayer(
            layer_name(node),
            Value((batch, heads * size, 1, tokens_count)),
            query=operands[0],
            key=operands[1],
            value=operands[2],
            heads=heads,
            scale=size**-0.5 if scale is None else scale,
        )
        meta = meta_of((batch, tokens_count, heads, size)).transpose(1, 2)
        return self._add(node, layer, meta)

    def lpips_layer(self, node: fx.Node, activations: Any, clean: Any, head: Any) -> Any:
        operand = self._operand(activations)
        if operand is None or not isinstance(clean, Ref) or clean.extra is None or not isinstance(head, Tensor):
            return NotImplemented
        layer = LpipsLayer(
            layer_name(node), Value((operand.dims[0], 1, 1, 1)), operand, clean.extra, head.float().contiguous()
        )
        return self._add(node, layer, meta_of((operand.dims[0],)))

    def unit_length(self, node: fx.Node, activations: Any) -> Any:
        operand = self._operand(activations)
        if operand is None:
            return NotImplemented
        return self._add(node, UnitLengthLayer(layer_name(node), Value(operand.dims), operand), activations.meta)

    def identity(self, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(x, Ref) or any(kwargs.get(name) is not None for name in ("dtype", "device")):
            return NotImplemented
        return replace(x, single=x.single and len(node.users) == 1)


@dataclass(frozen=True)
class _Padded:
    """The result of a padding that has not been made: its convolutions take it in."""

    source: Ref
    edges: list[int]
    mirrored: bool
    node: fx.Node
    arguments: tuple[Any, Any]


@dataclass(frozen=True)
class _Slot:
    """The place of a tensor in the arguments of an op that torch runs."""

    number: int


_HANDLERS: dict[Any, Callable[..., Any]] = {
    aten.conv2d.default: _CpuLowering.convolution,
    aten.pad.default: _CpuLowering.pad,
    aten.linear.default: _CpuLowering.linear,
    aten.group_norm.default: _CpuLowering.group_norm,
    aten.relu.default: _CpuLowering.relu,
    aten.silu.default: _CpuLowering.silu,
    aten.add.Tensor: _CpuLowering.add,
    aten.sub.Tensor: _CpuLowering.subtract,
    aten.mul.Tensor: _CpuLowering.multiply,
    aten.div.Tensor: _CpuLowering.divide,
    aten.slice.Tensor: _CpuLowering.slice,
    aten.max_pool2d.default: _CpuLowering.max_pool,
    aten.scaled_dot_product_attention.default: _CpuLowering.attention,
    aten.clone.default: _CpuLowering.identity,
    aten.contiguous.default: _CpuLowering.identity,
    aten.dropout.default: _CpuLowering.identity,
}


def _of_shade_fast(target: Any) -> Callable[..., Any] | None:
    """The handlers of our own ops, which are registered where they are used."""
    names: dict[str, Callable[..., Any]] = {
        "shade_fast::lpips_layer": _CpuLowering.lpips_layer,
        "shade_fast::unit_length": _CpuLowering.unit_length,
    }
    return names.get(str(target._name)) if isinstance(target, torch._ops.OpOverload) else None


def _refuse(*_: Any, **__: Any) -> Any:
    return NotImplemented


def _map_slots(structure: Any, tensors: Sequence[Tensor]) -> Any:
    return mapped(structure, _Slot, lambda slot: tensors[slot.number])


def _equal(had: Tensor | None, wanted: Tensor, default: float) -> bool:
    return bool((wanted == (torch.full_like(wanted, default) if had is None else had)).all())
