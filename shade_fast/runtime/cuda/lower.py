"""From a traced graph to the program of a network frozen for a GPU."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from shade_fast.ops.layout import channels_last
from shade_fast.ops.max_pool import LARGEST_KERNEL_ON_GPU
from shade_fast.runtime.cuda import layers
from shade_fast.runtime.cuda.padding import wider_padding
from shade_fast.runtime.graph import Graph, layer_name, mapped

aten = torch.ops.aten

#: Weights by the name of what they were made of and what they were made into, shared by the programs of a network.
Constants = dict[tuple[Any, ...], Tensor]

#: Ops that give the dtype of what they are given, features' or images'. All others run in float32, as they were traced.
_OF_ANY_DTYPE = {
    *("view", "reshape", "transpose", "permute", "slice", "select", "unsqueeze", "squeeze", "expand", "flatten"),
    *("chunk", "split", "cat", "pad", "relu", "silu", "tanh", "sigmoid", "gelu", "leaky_relu", "hardtanh", "neg"),
    *("add", "sub", "mul", "div", "avg_pool2d", "adaptive_avg_pool2d", "upsample_nearest2d", "pixel_unshuffle"),
    *("unit_length",),
}


def lower(graph: Graph, dtype: torch.dtype, tf32: bool, constants: Constants) -> fx.GraphModule:
    """The program of a graph: what stands together is one layer, features have a dtype, weights lie channels-last.

    constants: filled with the weights as the program takes them. The program takes the graph's inputs, and gives a
    tuple of its outputs.
    """
    return _CudaLowering(graph, dtype, tf32, constants).program()


@dataclass(eq=False)
class _Pending:
    """A sum that has not been made, x + bias[c] + addend: what takes it may make it on its way."""

    x: fx.Node
    bias: Tensor | None
    addend: fx.Node | None = None
    #: whether something has taken x without its bias, and passes it on
    shared: bool = False
    #: the node once something has made it
    made: fx.Node | None = None


class _CudaLowering:
    def __init__(self, graph: Graph, dtype: torch.dtype, tf32: bool, constants: Constants) -> None:
        self.traced = graph
        self.dtype = dtype
        self.tf32 = tf32 if dtype == torch.float32 else None
        self.constants = constants
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.environment: dict[fx.Node, Any] = {}
        self.names = {id(graph.constants[node]): name for node, name in graph.names.items()}
        self.layer = ""

    def program(self) -> fx.GraphModule:
        _drop_what_does_nothing(self.traced)
        for node in self.traced.nodes:
            if node in self.environment:
                continue
            if node.op == "placeholder":
                constant = self.traced.constants.get(node.name)
                self.environment[node] = self.graph.placeholder(node.name) if constant is None else constant
            elif node.op == "call_function":
                self.layer = layer_name(node)
                self.environment[node] = self._call(node)
            elif node.op == "output":
                results: Any = node.args[0]
                self.graph.output(tuple(self._node(self.environment[result]) for result in results))
            else:
                raise NotImplementedError(f"{node.op} in a traced graph")
        self.graph.eliminate_dead_code()
        return fx.GraphModule(self.root, self.graph)

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = self._of(node.args), self._of(node.kwargs)
        if not _holds((args, kwargs), (fx.Node, _Pending)):
            return node.target(*args, **kwargs)  # type: ignore[operator]
        handler = _HANDLERS.get(str(node.target))
        lowered = NotImplemented if handler is None else handler(self, node, *args, **kwargs)
        return self._torch(node, args, kwargs) if lowered is NotImplemented else lowered

    # Handlers of ops: each gives NotImplemented where the node does not fit.

    def convolution(
        self,
        node: fx.Node,
        x: Any,
        weight: Any,
        bias: Any = None,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] | str = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
    ) -> Any:
        if not isinstance(weight, Tensor) or isinstance(bias, fx.Node | _Pending):
            return NotImplemented
        if isinstance(padding, str):
            reach = [step * (side - 1) for step, side in zip(dilation, weight.shape[2:], strict=True)]
            if padding == "same" and any(extent % 2 for extent in reach):
                return NotImplemented
            padding = [extent // 2 if padding == "same" else 0 for extent in reach]
        if weight[0, 0].numel() == 1 and set(stride) == {1} and set(padding) == {0} and groups == 1:
            if _untaken(x, _source(node)) and x.addend is None and x.bias is not None:
                # Of one pixel a bias before the product is a bias after it.
                moved = (weight.flatten(1).double() @ x.bias.double()).float()
                bias, x = moved if bias is None else moved + bias, x.x
            layer = self._emit(layers.pointwise, self._node(x), self._weight(weight, flat=True), None, self.tf32)
        else:
            crop = None
            wider = wider_padding(_source(node), weight.shape[2:], stride, padding, dilation)
            if wider is not None:
                x, padding = self.environment[_source(_source(node))], wider.padding
                crop = (*wider.skipped, *_shape(node)[2:])
            window = (list(stride), list(padding), list(dilation), groups, self.tf32, crop)
            layer = self._emit(layers.convolution, self._node(x), self._weight(weight), None, *window)
        return layer if bias is None else _Pending(layer, bias)

    def linear(self, node: fx.Node, x: Any, weight: Any, bias: Any = None) -> Any:
        if not isinstance(weight, Tensor) or isinstance(bias, fx.Node | _Pending):
            return NotImplemented
        return self._emit(layers.linear, self._node(x), self._weight(weight), self._weight(bias), self.tf32)

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
        shape = _shape(node.args[0])
        if len(shape) not in (3, 4) or isinstance(gamma, fx.Node) or isinstance(beta, fx.Node):
            return NotImplemented
        device = _device(node.args[0])
        gamma = torch.ones(shape[1], device=device) if gamma is None else gamma
        beta = torch.zeros(shape[1], device=device) if beta is None else beta
        activation, last = "none", node
        (*others,) = node.users
        if len(others) == 1 and str(others[0].target) in _ACTIVATIONS:
            activation, last = _ACTIVATIONS[str(others[0].target)], others[0]
        # What else takes the input takes it from here: its gradient is then added on the way.
        keep = len(_source(node).users) > 1
        pending = x if isinstance(x, _Pending) and x.made is None and len(shape) == 4 else None
        source, bias, addend = (self._node(x), None, None) if pending is None else (x.x, x.bias, x.addend)
        results = self._emit(
            layers.norm,
            *(source, self._array(bias), addend, self._array(gamma), self._array(beta)),
            *(groups, epsilon, activation, keep, self.dtype),
        )
        if keep:
            total = self._emit(operator.getitem, results, 0)
            if pending is None:
                self.environment[_source(node)] = total
            elif addend is None:
                pending.x, pending.shared = total, True
            else:
                pending.made = total
        y = self._emit(operator.getitem, results, 1)
        self.environment[last] = y
        return y

    def relu(self, node: fx.Node, x: Any) -> Any:
        if len(_shape(node)) != 4:
            return NotImplemented
        if not _untaken(x, _source(node)):
            x = _Pending(self._node(x), None)
        compared = [user for user in node.users if self._compares(user, node)]
        if compared and x.addend is None:
            clean, head = self._of(compared[0].args[1:])
            results = self._emit(
                layers.relu_lpips_layer, x.x, self._array(x.bias), self._node(clean), self._array(head)
            )
            self.environment[compared[0]] = self._emit(operator.getitem, results, 1)
            return self._emit(operator.getitem, results, 0)
        return self._emit(layers.epilogue, x.x, self._array(x.bias), x.addend, relu=True)

    def _compares(self, node: fx.Node, activations: fx.Node) -> bool:
        """Whether a node is an LPIPS layer of these activations whose other side is there already."""
        if str(node.target) != "shade_fast.lpips_layer.default" or node.args[0] is not activations:
            return False
        clean, head = node.args[1:]
        return clean in self.environment and isinstance(self.environment.get(head), Tensor)  # type: ignore[arg-type]

    def add(self, node: fx.Node, a: Any, b: Any, alpha: Any = 1) -> Any:
        if alpha != 1 or not all(isinstance(term, fx.Node | _Pending) for term in (a, b)) or a is b:
            return NotImplemented
        traced: list[Any] = list(node.args[:2])
        if _shape(traced[0]) != _shape(traced[1]) or len(_shape(traced[0])) != 4:
            return NotImplemented
        # Convolutions leave their biases to the sum.
        free: list[_Pending] = []
        others: list[fx.Node | _Pending] = []
        for term, before in zip((a, b), traced, strict=True):
            if _untaken(term, before) and term.addend is None:
                free.append(term)
            else:
                others.append(term)
        biases = [term.bias for term in free if term.bias is not None]
        terms = [*(term.x for term in free), *(self._node(term) for term in others)]
        return _Pending(terms[0], torch.stack(biases).sum(0) if biases else None, terms[1])

    def max_pool(
        self,
        node: fx.Node,
        x: Any,
        kernel: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        ceil: bool = False,
    ) -> Any:
        sides = [set(side) for side in (kernel, stride or kernel, padding)]
        if len(_shape(node)) != 4 or any(len(side) > 1 for side in sides) or set(dilation) != {1}:
            return NotImplemented
        window = [side.pop() for side in sides]
        if window[0] > LARGEST_KERNEL_ON_GPU:
            return NotImplemented
        return self._emit(layers.max_pool, self._node(x), *window, _shape(node)[2:])

    def pad(self, node: fx.Node, x: Any, sides: Sequence[int], mode: str = "constant", value: Any = None) -> Any:
        if mode != "reflect" or len(_shape(node)) != 4 or len(sides) != 4 or min(sides) < 0:
            return NotImplemented
        return self._emit(layers.reflection_pad, self._node(x), list(sides))

    def attention(self, node: fx.Node, query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> Any:
        parts = [self._node(part) for part in (query, key, value)]
        return self._emit(layers.attention, *parts, self.dtype, self.tf32, *self._nodes(rest), **self._nodes(named))

    def lpips_layer(self, node: fx.Node, activations: Any, clean: Any, head: Any) -> Any:
        if not isinstance(head, Tensor):
            return NotImplemented
        return self._emit(layers.lpips_layer, self._node(activations), self._node(clean), self._array(head))

    def view(self, node: fx.Node, x: Any, shape: Sequence[int]) -> Any:
        """Features lie in another order than they were traced in."""
        return self._emit(torch.reshape, self._node(x), list(shape))

    def _torch(self, node: fx.Node, args: Any, kwargs: Any) -> fx.Node:
        """A node that torch runs."""
        if node.target is operator.getitem:
            return self._emit(operator.getitem, *self._nodes(args))
        args, kwargs = self._nodes(args), self._nodes(kwargs)
        if str(node.target).split(".")[-2] not in _OF_ANY_DTYPE:

            def in_float32(argument: fx.Node) -> fx.Node:
                return self._emit(torch.Tensor.float, argument) if argument.meta.get("floating", True) else argument

            args, kwargs = (mapped(argument, fx.Node, in_float32) for argument in (args, kwargs))
        result = self._emit(node.target, *args, **kwargs)  # type: ignore[arg-type]
        value = node.meta.get("val")
        result.meta["floating"] = isinstance(value, Tensor) and value.is_floating_point()
        return result

    def _emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        node = self.graph.call_function(target, args, kwargs)
        node.meta["layer"] = self.layer
        return node

    def _of(self, structure: Any) -> Any:
        """Arguments of the traced graph, with what stands for its nodes now."""
        return mapped(structure, fx.Node, lambda traced: self.environment[traced])

    def _nodes(self, structure: Any) -> Any:
        """Arguments as nodes take them: sums made, constants read from the program."""
        return mapped(structure, (_Pending, Tensor), self._node)

    def _node(self, value: Any) -> fx.Node:
        if isinstance(value, fx.Node):
            return value
        if isinstance(value, Tensor):
            return self._constant(value, ("as it is",), lambda tensor: tensor)
        if value.made is None:
            value.made = self._made(value)
        node: fx.Node = value.made
        return node

    def _made(self, pending: _Pending) -> fx.Node:
        if pending.shared:
            return self._emit(layers.epilogue, pending.x, self._array(pending.bias))
        if pending.addend is None:
            # A convolution adds its own bias, unless something has taken it without.
            x, weight, _, *rest = pending.x.args
            pending.x.args = (x, weight, self._before(pending.x, self._weight(pending.bias)), *rest)
            return pending.x
        if pending.bias is None:
            return self._emit(aten.add.Tensor, pending.x, pending.addend)
        return self._emit(layers.epilogue, pending.x, self._array(pending.bias), pending.addend)

    def _before(self, user: fx.Node, constant: fx.Node | None) -> fx.Node | None:
        """A constant's node in front of a user that is there already."""
        if constant is not None:
            user.prepend(constant)
        return constant

    def _weight(self, tensor: Tensor | None, flat: bool = False) -> fx.Node | None:
        """A product's weight or bias: in the features' dtype, flat as a matrix."""
        if tensor is None:
            return None

        def packed(tensor: Tensor) -> Tensor:
            tensor = (tensor.flatten(1) if flat else tensor).to(self.dtype)
            return channels_last(tensor) if tensor.ndim == 4 else tensor.contiguous()

        return self._constant(tensor, (self.dtype, flat), packed)

    def _array(self, tensor: Tensor | None) -> fx.Node | None:
        """A constant for each channel: float32."""
        return (
            None if tensor is None else self._constant(tensor, ("array",), lambda values: values.float().contiguous())
        )

    def _constant(self, tensor: Tensor, into: tuple[Any, ...], make: Callable[[Tensor], Tensor]) -> fx.Node:
        known = self.names.get(id(tensor))
        key = (known, *into)
        if known is None:
            held = make(tensor)
        else:
            held = self.constants[key] if key in self.constants else self.constants.setdefault(key, make(tensor))
        name = f"constant{len(self.root._buffers)}"
        self.root.register_buffer(name, held, persistent=False)
        node = self.graph.get_attr(name)
        node.meta["floating"] = held.is_floating_point()
        return node


