"""What every backend keeps of a module that it executes, against that module in float64.

A new backend is tested by adding its name to `BACKENDS`; what is its own is tested in a file of its own. Backend `cuda`
runs here on the CPU, with the ops' plain bodies in place of its kernels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shade_fast import runtime
from shade_fast.ops import native
from shade_fast.runtime import FrozenNetwork, freeze
from shade_fast.terms.errors import ShadeFastError
from tests.runtime.networks import (
    NETS,
    ONNX_NETS,
    STOPS,
    WRITES,
    Net,
    Quantized,
    Stops,
    Writes,
    conv,
    flat,
    gradients,
    made,
    photograph,
    relative,
    small_kl,
)


@dataclass(frozen=True)
class Backend:
    """A backend in one accuracy, and how near to the module it is.

    result, gradient: relative root-mean-square errors against float64. Half precision rounds every feature; what a ReLU
    or a pool decides otherwise for that is a jump of the gradient, and half of these small untrained networks' error.
    alone: the largest relative difference of an image's result from that in a batch; of its gradient ten times that.
    shapes: batch, height and width. left_to_torch: whether torch runs a module that cannot be traced; it is refused
    otherwise. exact: the accuracy to compare closely in. stops: ways to stop a gradient that are traced.
    """

    name: str
    accuracy: str
    exact: str
    result: float
    gradient: float
    alone: float
    networks: dict[str, Callable[[], nn.Module]]
    shapes: tuple[tuple[int, int, int], ...]
    left_to_torch: bool
    stops: tuple[str, ...]

    def module(self, name: str) -> nn.Module:
        """One of the small networks; `kl` stands for Stable Diffusion's layers, `norms` for one with group norms."""
        if name == "kl":
            return small_kl().eval().requires_grad_(False)
        norms = "group norms" if "group norms" in self.networks else "norms without weights"
        return made(norms if name == "norms" else name, self.networks)

    def freeze(self, module: nn.Module, accuracy: str | None = None) -> Any:
        return freeze(module, self.name, accuracy=accuracy or self.accuracy)


def _native(accuracy: str, error: float) -> Backend:
    shapes = ((1, 32, 32), (2, 21, 34))
    return Backend("native", accuracy, "exact", error, error, 0.0, NETS, shapes, True, ("constants",))


def _cuda(precision: str, result: float, gradient: float) -> Backend:
    return Backend("cuda", precision, "fp32", result, gradient, 1e-6, NETS, ((2, 21, 34),), True, ("constants",))


BACKENDS: dict[str, Backend] = {
    "native": _native("fast", 1e-4),
    "native exact": _native("exact", 1e-5),
    "cuda": _cuda("fp32", 1e-5, 1e-5),
    "cuda fp16": _cuda("fp16", 3e-3, 5e-2),
    "cuda bf16": _cuda("bf16", 2e-2, 0.15),
    "onnxruntime": Backend(
        *("onnxruntime:cpu", "fast", "fast", 1e-4, 1e-4, 1e-6),
        networks=ONNX_NETS,
        shapes=((2, 24, 40),),
        left_to_torch=False,
        stops=("constants", "detach"),
    ),
}
#: One of each engine: what does not depend on the accuracy.
ENGINES = [name for name in BACKENDS if " " not in name]


@pytest.fixture
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    chosen = BACKENDS[request.param]
    if chosen.name == "native" and not native.cpu_available():
        pytest.skip("shade_fast._cpu is not built")
    if chosen.name.startswith("onnxruntime"):
        for library in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(library)
        monkeypatch.setenv("SHADE_FAST_CACHE", str(tmp_path / "cache"))
    return chosen


every_engine = pytest.mark.parametrize("backend", ENGINES, indirect=True)


@pytest.mark.parametrize(
    ("backend", "name"),
    [(key, name) for key, described in BACKENDS.items() for name in described.networks],
    indirect=["backend"],
)
def test_results_and_input_gradient_are_the_modules(backend: Backend, name: str) -> None:
    module, double = backend.module(name), backend.module(name).double()
    network = backend.freeze(module)
    for batch, height, width in backend.shapes:
        images = photograph(height, width, batch)
        right, right_gradient = gradients(double, images.double())
        for _ in range(2):  # the second time in memory that holds the first's
            outputs, gradient = gradients(network, images)
            assert len(outputs) == len(right)
            for output, wanted in zip(outputs, right, strict=True):
                assert output.shape == wanted.shape
                assert relative(output, wanted) < backend.result
            assert (gradient.shape, gradient.dtype) == (images.shape, torch.float32)
            assert relative(gradient, right_gradient) < backend.gradient
        with torch.no_grad():
            for output, again in zip(outputs, flat(network(images)), strict=True):
                assert torch.equal(again, output)
    assert network.report(images).reason is None and not network.reasons


