"""What torch.export makes of a module, refused where its gradient would not be the module's."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import BackwardCFunction
from torch.export import ExportedProgram

#: Ops that let no gradient through.
_STOPS = (torch.ops.aten.detach.default, torch.ops.aten.detach_.default)


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
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            made = torch.export.export(module, (images.detach().requires_grad_(), *extras), strict=False)
    finally:
        seen.remove()
    if own:
        raise NotImplementedError(f"the module has a gradient of its own: {', '.join(sorted(set(own)))}")
    return made


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
    ahead = [one.grad_fn for one in torch.utils._pytree.tree_leaves(outputs) if isinstance(one, Tensor)]
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
