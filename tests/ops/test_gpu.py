"""Why backend `cuda` may not run: each reason with its fix, on machines that are made up."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shade_fast.api.info import describe_machine, info_lines
from shade_fast.engine.devices import resolve_backend, resolve_device, resolve_devices
from shade_fast.ops import gpu, native
from shade_fast.terms.errors import ShadeFastError

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`machine(...)`: a machine with what is said, an H100 with everything installed where nothing is."""

    def set_up(
        torch_has_cuda: bool = True,
        gpus: int = 1,
        capability: tuple[int, int] = (9, 0),
        built: str | None = "sm_80 sm_90 sm_100",
        triton: bool = True,
        driver: int = 13000,
        compiler: bool = True,
    ) -> None:
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: torch_has_cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_has_cuda and gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "GPU of a test")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(native, "cuda_available", lambda: built is not None)
        if built is not None:
            module = SimpleNamespace(
                architectures=built, compiler="nvcc", runtime_version=12080, driver_version=lambda: driver
            )
            monkeypatch.setattr(native, "cuda", lambda: module)
        else:
            load = native._load
            monkeypatch.setattr(native, "_load", lambda name: ImportError("gone") if name == "_cuda" else load(name))
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/usr/bin/{name}" if compiler else None)
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest: None if name == "triton" and not triton else found(name, *rest),
        )

    return set_up


REASONS = [
    ({"torch_has_cuda": False}, r"is built without CUDA: install a CUDA build"),
    ({"gpus": 0}, r"finds no GPU: see that `nvidia-smi`"),
    ({"built": None}, r"shade_fast\._cuda cannot be loaded \(gone\).*SHADE_FAST_CUDA=1 pip install"),
    ({"triton": False}, r"triton is not installed.*pip install triton"),
    ({"compiler": False}, r"Triton needs a C compiler .*install gcc or clang"),
    ({"capability": (7, 5)}, r"GPU of a test has compute capability 7\.5, and bfloat16 needs 8\.0"),
    (
        {"capability": (8, 0), "built": "sm_86 sm_90"},
        r'compute capability 8\.0, and shade_fast\._cuda is built for sm_86 sm_90: .*SHADE_FAST_CUDA_ARCHS="80"',
    ),
    ({"driver": 11080}, r"is built with CUDA 12\.8, and the driver knows CUDA up to 11\.8: update .* nvcc of CUDA 11"),
    ({"capability": (8, 9), "built": "sm_90"}, r'SHADE_FAST_CUDA_ARCHS="89"'),
]


@pytest.mark.parametrize(("lacks", "message"), REASONS, ids=lambda value: str(value)[:30])
def test_what_is_missing_is_named_with_its_mend(machine: Any, lacks: dict[str, Any], message: str) -> None:
    machine(**lacks)
    with pytest.raises(ShadeFastError, match=f"backend 'cuda': .*{message}"):
        resolve_backend("cuda", CUDA)
    assert resolve_backend("auto", CUDA) == "reference"
    text = "\n".join(info_lines(describe_machine()))
    assert "runs no, not on cuda:0 " in text
    assert (gpu.refusal() or "") in text


@pytest.mark.parametrize(
    ("capability", "built"),
    [((8, 6), "sm_80"), ((9, 0), "sm_80 sm_90 sm_100"), ((12, 0), "sm_80 sm_90 sm_100"), ((10, 0), "sm_90")],
)
def test_architectures_that_run_what_is_built(machine: Any, capability: tuple[int, int], built: str) -> None:
    """The same major version from its minor one on; newer ones by the PTX of the last."""
    machine(capability=capability, built=built)
    assert gpu.refusal() is None
    assert resolve_backend("auto", CUDA) == resolve_backend("cuda", CUDA) == "cuda"


@pytest.mark.parametrize("driver", [12000, 12080, 13020])
def test_a_driver_runs_what_its_own_major_version_compiled_and_those_before(machine: Any, driver: int) -> None:
    machine(driver=driver)
    assert gpu.refusal() is None


@pytest.mark.skipif(not native.cuda_available(), reason="shade_fast._cuda is not built")
def test_the_compiled_module_tells_its_cuda_and_the_drivers() -> None:
    assert native.cuda().runtime_version >= 11080
    assert native.cuda().driver_version() >= 0


def test_a_device_that_is_not_there(machine: Any) -> None:
    machine(gpus=2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ShadeFastError, match="devices='cuda:2': the last CUDA device is cuda:1"):
        resolve_device("cuda:2")
    machine(torch_has_cuda=False)
    with pytest.raises(ShadeFastError, match=r"devices='cuda:0': torch .* is built without CUDA"):
        resolve_device("cuda:0")


def test_auto_is_every_gpu_or_the_cpu(machine: Any) -> None:
    machine(gpus=3)
    assert [str(device) for device in resolve_devices("auto")] == ["cuda:0", "cuda:1", "cuda:2"]
    assert resolve_device("auto") == torch.device("cuda:0")
    machine(gpus=0)
    assert resolve_devices("auto") == (CPU,)


def test_names_of_several_devices(machine: Any) -> None:
    machine(gpus=2)
    both = (torch.device("cuda:0"), torch.device("cuda:1"))
    assert resolve_devices("cuda:0, cuda:1") == resolve_devices(["cuda", "cuda:1"]) == both
    assert resolve_devices(["cpu", "cpu"]) == (CPU, CPU)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([], r"devices=\[\]: names no device; give 'auto', 'cpu' or 'cuda:0'"),
        ("", r"devices='': names no device"),
        (["cpu", ""], r"devices='': not a device"),
        (["cpu", "tpu"], r"devices='tpu': not a device; give 'auto', 'cpu' or 'cuda:0'"),
        ("meta", r"devices='meta': give 'auto', 'cpu' or 'cuda:0'"),
        (["auto", "cpu"], r"devices='auto': not a device"),
        ("cuda:0,cuda:7", r"devices='cuda:7': the last CUDA device is cuda:1"),
        ("cpu,cuda:0", r"devices='cpu,cuda:0': a CPU beside GPUs would make other results than they do; give one kind"),
        (2, r"devices=2: give 'auto', or names"),
        ([0, 1], r"devices=\[0, 1\]: give 'auto', or names"),
    ],
)
def test_devices_that_are_none_are_named_with_the_mend(machine: Any, devices: Any, message: str) -> None:
    machine(gpus=2)
    with pytest.raises(ShadeFastError, match=message):
        resolve_devices(devices)


def test_what_runs_on_one_device_takes_no_more(machine: Any) -> None:
    with pytest.raises(ShadeFastError, match="devices='cpu,cpu': this runs on one; give one of them"):
        resolve_device(["cpu", "cpu"])


def test_the_gpu_has_to_be_chosen(machine: Any) -> None:
    machine()
    with pytest.raises(ShadeFastError, match="backend 'cuda': the CPU is in use; give devices='cuda:0'"):
        resolve_backend("cuda", CPU)
    machine(torch_has_cuda=False)
    with pytest.raises(ShadeFastError, match=r"backend 'cuda': torch .* is built without CUDA"):
        resolve_backend("cuda", CPU)
