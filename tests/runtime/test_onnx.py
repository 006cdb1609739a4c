"""Networks through ONNX Runtime against the modules that they came from, in float64."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shade_fast.runtime import OnnxNetwork, freeze
from shade_fast.runtime.onnx import export, libraries, model_of
from shade_fast.terms.errors import ShadeFastError
from tests.runtime.networks import (
    ONNX_NETS,
    Net,
    conv,
    gradients,
    made,
    photograph,
    relative,
    small_kl,
)

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

#: Relative root-mean-square error of results and input gradients against float64.
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHADE_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "onnx"


@pytest.mark.parametrize(
    "options",
    [(3, 2), (3, 2, 1), (2, 2, 1), (2, 1, 0, 2), ((3, 2), (2, 3), 1), (3, 2, 1, 1, False, True), (4, 5)],
    ids=str,
)
def test_a_pools_gradient_goes_to_the_largest_of_each_window(options: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(conv(3, 8), nn.MaxPool2d(*options), conv(8, 4)).eval()
    outputs, gradient = gradients(freeze(module, "onnxruntime:cpu"), images := photograph(24, 39, 2))
    right, right_gradient = gradients(module, images)
    assert relative(outputs[0], right[0]) < TOLERANCE
    assert relative(gradient, right_gradient) < TOLERANCE


def test_a_step_is_one_graph_and_its_gradient_the_distances() -> None:
    network = freeze(small_kl(), "onnxruntime:cpu")
    assert isinstance(network, OnnxNetwork)
    images = photograph(32, 32, 2).requires_grad_(True)
    anchors = torch.randn(small_kl()(images.detach()).shape, generator=torch.Generator().manual_seed(1))
    double = images.detach().double().requires_grad_(True)
    right = (small_kl().double()(double) - anchors).flatten(1).norm(dim=1)
    weights = torch.tensor([0.5, 2.0])
    distance = network.distance(images, anchors)
    assert relative(distance.detach(), right.detach()) < 1e-6
    (gradient,) = torch.autograd.grad((weights * distance).sum(), images)
    (right_gradient,) = torch.autograd.grad((weights.double() * right).sum(), double)
    assert relative(gradient, right_gradient) < TOLERANCE


class Pooled(nn.Module):
    """Two numbers for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(conv(3, 8), nn.SiLU(), nn.MaxPool2d(2), conv(8, 2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        made = self.layer(images).square()
        return made[:, 0].mean((1, 2)), made[:, 1].mean((1, 2))


def test_outputs_of_each_image_may_be_weighed_by_themselves() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Pooled().eval().requires_grad_(False)
    right, right_gradient = gradients(module.double(), photograph(16, 16, 2).double())
    outputs, gradient = gradients(freeze(module.float(), "onnxruntime:cpu"), photograph(16, 16, 2))
    assert all(relative(output, one) < TOLERANCE for output, one in zip(outputs, right, strict=True))
    assert relative(gradient, right_gradient) < TOLERANCE


def test_graphs_hold_onnx_operators_alone_and_the_weights_as_constants() -> None:
    images = photograph(32, 32)
    data = model_of(made("norms without weights", ONNX_NETS), [images], "pullback", ["images", "latent"], ["gradient"])
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", export.OPSET)]
    constants = {tensor.name for tensor in model.graph.initializer}
    assert all(node.input[1] in constants for node in model.graph.node if node.op_type == "Conv")
    assert str(Path.cwd()).encode() not in data and b"site-packages" not in data


def files(cache: Path) -> list[Path]:
    return sorted(cache.iterdir()) if cache.is_dir() else []


def test_graphs_are_kept_and_found_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = photograph(16, 16)
    first = freeze(made("kernels and strides", ONNX_NETS), "onnxruntime:cpu")(images)
    assert {path.suffix for path in files(cache)} == {".onnx", ".weights"}
    monkeypatch.setattr(export, "export", None)  # a second export would fail
    again = freeze(made("kernels and strides", ONNX_NETS), "onnxruntime:cpu")(images)
    assert torch.equal(first, again)


def test_other_weights_code_or_shapes_are_other_graphs(cache: Path) -> None:
    images = photograph(16, 16)
    module = made("kernels and strides", ONNX_NETS)
    first = freeze(module, "onnxruntime:cpu")(images)
    with torch.no_grad():
        module[0].weight *= 1.5  # type: ignore[index]
    assert not torch.equal(freeze(module, "onnxruntime:cpu")(images), first)
    double = nn.Sequential(*made("kernels and strides", ONNX_NETS), Net(lambda x: 2 * x))
    assert torch.allclose(freeze(double, "onnxruntime:cpu")(images), 2 * first)
    assert freeze(module, "onnxruntime:cpu")(photograph(24, 16)).shape != first.shape
    names = [path.suffix for path in files(cache)]
    # The shapes share their weights' file.
    assert names.count(".onnx") == 4 and names.count(".weights") == 2


@pytest.mark.parametrize("damage", ["graph", "weights"])
def test_a_damaged_file_is_made_anew(cache: Path, damage: str) -> None:
    images = photograph(16, 16)
    first = freeze(made("kernels and strides", ONNX_NETS), "onnxruntime:cpu")(images)
    suffix = ".onnx" if damage == "graph" else ".weights"
    for path in files(cache):
        if path.suffix == suffix:
            path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(freeze(made("kernels and strides", ONNX_NETS), "onnxruntime:cpu")(images), first)


@pytest.mark.parametrize("folder", ["", "/proc/none"])
def test_without_a_cache_nothing_is_written(folder: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHADE_FAST_CACHE", folder)
    module = made("kernels and strides", ONNX_NETS)
    images = photograph(16, 16)
    assert relative(freeze(module, "onnxruntime:cpu")(images), module(images).double()) < TOLERANCE
    assert files(cache) == []


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    source = export.read_module(made("one convolution", ONNX_NETS), [photograph(16, 16)])
    assert isinstance(export.cached(source, "forward", source.names("forward")), Path)
    monkeypatch.delenv("SHADE_FAST_CACHE")
    assert isinstance(export.cached(source, "forward", source.names("forward")), bytes)


def test_a_folder_that_fills_up_costs_no_second_export(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exports, real_export = [], export.export

    def counted(*arguments: Any) -> Any:
        exports.append(1)
        return real_export(*arguments)

    def full(path: Path, data: bytes) -> None:
        assert path.suffix == ".onnx"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "export", counted)
    monkeypatch.setattr(export, "write_whole", full)
    module, images = made("kernels and strides", ONNX_NETS), photograph(16, 16)
    assert relative(freeze(module, "onnxruntime:cpu")(images), module(images).double()) < TOLERANCE
    assert [path.suffix for path in files(cache)] == [".weights"] and len(exports) == 1


def test_writers_at_once_leave_whole_files(cache: Path) -> None:
    images = photograph(16, 16)
    data = model_of(made("kernels and strides", ONNX_NETS), [images], "forward", ["images"], ["output_0"])
    cache.mkdir(parents=True)
    path = cache / "graph.onnx"
    model = onnx.load_from_string(data)
    export.write(model, path)
    assert model.SerializeToString() == data and path.stat().st_size < len(data)
    seen: list[bool] = []

    def write() -> None:
        for _ in range(10):
            export.write(onnx.load_from_string(data), path)
            seen.append(export.is_whole(path))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 40
    assert sorted(one.suffix for one in files(cache)) == [".onnx", ".weights"]


def test_a_provider_that_is_not_there_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(__version__="1.0", get_available_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(libraries, "_imported", lambda *_: module)
    with pytest.raises(ShadeFastError, match=r"has no CUDAExecutionProvider.*shade-fast\[onnx-gpu\]"):
        freeze(nn.Identity(), "onnxruntime:cuda")
    with pytest.raises(ShadeFastError, match=r"has no TensorrtExecutionProvider.*tensorrt"):
        freeze(nn.Identity(), "onnxruntime:tensorrt")


def test_a_provider_that_onnx_runtime_replaced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that offers CUDA and, when a session is made, takes the CPU: as it does where cuDNN is missing."""
    real = libraries.runtime()

    class Replaced:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    fake = SimpleNamespace(
        __version__="1.0",
        get_available_providers=lambda: offered,
        SessionOptions=real.SessionOptions,
        InferenceSession=Replaced,
    )
    monkeypatch.setattr(libraries, "_imported", lambda name, _: fake if name == "onnxruntime" else onnx)
    network = freeze(made("kernels and strides", ONNX_NETS), "onnxruntime:cuda")
    with pytest.raises(ShadeFastError, match="could not start CUDAExecutionProvider and would run on CPUExecution"):
        network(photograph(16, 16))


def test_missing_libraries_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"no module {name}")

    monkeypatch.setattr(libraries.importlib, "import_module", absent)
    with pytest.raises(ShadeFastError, match=r"onnxruntime is not there.*pip install 'shade-fast\[onnx\]'"):
        freeze(nn.Identity(), "onnxruntime:cpu")


def test_what_is_left_of_an_uninstalled_runtime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    described = libraries.describe_onnxruntime()
    assert described["built"] == "no" and "pip uninstall onnxruntime onnxruntime-gpu" in described["why"]
