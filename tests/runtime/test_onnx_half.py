"""Graphs of half precision, run on the CPU as far as it can, against float64.

ONNX Runtime's CPU provider reads float16 graphs and computes in float32 between their casts; of bfloat16 it has no
kernels, so such a graph is run with float32 in its place, and a small one by ONNX's own evaluator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shade_fast.engine import resolve_backend
from shade_fast.runtime import freeze
from shade_fast.runtime.onnx import LatentDistance, OnnxNetwork, in_precision, libraries, model_of, network
from shade_fast.runtime.onnx.half import Half
from shade_fast.terms.errors import ShadeFastError
from tests.runtime.networks import ONNX_NETS, conv, gradients, made, photograph, relative, small_kl

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

HALVES = ("float16", "bfloat16")
#: Relative root-mean-square error of the input gradient: each layer rounds to 11 and to 8 bits.
TOLERANCES = {"float16": 1e-2, "bfloat16": 6e-2}
#: Where ReLUs jump: torch's own float16 is off by 3.3e-2.
TOLERANCE_OF_JUMPS = 5e-2


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHADE_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "onnx"


def pullback(module: nn.Module, precision: str, images: Tensor, upstream: Tensor) -> Any:
    """The checked graph from images and the result's gradient to the images' gradient."""
    names = (["images", "upstream"], ["gradient"])
    data = model_of(in_precision(module, precision), [images], "pullback", *names)
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: Any, *inputs: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [described.name for described in session.get_inputs()]
    found = session.run(None, dict(zip(names, (one.numpy() for one in inputs), strict=True)))
    return [torch.from_numpy(one) for one in found]


def without_bfloat16(model: Any) -> Any:
    """The same graph with float32 where it has bfloat16."""
    old, new = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.value_info[:]
    constants = [one.t for node in changed.graph.node for one in node.attribute if one.HasField("t")]
    for tensor in (*changed.graph.initializer, *constants):
        if tensor.data_type == old:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for node in changed.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == old:
                attribute.i = new
    return changed


def of_sum(distance: Callable[..., Tensor], images: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Distances, and the gradient of their sum."""
    images = images.clone().requires_grad_(True)
    result = distance(images, anchors)
    return result.detach(), torch.autograd.grad(result.sum(), images)[0]


def case(name: str, count: int = 2) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network, images, a gradient of its result, and the images' gradient in float64."""
    images = photograph(24, 40, count)
    leaf = images.double().requires_grad_(True)
    result = made(name, ONNX_NETS).double()(leaf)
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
    return made(name, ONNX_NETS), images, upstream, torch.autograd.grad(result, leaf, upstream.double())[0]


@pytest.mark.parametrize("name", ONNX_NETS)
def test_input_gradients_of_float16(name: str) -> None:
    module, images, upstream, right = case(name)
    model = pullback(module, "float16", images, upstream)
    allowed = TOLERANCE_OF_JUMPS if name == "TAESD with a norm" else TOLERANCES["float16"]
    assert relative(run(model, images, upstream)[0], right) < allowed


@pytest.mark.parametrize("name", ["kernels and strides", "attention, two heads"])
def test_graphs_of_bfloat16_are_the_networks(name: str) -> None:
    module, images, upstream, right = case(name)
    model = pullback(module, "bfloat16", images, upstream)
    # What is left is the rounding of weights.
    assert relative(run(without_bfloat16(model), images, upstream)[0], right) < TOLERANCES["bfloat16"]


@pytest.mark.parametrize("precision", HALVES)
def test_a_small_graph_in_the_arithmetic_it_names(precision: str) -> None:
    module, images, upstream, right = case("norms without weights")
    model = pullback(module, precision, images, upstream)
    (found,) = onnx.reference.ReferenceEvaluator(model).run(
        None, {"images": images.numpy(), "upstream": upstream.numpy()}
    )
    error = relative(torch.from_numpy(found), right)
    assert error < TOLERANCES[precision]
    assert error > 1e-4, "nothing was rounded"


