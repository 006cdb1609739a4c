"""What is the CPU engine's own: programs, their memory, images run one by one, plans and reports."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shade_fast import runtime
from shade_fast.ops import convolution, native
from shade_fast.ops.lpips_layer import lpips_layer
from shade_fast.runtime import BLOCKS, Frozen, freeze
from shade_fast.runtime.cpu import frozen as networks
from shade_fast.terms.errors import ShadeFastError
from tests.runtime.networks import NETS, Net, Writes, conv, flat, gradients, made, photograph, relative

pytestmark = pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")


#: What makes each image's result of all images of the batch.
MIXED: dict[str, Callable[[], nn.Module]] = {
    "less the mean": lambda: Net(lambda x, a: (y := a(x)) - y.mean(0, keepdim=True), a=conv(3, 4)),
    "images as channels": lambda: Net(
        lambda x, a, b: b(a(x).reshape(1, -1, *x.shape[2:])).view(len(x), -1, *x.shape[2:]), a=conv(3, 4), b=conv(16, 8)
    ),
    "one norm for all": lambda: Net(
        lambda x, a: F.group_norm(a(x).reshape(1, -1, *x.shape[2:]), 4).view(len(x), -1, *x.shape[2:]),
        a=conv(3, 4),
    ),
    "over their number": lambda: Net(lambda x, a: a(x) / len(x), a=conv(3, 5)),
    "their number at the end": lambda: Net(lambda x, a: a(x) + torch.arange(len(x))[0] + len(x), a=conv(3, 5)),
    "channels first": lambda: Net(lambda x, a: a(x).transpose(0, 1), a=conv(3, 4)),
}
#: Networks in which torch runs an op, which may mix images for all that is known.
RUN_BY_TORCH = {
    *("activations by activations", "channels shuffled", "circular padding", "constants chosen by size"),
    *("constants made by size", "grouped and dilated", "lone activations", "ops that torch runs"),
    *("padding that torch makes", "rows chosen", "rows scaled", "windows of 16 and 17 pixels"),
}


@pytest.mark.parametrize("name", [*NETS, *MIXED])
def test_large_images_are_run_one_by_one_where_none_depends_on_another(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "BYTES_ALONE", 0)
    torch.manual_seed(0)
    module = made(name) if name in NETS else MIXED[name]().eval().requires_grad_(False)
    frozen, images = freeze(module), photograph(21, 34, 4)
    right, _ = gradients(copy.deepcopy(module).double(), images.double())
    with torch.no_grad():
        results = flat(frozen(images))
    for result, wanted in zip(results, right, strict=True):
        assert result.shape == wanted.shape and relative(result, wanted) < 1e-4
    assert isinstance(frozen, Frozen) and not frozen.reasons
    assert frozen._one_by_one((images,)) == (name not in {*MIXED, *RUN_BY_TORCH})
    anchors = results[0].roll(1, 0)
    found = runtime.latent_gradient(frozen, images, anchors)
    if found is not None:  # of one output alone, with images in front
        double = images.double().requires_grad_(True)
        distance = (copy.deepcopy(module).double()(double) - anchors).flatten(1).norm(dim=1)
        assert relative(found[0], distance.detach()) < 1e-4
        assert relative(found[1], torch.autograd.grad(distance.sum(), double)[0]) < 1e-4


def test_a_batch_of_large_images_takes_one_images_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "BYTES_ALONE", 4 * 32 * 64 * 64)
    frozen, images = freeze(made("group norms")), photograph(64, 64, 4)
    anchors = frozen(images).roll(1, 0).contiguous()

    def memory(count: int) -> int:
        BLOCKS.release()
        assert runtime.latent_gradient(frozen, images[:count], anchors[:count]) is not None
        block = BLOCKS.borrow(0)
        BLOCKS.give_back(block)
        return block.memory.numel()

    assert memory(4) == memory(1) > 4 * 32 * 64 * 64
    found = runtime.latent_gradient(frozen, images, anchors)
    alone = runtime.latent_gradient(frozen, images[2:3], anchors[2:3])
    assert found is not None and alone is not None
    assert all(torch.equal(one[2], other[0]) for one, other in zip(found, alone, strict=True))


def test_features_of_images_run_one_by_one_are_each_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "BYTES_ALONE", 0)
    torch.manual_seed(0)
    module = Compared().eval().requires_grad_(False)
    frozen, images = freeze(module), photograph(16, 24, 3)
    clean = nn.functional.normalize(1 - images.repeat(1, 3, 1, 1)[:, :8]).contiguous(memory_format=torch.channels_last)
    assert relative(frozen(images, clean), module(images, clean)) < 1e-5
    assert frozen._one_by_one((images, clean))


def test_the_gradient_is_taken_once() -> None:
    frozen = freeze(made("one convolution"))
    images = photograph(16, 16).requires_grad_(True)
    result = frozen(images).sum()
    torch.autograd.grad(result, images, retain_graph=True)
    with pytest.raises(ShadeFastError, match="taken once"):
        torch.autograd.grad(result, images)


def test_a_steady_step_takes_its_memory_from_the_block() -> None:
    frozen = freeze(made("group norms"))
    images = photograph(64, 64).requires_grad_(True)

    def step() -> None:
        torch.autograd.grad(frozen(images).sum(), images)

    step()
    block = BLOCKS.borrow(0)
    serial, address = block.serial, block.memory.data_ptr()
    BLOCKS.give_back(block)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    again = BLOCKS.borrow(0)
    assert (again.serial, again.memory.data_ptr()) == (serial, address)
    BLOCKS.give_back(again)
    largest = max((event.cpu_memory_usage for event in profile.events()), default=0)
    # The result and the gradient, which outlive the step; a layer here has 32 channels.
    assert largest <= 4 * 4 * 64 * 64


@pytest.mark.parametrize("name", ["group norms", "kernels and strides"])
def test_latent_distances_and_their_gradients(name: str) -> None:
    frozen, images = freeze(made(name)), photograph(34, 21, 3)
    latents = frozen(images)
    anchors = latents.roll(1, 0).contiguous()
    anchors[0] = latents[0]
    double = images.double().requires_grad_(True)
    distance = (made(name).double()(double) - anchors.double()).flatten(1).norm(dim=1)
    (right,) = torch.autograd.grad(distance[1:].sum(), double)
    found = runtime.latent_gradient(frozen, images, anchors)
    assert found is not None
    assert relative(found[0][1:], distance[1:].detach()) < 1e-4 and relative(found[1][1:], right[1:]) < 1e-4
    # At its anchor an image is not drawn anywhere.
    assert found[0][0] == 0 and not found[1][0].any()
    for number in range(3):
        alone = runtime.latent_gradient(frozen, images[number : number + 1], anchors[number : number + 1])
        assert alone is not None
        assert torch.equal(alone[0][0], found[0][number]) and torch.equal(alone[1][0], found[1][number])


def test_a_steady_loop_of_latent_gradients_allocates_nothing() -> None:
    frozen, images = freeze(made("group norms")), photograph(64, 64)
    anchors = torch.zeros_like(frozen(images))
    out = runtime.latent_gradient(frozen, images, anchors)
    assert out is not None
    right = [one.clone() for one in out]
    for one in out:
        one.fill_(torch.nan)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        again = runtime.latent_gradient(frozen, images, anchors, out)
    assert again is not None and all(one is other for one, other in zip(again, out, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(out, right, strict=True))
    assert not [event for event in profile.events() if event.cpu_memory_usage > 0]


def test_latent_gradients_of_what_torch_runs_are_left_to_autograd() -> None:
    class Moody(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images * 2 if images.mean() > 0.5 else images

    images = torch.full((1, 3, 8, 8), 0.9)
    assert runtime.latent_gradient(freeze(Moody()), images, images) is None
    assert runtime.latent_gradient(made("group norms"), images, images) is None


def test_latent_gradients_of_images_of_another_type_are_refused_and_spoil_nothing() -> None:
    frozen, images = freeze(made("group norms")), photograph(32, 32)
    anchors = torch.zeros_like(frozen(images))
    with pytest.raises(ShadeFastError, match="takes float32 images"):
        runtime.latent_gradient(frozen, images.double(), anchors)
    assert runtime.latent_gradient(frozen, images, anchors) is not None
    assert runtime.latent_gradient(frozen, images[:0], anchors[:0]) is None


def test_a_size_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[tuple[int, ...]] = []
    export = torch.export.export

    def counted(module: nn.Module, inputs: tuple[Tensor, ...], **options: object) -> object:
        traced.append(tuple(inputs[0].shape))
        return export(module, inputs, **options)

    monkeypatch.setattr(torch.export, "export", counted)
    monkeypatch.delattr(torch.export.ExportedProgram, "run_decompositions")
    frozen, images = freeze(Writes("plain")), photograph(16, 24)
    for _ in range(2):
        gradients(frozen, images)
        frozen(images)
        frozen(images[:, :, :8])
    assert traced == [(1, 3, 16, 24), (1, 3, 8, 24)]


class Compared(nn.Module):
    """A convolution's distance from a clean image's features, the second input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = conv(3, 8)

    def forward(self, images: Tensor, clean: Tensor) -> Tensor:
        return lpips_layer(torch.relu(self.layer(images)), clean, self.layer.bias.abs(), backend="native")