_ACTIVATIONS = {"aten.silu.default": "silu", "aten.relu.default": "relu"}
_HANDLERS: dict[str, Callable[..., Any]] = {
    "aten.conv2d.default": _CudaLowering.convolution,
    "aten.conv2d.padding": _CudaLowering.convolution,
    "aten.linear.default": _CudaLowering.linear,
    "aten.group_norm.default": _CudaLowering.group_norm,
    "aten.relu.default": _CudaLowering.relu,
    "aten.add.Tensor": _CudaLowering.add,
    "aten.max_pool2d.default": _CudaLowering.max_pool,
    "aten.pad.default": _CudaLowering.pad,
    "aten.scaled_dot_product_attention.default": _CudaLowering.attention,
    "aten.view.default": _CudaLowering.view,
    "aten.reshape.default": _CudaLowering.view,
    "shade_fast.lpips_layer.default": _CudaLowering.lpips_layer,
}


def _drop_what_does_nothing(graph: Graph) -> None:
    """Take out copies, dropout, division by one and the like, so that their users are those of what is before them."""
    for node in list(graph.nodes):
        if node.op == "call_function" and not node.users:
            dropped = True
        elif node.op == "call_function" and _does_nothing(node):
            node.replace_all_uses_with(_source(node))
            dropped = True
        else:
            dropped = False
        if dropped:
            graph.nodes.remove(node)
            node.graph.erase_node(node)


