"""From a module to a graph of ATen operators on tensors alone: its forward, its step, or its pullback, for one shape.

    forward    inputs -> outputs
    step       inputs -> outputs and the gradient of their sum in the images, or of each output by itself
    pullback   inputs and outputs' gradients -> the gradient in the images

Inputs are images [B, C, h, w] and further tensors, which get no gradient.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from shade_fast.runtime.graph import check_gradient, exported
from shade_fast.runtime.onnx.decompositions import table
from shade_fast.runtime.onnx.half import scale_of

aten = torch.ops.aten

#: torch's tracing and export change what the whole process dispatches to while they run.
TRACING = threading.RLock()
#: What a graph is of. `steps` gives a gradient for each output, `step` that of their sum.
KINDS = ("forward", "step", "steps", "pullback")
#: A constant that is this small, or no larger than so many times what it is made of, is stored rather than made.
SMALL, GROWTH = 1 << 16, 4


@dataclass(frozen=True, eq=False)
class Source:
    """A module's forward for inputs of these shapes, as operators that change nothing in place.

    run: the forward, differentiable. shapes, outputs: of the inputs, the images first, and of the outputs.
    single: whether the module gives one tensor, not a tuple. sha256: of the operators and of the constants.
    """

    run: fx.GraphModule
    shapes: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    single: bool
    device: torch.device
    sha256: str

    @property
    def per_image(self) -> bool:
        """Whether each output is one number for each image."""
        return all(shape == self.shapes[0][:1] for shape in self.outputs)

    def names(self, kind: str) -> tuple[list[str], list[str]]:
        """Names for the inputs and outputs of one kind of graph."""
        inputs = ["images", *(f"input_{number}" for number in range(1, len(self.shapes)))]
        outputs = [f"output_{number}" for number in range(len(self.outputs))]
        gradients = [f"gradient_{number}" for number in range(len(self.outputs))]
        return {
            "forward": (inputs, outputs),
            "step": (inputs, [*outputs, "gradient"]),
            "steps": (inputs, [*outputs, *gradients]),
            "pullback": ([*inputs, *gradients], ["gradient"]),
        }[kind]


def read(module: nn.Module, inputs: Sequence[Tensor]) -> Source:
    """The module's forward for inputs of these shapes; raises what `exported` and `check_gradient` do."""
    with TRACING, warnings.catch_warnings(), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")
        empty = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs]
        program = exported(module, empty)
        check_gradient(program, kept=[aten.detach.default])
        program = program.run_decompositions({})
    outputs = next(node for node in program.graph.nodes if node.op == "output").args[0]
    digest = hashlib.sha256(program.graph_module.code.encode())
    for spec in program.graph_signature.input_specs:
        if spec.target is not None:
            tensors = program.state_dict if spec.target in program.state_dict else program.constants
            _hash(digest, spec.arg.name, tensors[spec.target])
    shapes = tuple(tuple(output.meta["val"].shape) for output in outputs)
    single = program.call_spec.out_spec.is_leaf()
    given = tuple(tuple(tensor.shape) for tensor in inputs)
    run = program.module(check_guards=False)
    return Source(run, given, shapes, single, inputs[0].device, digest.hexdigest())


def trace(source: Source, kind: str) -> fx.GraphModule:
    """The graph; outputs as `KINDS` says, constants its buffers."""
    shapes = (*source.shapes, *source.outputs) if kind == "pullback" else source.shapes
    inputs = [torch.empty(shape, device=source.device) for shape in shapes]
    function = _FUNCTIONS[kind](source)
    with TRACING, warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")
        graph = _traced(function, inputs)
        if any(map(_changes_in_place, graph.graph.nodes)):
            graph = _traced(functionalize(graph), inputs)
    _simplify(graph)
    return graph.eval()


def _traced(function: Callable[..., Any], inputs: Sequence[Tensor]) -> fx.GraphModule:
    return make_fx(function, table(), tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)


def _changes_in_place(node: fx.Node) -> bool:
    """Whether a node writes to what it is given, as some operators' own decompositions do."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _forward(source: Source) -> Callable[..., Any]:
    def forward(*inputs: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return _flat(source.run(*inputs))

    return forward


def _step(source: Source, each: bool) -> Callable[..., Any]:
    def step(images: Tensor, *extras: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            images = images.detach().requires_grad_(True)
            outputs, entries = _watched(source, images, *extras)
            sums = [output.sum() for output in outputs]
            wanted = sums if each else [torch.stack(sums).sum()]
            gradients = [_gradient([total], images, entries) for total in wanted]
        return [*(output.detach() for output in outputs), *gradients]

    return step


def _pullback(source: Source) -> Callable[..., Any]:
    count = len(source.outputs)

    def pullback(images: Tensor, *others: Tensor) -> list[Tensor]:
        extras, upstream = others[:-count], others[-count:]
        with torch.enable_grad():
            images = images.detach().requires_grad_(True)
            outputs, entries = _watched(source, images, *extras)
            return [_gradient(outputs, images, entries, upstream)]

    return pullback


class _Watch(fx.Interpreter):
    """Runs a graph and keeps what comes out of networks of half precision."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.widened: list[Tensor] = []

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        result = super().call_function(target, args, kwargs)
        if target is torch.ops.shade_fast.widen.default:
            self.widened.append(result)
        return result


