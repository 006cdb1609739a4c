"""The engine's step on a GPU, counted from the layers that `shade_fast.runtime` finds in the real modules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import networks
from benchmarks.gpu_count import ITEM, Count, Op, attention, images, on_meta, size_of, vgg
from shade_fast.runtime import layers as kinds
from shade_fast.runtime.attention_layer import AttentionLayer
from shade_fast.runtime.perceptual_layers import LpipsLayer, MaxPoolLayer
from shade_fast.runtime.torch_layers import TorchLayer
from shade_fast.runtime.trace import Graph, lower


def fused(batch: int, lpips: bool, size: int) -> Count:
    """Encoder, objective and update; with `lpips` also the distance to the clean image, its features kept."""
    given = images(batch, size)
    counted = _layers(networks.encoder("kl"), (given,))
    values = 3 * batch * size * size
    # Normalised input; update of momentum and delta; the latent distance and its gradient, of an eighth of the sides.
    latents = 4 * batch * (size // 8) ** 2
    counted += Count(
        [
            Op("normalize", 0, (1 + 4 + ITEM) * values),
            Op("optimizer_update.sum_absolute", 0, 4 * values),
            Op("optimizer_update.update", 0, 21 * values),
            Op("latent_distance", 0, 2 * ITEM * latents),
            Op("latent_distance gradient", 0, 3 * ITEM * latents),
        ],
        kept=0,
        largest=0,
        weights=0,
    )
    if lpips:
        modules: list[nn.Module] = []

        def collect(module: nn.Module) -> nn.Module:
            modules.append(module)
            return module

        vgg().frozen(collect)
        with torch.no_grad():
            shapes = [one.shape for one in on_meta(vgg().activations)(given.to("meta", torch.float16))]
        counted += _layers(modules[1], (given, *(torch.empty(1).expand(shape) for shape in shapes)))
        counted += Count([Op("gradients' sum", 0, 3 * 4 * values)], 0, 0, 0)
    return counted


def _layers(module: nn.Module, inputs: Sequence[Tensor]) -> Count:
    network = lower(Graph(module, inputs), inputs, {})
    gradients: dict[Any, int] = {}
    ops: list[Op] = []
    kept: dict[Any, float] = {}
    for layer in network.layers:
        ops += _forward(layer)
        kept |= _kept(layer)
    for layer in reversed(network.layers):
        ops += _backward(layer, gradients)
    largest = max(size_of(layer.output.dims) for layer in network.layers)
    weights = sum(layer.weight.numel() * ITEM for layer in network.layers if isinstance(layer, kinds.ConvolutionLayer))
    return Count(ops, sum(kept.values()), largest, weights)


def _forward(layer: kinds.Layer) -> Iterator[Op]:
    out = size_of(layer.output.dims)
    if isinstance(layer, kinds.ConvolutionLayer):
        operations, weights = _products(layer), layer.weight.numel() * ITEM
        yield Op("convolution", operations, size_of(layer.source.dims) + weights + out)
        if layer.residual is not None:
            yield Op("bias and residual", 0, 3 * out)
        elif layer.bias is not None and not layer.output.gated:
            yield Op("bias", 0, 2 * out)
    elif isinstance(layer, kinds.GroupNormLayer):
        yield Op("group_norm.moments", 0, out)
        yield Op("group_norm.statistics", 0, 0)
        yield Op("group_norm.apply", 0, 2 * out)
    elif isinstance(layer, AttentionLayer):
        yield Op("attention", *attention(layer.query.dims, layer.key.dims, False))
    elif isinstance(layer, LpipsLayer):
        # The distance and its gradient in one pass.
        yield Op("lpips_layer", 0, 3 * size_of(layer.source.dims))
        yield Op("lpips_layer.mean", 0, 0)
    elif isinstance(layer, MaxPoolLayer):
        yield Op("max pool", 0, size_of(layer.source.dims) + out + 8 * math.prod(layer.output.dims))
    else:
        yield Op(layer.kind, 0, sum(size_of(operand.dims) for operand in layer.operands()) + out)


def _backward(layer: kinds.Layer, gradients: dict[Any, int]) -> Iterator[Op]:
    """gradients: how many contributions each value's gradient has so far; one after the first is added to it."""
    out = size_of(layer.output.dims)
    if isinstance(layer, kinds.ConvolutionLayer):
        if layer.output.gated:
            yield Op("relu gradient", 0, 2 * out + math.prod(layer.output.dims))
        if layer.residual is not None:
            gradients[layer.residual.value] = gradients.get(layer.residual.value, 0) + 1
        yield Op(
            "convolution gradient", _products(layer), out + layer.weight.numel() * ITEM + size_of(layer.source.dims)
        )
        yield from _added(layer.source, gradients)
    elif isinstance(layer, kinds.GroupNormLayer):
        yield Op("group_norm.slopes", 0, 2 * out)
        yield Op("group_norm.means", 0, 0)
        # What others have contributed is added on the way.
        had = gradients.get(layer.source.value, 0)
        gradients[layer.source.value] = had + 1
        yield Op("group_norm.gradient", 0, (4 if had else 3) * out)
    elif isinstance(layer, AttentionLayer):
        yield Op("attention gradient", *attention(layer.query.dims, layer.key.dims, True))
        for operand in layer.operands():
            yield from _added(operand, gradients)
    elif isinstance(layer, LpipsLayer):
        yield from _added(layer.source, gradients)
    elif isinstance(layer, MaxPoolLayer):
        yield Op("max pool gradient", 0, out + 8 * math.prod(layer.output.dims) + size_of(layer.source.dims))
        yield from _added(layer.source, gradients)
    else:
        if not (isinstance(layer, kinds.PointwiseLayer) and not layer.output.gated):
            yield Op(f"{layer.kind} gradient", 0, 2 * out + sum(size_of(one.dims) for one in layer.operands()))
        for operand in layer.operands():
            yield from _added(operand, gradients)


def _added(operand: kinds.Operand, gradients: dict[Any, int]) -> Iterator[Op]:
    had = gradients.get(operand.value, 0)
    gradients[operand.value] = had + 1
    if had:
        yield Op("gradients' sum", 0, 3 * size_of(operand.dims))


def _kept(layer: kinds.Layer) -> dict[Any, float]:
    """Bytes that the backward needs, by what they hold."""
    if isinstance(layer, kinds.GroupNormLayer | kinds.SiluLayer):
        return {layer.source.value: size_of(layer.source.dims)}
    if isinstance(layer, AttentionLayer):
        return {one.value: size_of(one.dims) for one in layer.operands()} | {layer.output: size_of(layer.output.dims)}
    if isinstance(layer, LpipsLayer):
        size = size_of(layer.source.dims)
        return {layer.source.value: size, (layer.clean, "clean"): size}
    if isinstance(layer, MaxPoolLayer):
        return {(layer.output, "index"): 8.0 * math.prod(layer.output.dims)}
    if isinstance(layer, TorchLayer):
        return {one.value: size_of(one.dims) for one in layer.operands()}
    if layer.output.gated:
        return {(layer.output, "mask"): 1.0 * math.prod(layer.output.dims)}
    return {}


def _products(layer: kinds.ConvolutionLayer) -> float:
    taps = math.prod(layer.convolution.kernel) / layer.convolution.up**2
    return 2.0 * math.prod(layer.out_dims) * layer.convolution.channels * taps