def _does_nothing(node: fx.Node) -> bool:
    target = str(node.target)
    if target in ("aten.clone.default", "aten.contiguous.default", "aten.dropout.default", "aten.detach.default"):
        return True
    if target in ("aten.to.dtype", "aten._to_copy.default", "aten.to.dtype_layout"):
        source, result = _source(node).meta.get("val"), node.meta.get("val")
        return (
            source is not None and result is not None and (source.dtype, source.device) == (result.dtype, result.device)
        )
    return target in ("aten.div.Tensor", "aten.mul.Tensor") and node.args[1] in (1, 1.0)


def _untaken(value: Any, traced: fx.Node) -> bool:
    """Whether a value is a sum that what takes it now may make: nobody else does, or each for itself."""
    return isinstance(value, _Pending) and value.made is None and (value.shared or len(traced.users) == 1)


def _source(node: fx.Node) -> fx.Node:
    """The traced node that a node's first argument is."""
    source = node.args[0]
    if not isinstance(source, fx.Node):
        raise NotImplementedError(f"{node.target} of {source!r}")
    return source


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _device(node: Any) -> torch.device:
    device: torch.device = node.meta["val"].device
    return device


def _holds(structure: Any, kinds: Any) -> bool:
    parts: list[Any] = []
    mapped(structure, kinds, parts.append)
    return bool(parts)