def test_clean_features_are_let_go_when_another_size_has_its_turn() -> None:
    torch.manual_seed(0)
    module = Compared().eval().requires_grad_(False)
    frozen, kept = freeze(module), []
    for height in (16, 24, 16):
        images = photograph(height, 16).requires_grad_(True)
        clean = nn.functional.normalize(photograph(height, 16).repeat(1, 3, 1, 1)[:, :8])
        clean = clean.contiguous(memory_format=torch.channels_last)
        results = [torch.autograd.grad(one(images, clean).sum(), images)[0] for one in (frozen, module)]
        assert relative(*results) < 1e-4
        kept.append(weakref.ref(clean))
        del clean
    assert isinstance(frozen, Frozen) and not frozen.reasons
    assert [one() is None for one in kept[:2]] == [True, True]


def test_sizes_share_their_packed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHADE_FAST_PLAN", "fixed")
    packed: list[Tensor] = []
    pack = convolution.pack

    def counted(*arguments: Any) -> Tensor:
        packed.append(pack(*arguments))
        return packed[-1]

    monkeypatch.setattr(convolution, "pack", counted)
    frozen = freeze(made("kernels and strides"))
    for height in (16, 24):
        gradients(frozen, photograph(height, 16))
        frozen(photograph(height, 16))
        assert len(packed) == 8  # four convolutions, in both directions


