"""A module as a graph of ATen ops, refused where its gradient would not be the module's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import BackwardCFunction
from torch.export import ExportedProgram

from shade_fast.runtime.switches import readable

aten = torch.ops.aten

#: Ops that are given the shape of what they make of the same values.
_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)

#: Ops that let no gradient through.
_STOPS = (aten.detach.default, aten.detach_.default)


class Graph:
    """A module's traced graph: nodes of ATen ops, and the tensors that are its constants."""

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor]) -> None:
        """Trace `module(*inputs)`; raises what `exported` does, and NotImplementedError where the module keeps a
        gradient from the images, the first input."""
        program = exported(module, inputs)
        check_gradient(program)
        if any(node.op == "get_attr" for node in program.graph.nodes) or not _without_writes(program.graph):
            with warnings.catch_warnings(), torch.enable_grad(), readable():
                warnings.simplefilter("ignore")
                program = program.run_decompositions({})
        self.nodes: list[fx.Node] = list(program.graph.nodes)
        self.constants: dict[str, Tensor] = {}
        #: of the constants that the module has at every size, their names in it
        self.names: dict[str, str] = {}
        self.inputs: list[str] = []
        kinds = torch.export.graph_signature.InputKind
        for spec in program.graph_signature.input_specs:
            if spec.kind == kinds.USER_INPUT:
                self.inputs.append(spec.arg.name)
            else:
                tensors = program.state_dict if spec.target in program.state_dict else program.constants
                self.constants[spec.arg.name] = tensors[spec.target].detach()
                if spec.kind in (kinds.PARAMETER, kinds.BUFFER):
                    self.names[spec.arg.name] = spec.target
        if len(program.graph_signature.output_specs) != len(program.graph_signature.user_outputs):
            raise NotImplementedError("the module writes to its own buffers")
        result = torch.utils._pytree.tree_unflatten(
            list(program.graph_signature.user_outputs), program.call_spec.out_spec
        )
        #: whether the module gives one tensor, not a tuple of them
        self.single = isinstance(result, str)
        if not self.single and not isinstance(result, tuple):
            raise NotImplementedError(f"the module gives a {type(result).__name__}")

    def is_of(self, alone: Graph) -> bool:
        """Whether this graph of several images is that of one but for the shapes of views, so that nothing else in it
        follows from how many there are."""
        pairs = list(zip(self.nodes, alone.nodes, strict=False))
        return (
            len(self.nodes) == len(alone.nodes)
            and all((node.op, node.target) == (other.op, other.target) for node, other in pairs)
            and all(node.target in _VIEWS or _numbers(node) == _numbers(other) for node, other in pairs)
            and all(
                mine.shape == theirs.shape and torch.equal(mine, theirs)
                for mine, theirs in zip(self.constants.values(), alone.constants.values(), strict=True)
            )
        )


def exported(module: nn.Module, inputs: Sequence[Tensor]) -> ExportedProgram:
    """`module(*inputs)` as a graph of ATen ops, traced as it is where the first input needs a gradient.

    A graph of ops has the gradients of its ops: that of a `torch.autograd.Function` would be another than its own.
    Raises NotImplementedError where the module has one, and what torch.export raises where its code depends on values.
    """
    own: list[str] = []

    def look(_: nn.Module, __: Any, outputs: Any) -> None:
        own.extend(_own_gradients(outputs))

    images, *extras = inputs
    seen = module.register_forward_hook(look)
    try:
        # Under no_grad a region of the module's own under no_grad would leave no trace.
        with warnings.catch_warnings(), torch.enable_grad(), readable():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, (images.detach().requires_grad_(), *extras), strict=False)
    finally:
        seen.remove()
    if own:
        raise NotImplementedError(f"the module has a gradient of its own: {', '.join(sorted(set(own)))}")
    return program


def check_gradient(program: ExportedProgram, kept: Collection[Any] = ()) -> None:
    """Raise NotImplementedError where what is made of the images comes to a detach(), or to a region of modes of its
    own, as `with torch.no_grad()` is one. kept: ops of these whose gradient the caller knows to stop."""
    reached: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.name == program.graph_signature.user_inputs[0] or not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
            if node.target in {*_STOPS} - {*kept} or isinstance(node.target, torch._ops.HigherOrderOperator):
                raise NotImplementedError(f"the module stops the gradient: {node.target} of what is made of images")


def _own_gradients(outputs: Any) -> Iterator[str]:
    """Names of the autograd.Functions between outputs and what they were made of, without those of registered ops."""
    ahead = [leaf.grad_fn for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    known: set[Any] = set()
    while ahead:
        node = ahead.pop()
        if node is None or node in known:
            continue
        known.add(node)
        name = type(node).__name__.removesuffix("Backward")
        if isinstance(node, BackwardCFunction) and not name.startswith("GeneratedBackwardFor"):
            yield name
        ahead.extend(following for following, _ in node.next_functions)


def _numbers(node: fx.Node) -> list[Any]:
    """What a node is given that no node makes."""
    leaves = torch.utils._pytree.tree_leaves((node.args, node.kwargs))
    return [leaf for leaf in leaves if not isinstance(leaf, fx.Node)]


def layer_name(node: fx.Node) -> str:
    """The submodule that a node is of; its own name where it is of none."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [path for path, _ in stack.values() if path]
    return names[-1] if names else node.name


def mapped(structure: Any, kinds: Any, function: Callable[[Any], Any]) -> Any:
    """A structure of lists, tuples and dicts, with a function of all parts of some kinds in their place."""
    if isinstance(structure, kinds):
        return function(structure)
    if isinstance(structure, list | tuple):
        return type(structure)(mapped(part, kinds, function) for part in structure)
    if isinstance(structure, dict):
        return {name: mapped(part, kinds, function) for name, part in structure.items()}
    return structure


#: Ops whose result has memory of its own.
_FRESH = {
    *(aten.conv2d.default, aten.linear.default, aten.group_norm.default, aten.batch_norm.default),
    *(aten.relu.default, aten.silu.default, aten.max_pool2d.default),
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor),
}


def _without_writes(graph: fx.Graph) -> bool:
    """Exchange ops that write to their first argument for those that do not; whether none is left.

    `ReLU(inplace=True)` and its like alone: where anything else may look at the memory that is written to, the graph is
    left for torch to take apart, at twice the time of tracing it.
    """
    place = {node: number for number, node in enumerate(graph.nodes)}
    exchanged: dict[fx.Node, Any] = {}

    def fresh(node: fx.Node) -> bool:
        return exchanged.get(node, node.target) in _FRESH

    for node in place:
        if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
            continue
        exchanged[node], written = _without_write(node.target), node.args[0]
        if not fresh(node) or not isinstance(written, fx.Node) or not fresh(written):
            return False
        if any(place[user] < place[node] and not fresh(user) for user in written.users):
            return False
    for node, target in exchanged.items():
        node.target = target
        written = node.args[0]
        written.replace_all_uses_with(node, lambda user, node=node: place[user] > place[node])  # type: ignore[misc,union-attr]
    return True


def _without_write(target: torch._ops.OpOverload) -> Any:
    """`aten.relu.default` of `aten.relu_.default`; None where there is no such op."""
    name = target._schema.name.removeprefix("aten::").removesuffix("_")
    return getattr(getattr(aten, name, None), target._overloadname, None)