class TwoOutputs(nn.Module):
    """Features, and what is made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 4, stride=2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.tanh(self.a(images))
        return first, self.b(first)


@every_engine
def test_several_outputs(backend: Backend) -> None:
    torch.manual_seed(0)
    module, images = TwoOutputs().eval().requires_grad_(False), photograph(24, 32)
    outputs, gradient = gradients(backend.freeze(module), images)
    right, right_gradient = gradients(module.double(), images.double())
    assert [relative(output, wanted) < 1e-4 for output, wanted in zip(outputs, right, strict=True)] == [True, True]
    assert relative(gradient, right_gradient) < 1e-4


@every_engine
def test_results_outlive_the_next_step(backend: Backend) -> None:
    network = backend.freeze(backend.module("kernels and strides"))
    first = network(photograph(32, 32))
    kept = first.clone()
    network(1 - photograph(32, 32))
    assert torch.equal(first, kept)


@every_engine
@pytest.mark.parametrize("name", ["kernels and strides", "norms"])
def test_steps_may_overlap_and_each_has_its_own_gradient(backend: Backend, name: str) -> None:
    network = backend.freeze(backend.module(name))
    a, b = photograph(32, 32).requires_grad_(True), (1 - photograph(32, 32)).requires_grad_(True)
    alone = [torch.autograd.grad(network(images).square().sum(), images)[0] for images in (a, b)]
    first, second = network(a), network(b)
    together = [torch.autograd.grad(result.square().sum(), images)[0] for result, images in ((first, a), (second, b))]
    assert all(torch.equal(gradient, other) for gradient, other in zip(alone, together, strict=True))


@every_engine
@pytest.mark.parametrize("name", ["kernels and strides", "norms"])
def test_threads_may_share_a_network(backend: Backend, name: str) -> None:
    network = backend.freeze(backend.module(name))
    images = [photograph(24, 24) * scale for scale in (0.2, 0.5, 0.8, 1.0)]
    right = [gradients(network, image)[1] for image in images]
    same: dict[int, list[bool]] = {}

    def work(number: int) -> None:
        same[number] = [torch.equal(gradients(network, images[number])[1], right[number]) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == {number: [True] * 10 for number in range(len(images))}


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        *((engine, name) for engine in ENGINES for name in ("kernels and strides", "norms")),
        ("native", "kl"),
        ("cuda", "kl"),
    ],
    indirect=["backend"],
)
def test_an_images_results_do_not_depend_on_its_neighbours(backend: Backend, name: str) -> None:
    network = backend.freeze(backend.module(name))
    images = photograph(40, 24, 3)
    leaf = images.clone().requires_grad_(True)
    together = network(leaf)
    (gradient,) = torch.autograd.grad(together.square().sum(), leaf)
    for number in range(3):
        image = images[number : number + 1].clone().requires_grad_(True)
        alone = network(image)
        (own,) = torch.autograd.grad(alone.square().sum(), image)
        assert relative(alone[0].detach(), together[number].detach().double()) <= backend.alone
        assert relative(own[0], gradient[number].double()) <= 10 * backend.alone


@every_engine
def test_a_batch_of_no_images(backend: Backend) -> None:
    module = backend.module("one convolution")
    assert backend.freeze(module)(photograph(16, 16)[:0]).shape == module(photograph(16, 16)[:0]).shape


@every_engine
@pytest.mark.parametrize("way", STOPS)
def test_no_gradient_flows_where_the_module_stops_it(backend: Backend, way: str) -> None:
    torch.manual_seed(0)
    module, images = Stops(way).eval(), photograph(24, 20, 2)
    network = backend.freeze(module, backend.exact)
    if not backend.left_to_torch and way not in backend.stops:
        with pytest.raises(ShadeFastError, match=r"Stops cannot be traced .*stops the gradient.*backend='native'"):
            gradients(network, images)
        return
    (output,), gradient = gradients(network, images)
    (right,), right_gradient = gradients(module.double(), images.double())
    assert relative(output, right) < 1e-5
    assert relative(gradient, right_gradient) < 1e-5
    assert ["stops the gradient" in reason for reason in network.reasons.values()] == [True] * (
        way not in backend.stops
    )


@every_engine
def test_a_gradient_that_the_module_defines_itself_is_its_own(backend: Backend) -> None:
    torch.manual_seed(0)
    module, images = Quantized().eval(), photograph(24, 20, 2)
    network = backend.freeze(module, backend.exact)
    if not backend.left_to_torch:
        with pytest.raises(
            ShadeFastError, match=r"Quantized cannot be traced .*a gradient of its own: Rounded.*native"
        ):
            gradients(network, images)
        return
    (output,), gradient = gradients(network, images)
    (right,), right_gradient = gradients(module, images)
    assert relative(output, right) < 1e-5
    assert relative(gradient, right_gradient) < 1e-5
    (reason,) = network.reasons.values()
    assert "a gradient of its own: Rounded" in reason


@every_engine
@pytest.mark.parametrize("way", WRITES)
def test_what_writes_in_place_gives_the_modules_results(backend: Backend, way: str) -> None:
    torch.manual_seed(0)
    module, images = Writes(way).eval(), photograph(24, 20, 2)
    (output,), gradient = gradients(backend.freeze(module), images)
    (right,), right_gradient = gradients(module.double(), images.double())
    assert relative(output, right) < 1e-5
    assert relative(gradient, right_gradient) < 1e-4


class Moody(nn.Module):
    """Code that depends on the images' values."""

    def forward(self, images: Tensor) -> Tensor:
        return images * 2 if images.mean() > 0.5 else images