@pytest.mark.parametrize("name", ["group norms", "attention, four heads", "images taken in twice"])
def test_the_defaults_of_torch_do_not_matter(name: str, other_defaults: Callable[[], Any]) -> None:
    module = nn.Sequential(made(name), nn.GroupNorm(2, 4, affine=False)) if name == "group norms" else made(name)
    images = photograph(24, 24)
    latents = torch.zeros_like(module(images))

    def step() -> list[Tensor]:
        frozen, leaf = freeze(module), images.clone().requires_grad_(True)
        output = frozen(leaf)
        (gradient,) = torch.autograd.grad(output, leaf, torch.ones_like(output))
        assert isinstance(frozen, Frozen)
        assert all(row.milliseconds > 0 for row in frozen.report(images).rows)
        return [output, gradient, *(runtime.latent_gradient(frozen, images, latents) or ())]

    expected = step()
    with other_defaults():
        found = step()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_what_cannot_be_traced_runs_through_torch_and_says_so() -> None:
    class Moody(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images * 2 if images.mean() > 0.5 else images

    frozen = freeze(Moody())
    images = torch.full((1, 3, 8, 8), 0.9)
    assert torch.equal(frozen(images), images * 2)
    assert torch.equal(frozen(images / 9), images / 9)
    assert isinstance(frozen, Frozen)
    assert "torch runs the whole network" in str(frozen.report(images))


def test_the_report_names_layers_algorithms_and_shares() -> None:
    frozen = freeze(made("ops that torch runs"))
    assert isinstance(frozen, Frozen)
    report = frozen.report(photograph(32, 32))
    assert abs(sum(row.share for row in report.rows) - 1) < 0.02
    assert {row.kind for row in report.rows} >= {"convolution", "tanh", "cat"}
    assert all(row.forward == "torch" for row in report.rows if row.kind in ("tanh", "cat"))
    assert "layers.c" in str(report)


@pytest.mark.skipif(
    not native.cpu_available() or native.cpu().selected_isa() != "amx", reason="this machine has no AMX tiles"
)
def test_tiles_are_taken_where_no_jump_depends_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHADE_FAST_PLAN", "fixed")
    images = photograph(32, 32)

    def taken(activation: nn.Module, accuracy: str) -> tuple[str, str]:
        module = nn.Sequential(conv(3, 32), activation, conv(32, 32)).eval().requires_grad_(False)
        frozen = freeze(module, "native", accuracy=accuracy)
        assert isinstance(frozen, Frozen)
        last = frozen.report(images).rows[-1]
        return last.forward, last.backward

    assert taken(nn.SiLU(), "fast") == ("tiles", "tiles")
    assert taken(nn.ReLU(), "fast") == ("winograd4", "tiles")
    assert taken(nn.Sequential(nn.GroupNorm(4, 32), nn.ReLU()), "fast") == ("winograd4", "tiles")
    assert taken(nn.MaxPool2d(2), "fast") == ("winograd4", "tiles")
    assert taken(nn.SiLU(), "exact") == ("direct", "direct")