def _watched(source: Source, *inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs, and where their gradients enter networks of half precision."""
    watch = _Watch(source.run)
    return _flat(watch.run(*inputs)), watch.widened


def _gradient(
    outputs: Sequence[Tensor], images: Tensor, entries: Sequence[Tensor], upstream: Sequence[Tensor] | None = None
) -> Tensor:
    """The gradient in the images, scaled on its way through half precision."""
    if not entries:
        return torch.autograd.grad(outputs, images, upstream, retain_graph=True)[0]
    gradients = torch.autograd.grad(outputs, entries, upstream, retain_graph=True, allow_unused=True)
    entering = [(entry, gradient) for entry, gradient in zip(entries, gradients, strict=True) if gradient is not None]
    scale = scale_of([gradient for _, gradient in entering])
    scaled = [gradient * scale for _, gradient in entering]
    (gradient,) = torch.autograd.grad([entry for entry, _ in entering], images, scaled, retain_graph=True)
    return gradient / scale


_FUNCTIONS: dict[str, Callable[[Source], Callable[..., Any]]] = {
    "forward": _forward,
    "step": lambda source: _step(source, False),
    "steps": lambda source: _step(source, True),
    "pullback": _pullback,
}


def _flat(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _simplify(module: fx.GraphModule) -> None:
    """Drop what does nothing, make what is made twice once, and store what is made of constants alone."""
    nothing = (aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default)
    for node in list(module.graph.nodes):
        if node.target in nothing:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif node.target is aten.max_pool2d_with_indices.default:
            _without_indices(module.graph, node)
    module.graph.eliminate_dead_code()
    _merge(module.graph)
    _fold(module)
    module.graph.eliminate_dead_code()
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*module.named_parameters(), *module.named_buffers()) if name not in used]:
        delattr(module, name)
    module.recompile()


def _without_indices(graph: fx.Graph, node: fx.Node) -> None:
    """A max pool whose indices nobody takes, with all its arguments: one that makes none."""
    results = [user for user in node.users if user.users]
    if any(user.args[1] for user in results):
        return
    given: list[Any] = list(node.args)
    defaults: list[Any] = [[], [0, 0], [1, 1], False]
    x, kernel, stride, padding, dilation, ceil_mode = given + defaults[len(given) - 2 :]
    arguments = (x, *map(list, (kernel, stride or kernel, padding, dilation)), ceil_mode)
    with graph.inserting_after(node):
        pool = graph.call_function(aten.max_pool2d.default, arguments)
    pool.meta["val"] = node.meta["val"][0]
    for user in results:
        user.replace_all_uses_with(pool)


def _merge(graph: fx.Graph) -> None:
    seen: dict[tuple[Any, ...], fx.Node] = {}
    for node in list(graph.nodes):
        if node.op in ("call_function", "get_attr") and not _is_random(node):
            first = seen.setdefault((node.op, node.target, repr(node.args), repr(node.kwargs)), node)
            if first is not node:
                node.replace_all_uses_with(first)
                graph.erase_node(node)


def _is_random(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _fold(module: fx.GraphModule) -> None:
    values: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            values[node] = getattr(module, node.target).detach()
        elif node.op == "call_function" and all(source in values for source in node.all_input_nodes):
            value = node.meta.get("val")
            if _is_random(node) or (not node.all_input_nodes and isinstance(value, Tensor) and value.numel() > SMALL):
                continue
            arguments = fx.node.map_arg((node.args, node.kwargs), lambda source: values[source])
            with torch.no_grad():
                values[node] = node.target(*arguments[0], **arguments[1])
    stored = 0
    for node in list(module.graph.nodes):
        value = values.get(node)
        if node.op == "get_attr" or not isinstance(value, Tensor) or all(user in values for user in node.users):
            continue
        made_of = sum(source.numel() for source in map(values.get, node.all_input_nodes) if isinstance(source, Tensor))
        if value.numel() > max(SMALL, GROWTH * made_of):
            continue
        name = f"_folded_{stored}"
        stored += 1
        module.register_buffer(name, value.contiguous())
        with module.graph.inserting_before(node):
            constant = module.graph.get_attr(name)
        node.replace_all_uses_with(constant, delete_user_cb=lambda user: user not in values)


def _hash(digest: Any, name: str, tensor: Tensor) -> None:
    values = tensor.detach().cpu().contiguous()
    digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
    digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