@every_engine
def test_what_cannot_be_traced_runs_in_torch_or_is_refused_with_the_reason(backend: Backend) -> None:
    network, images = backend.freeze(Moody()), torch.full((1, 3, 8, 8), 0.9)
    if not backend.left_to_torch:
        with pytest.raises(ShadeFastError, match="the network Moody cannot be traced"):
            network(images)
        return
    assert torch.equal(network(images), images * 2)
    assert torch.equal(network(images / 9), images / 9)
    (reason,) = network.reasons.values()
    assert reason.startswith("it cannot be traced (")
    assert str(network.report(images)) == f"torch runs the whole network: {reason}"


@every_engine
@pytest.mark.parametrize(
    "images",
    [torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8)],
    ids=["another type", "another shape"],
)
def test_images_of_another_type_or_shape_are_refused(backend: Backend, images: Tensor) -> None:
    network = backend.freeze(backend.module("one convolution"))
    expected = rf"takes float(32)? images \[B, C, h, w\]; got {images.dtype} \[{images.shape[0]}, "
    with pytest.raises(ShadeFastError, match=expected):
        network(images)
    assert torch.isfinite(network(photograph(8, 8))).all()  # nothing is spoiled


@every_engine
def test_the_size_that_was_used_longest_ago_is_forgotten_first(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[int] = []
    module = Net(lambda x, a: (traced.append(x.shape[3]), a(x))[1], a=conv(3, 4)).eval().requires_grad_(False)
    monkeypatch.setattr(type(backend.freeze(module)), "most_sizes", 2)
    network = backend.freeze(module)
    for width in (16, 24, 16, 32, 16, 24):
        gradients(network, photograph(16, width))
        network(photograph(16, width))
    assert traced == [16, 24, 32, 24]


@every_engine
def test_a_latent_distance_and_its_gradient_where_a_backend_has_them_in_one_run(backend: Backend) -> None:
    module = backend.module("kernels and strides")
    network, images = backend.freeze(module), photograph(24, 24, 2)
    anchors = module(images).roll(1, 0).contiguous()
    double = images.double().requires_grad_(True)
    right = (backend.module("kernels and strides").double()(double) - anchors).flatten(1).norm(dim=1)
    (right_gradient,) = torch.autograd.grad(right.sum(), double)
    results = [runtime.latent_gradient(network, images, anchors)]
    leaf = images.clone().requires_grad_(True)
    distance = runtime.latent_distance(network, leaf, anchors)
    if distance is not None:
        results.append((distance.detach(), torch.autograd.grad(distance.sum(), leaf)[0]))
    for result in results:
        assert result is None or relative(result[0], right.detach()) < 1e-4
        assert result is None or relative(result[1], right_gradient) < 1e-4
    assert runtime.latent_distance(module, images, anchors) is runtime.latent_gradient(module, images, anchors) is None


@every_engine
def test_a_frozen_network_stays_as_it_is(backend: Backend) -> None:
    module = backend.module("one convolution")
    network = backend.freeze(module)
    assert isinstance(network, FrozenNetwork) and network.module is module
    assert freeze(network, backend.name) is freeze(network, "cuda") is network
    assert freeze(module, "reference") is module


@pytest.mark.parametrize(
    ("name", "accuracy", "message"),
    [
        ("tpu", "fast", "backend 'tpu': networks are frozen for one of native, cuda, onnxruntime:cpu, "),
        ("native", "roughly", "accuracy 'roughly' of backend 'native': give one of fast, exact"),
        ("native", "bf16", "accuracy 'bf16' of backend 'native': give one of fast, exact"),
        ("cuda", "int8", "accuracy 'int8' of backend 'cuda': give one of bf16, fp16, tf32, fp32, fast, exact"),
    ],
)
def test_unknown_names(name: str, accuracy: str, message: str) -> None:
    with pytest.raises(ShadeFastError, match=message):
        freeze(nn.Identity(), name, accuracy=accuracy)