@pytest.mark.parametrize("precision", HALVES)
def test_weights_are_half_and_all_that_goes_in_and_out_is_float32(precision: str) -> None:
    module, images, upstream, _ = case("norms without weights")
    graph = pullback(module, precision, images, upstream).graph
    wanted = getattr(onnx.TensorProto, precision.upper())
    weights = {node.input[1] for node in graph.node if node.op_type in ("Conv", "ConvTranspose")}
    assert {one.data_type for one in graph.initializer if one.name in weights} == {wanted}
    assert {one.type.tensor_type.elem_type for one in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_gradients_of_any_size_fit_float16(size: float) -> None:
    module, images, upstream, right = case("kernels and strides")
    model = pullback(module, "float16", images, upstream)
    # The second image's are far larger; the first one's do not see it.
    sizes = torch.tensor([size, 1e6 * size]).reshape(2, 1, 1, 1)
    (found,) = run(model, images, upstream * sizes)
    for index in range(2):
        assert relative(found[index] / sizes[index], right[index]) < TOLERANCES["float16"]


def test_no_gradient_stays_none() -> None:
    module, images, upstream, _ = case("kernels and strides")
    (found,) = run(pullback(module, "float16", images, upstream), images, torch.zeros_like(upstream))
    assert torch.equal(found, torch.zeros_like(images))


def test_the_sums_of_a_distance_are_float32() -> None:
    """A distance whose square, 4e6, float16 has no room for."""
    module, images = small_kl(), photograph(32, 32, 2)
    anchors = torch.full(module(images).shape, 60.0)
    data = model_of(
        in_precision(LatentDistance(module), "float16"),
        [images, anchors],
        "step",
        ["images", "anchors"],
        ["distance", "gradient"],
    )
    distance, gradient = run(onnx.load_from_string(data), images, anchors)
    double = small_kl().double()
    right, right_gradient = of_sum(
        lambda image, anchor: (double(image) - anchor).flatten(1).norm(dim=1), images.double(), anchors.double()
    )
    assert relative(distance, right) < 1e-4
    assert relative(gradient, right_gradient) < TOLERANCES["float16"]


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], OnnxNetwork]:
    """Networks of float16 on the CPU's provider, as no user gets them: what is around the graph is the same."""
    monkeypatch.setattr(network, "check_precision", lambda *_: None)
    return lambda module: OnnxNetwork(module, "cpu", "float16")


def test_what_is_measured_is_float32_and_steps_are_half(on_the_cpu: Callable[[nn.Module], OnnxNetwork]) -> None:
    ours, exact = on_the_cpu(small_kl()), freeze(small_kl(), "onnxruntime:cpu")
    assert isinstance(exact, OnnxNetwork)
    images = photograph(32, 32)
    anchors = torch.randn(small_kl()(images).shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ours(images), exact(images))
    assert torch.equal(ours.distance(images, anchors), exact.distance(images, anchors))
    found = [of_sum(one.distance, images, anchors)[1] for one in (ours, exact)]
    assert 1e-5 < relative(found[0], found[1].double()) < TOLERANCES["float16"]


def test_a_step_exports_its_own_network_alone(
    on_the_cpu: Callable[[nn.Module], OnnxNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, exported = network.read_module, []

    def counted(module: nn.Module, inputs: Sequence[Tensor]) -> Any:
        exported.append(module)
        return read(module, inputs)

    monkeypatch.setattr(network, "read_module", counted)
    ours, images = on_the_cpu(made("one convolution", ONNX_NETS)), photograph(8, 8)
    gradient = of_sum(ours.distance, images, torch.zeros(1, 4, 8, 8))[1]
    assert torch.isfinite(gradient).all()
    (module,) = exported
    assert isinstance(module.module, Half)


def test_a_network_too_large_for_float16_is_refused(on_the_cpu: Callable[[nn.Module], OnnxNetwork]) -> None:
    module = nn.Sequential(conv(3, 4)).requires_grad_(False)
    nn.init.constant_(module[0].weight, 1e5)
    with pytest.raises(ShadeFastError, match=r"does not fit float16.*backend='onnxruntime:cpu'"):
        gradients(on_the_cpu(module), photograph(8, 8))


def test_where_half_precision_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for ask in (
        lambda: OnnxNetwork(nn.Identity(), "cpu", "float16"),
        lambda: resolve_backend("onnxruntime:cpu:float16", cpu),
    ):
        with pytest.raises(ShadeFastError, match="computes in float32 on a CPU; use backend='onnxruntime:cpu'"):
            ask()
    with pytest.raises(ShadeFastError, match="precision 'float8': give one of float32, float16, bfloat16"):
        resolve_backend("onnxruntime:cuda:float8", cpu)
    with pytest.raises(ShadeFastError, match=r"give one of .*onnxruntime:cuda:float16, onnxruntime:cuda:bfloat16"):
        resolve_backend("onnxruntime:tensorrt:float16", cpu)
    monkeypatch.setattr(libraries, "runtime", lambda provider: None)
    frozen = freeze(made("one convolution", ONNX_NETS), "onnxruntime:cuda:bfloat16")
    assert isinstance(frozen, OnnxNetwork) and (frozen.provider, frozen.precision) == ("cuda", "bfloat16")


def test_a_provider_without_a_kernel_says_so() -> None:
    """What a GPU's provider does where it lacks one: the session is refused, nothing runs elsewhere."""
    module, images, upstream, _ = case("one convolution")
    data = pullback(module, "bfloat16", images, upstream).SerializeToString()
    with pytest.raises(ShadeFastError, match=r"cannot load the graph.*Could not find an implementation for Conv"):
        network.Session(data, "cpu", torch.device("cpu"))
