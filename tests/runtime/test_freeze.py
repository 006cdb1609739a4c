"""Frozen networks against the modules that they came from, in float64."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shade_fast.errors import ShadeFastError
from shade_fast.ops import native
from shade_fast.runtime import BLOCKS, Frozen, freeze

pytestmark = pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")

#: Relative root-mean-square of the input gradient against float64, as `freeze` promises it.
TOLERANCE = {"fast": 1e-4, "exact": 1e-5}


class Net(nn.Module):
    """A network from a function of its layers and the images."""

    def __init__(self, run: Callable[..., object], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.layers = nn.ModuleDict(layers)

    def forward(self, images: Tensor) -> object:
        return self.run(images, **self.layers)


class Attention(nn.Module):
    """Self-attention over the pixels, as autoencoders have it."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.norm(x).view(batch, channels, height * width).transpose(1, 2)
        parts = [
            layer(tokens).view(batch, -1, self.heads, channels // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        made = F.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(batch, -1, channels)
        return x + self.out(made).transpose(1, 2).view(batch, channels, height, width)


def conv(inputs: int, outputs: int, side: int = 3, stride: int = 1, **options: int | bool) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, **options)  # type: ignore[arg-type]


def blurred(x: Tensor) -> Tensor:
    row = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype)
    kernel = (row[:, None] * row).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def shared(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
    """A value that a ReLU makes and four layers take."""
    y = torch.relu(a(x))
    return torch.relu(y + b(y)) + c(y) + y


NETS: dict[str, Callable[[], nn.Module]] = {
    "one convolution": lambda: nn.Sequential(conv(3, 20)),
    "no bias, odd channels": lambda: nn.Sequential(
        conv(3, 17, bias=False), nn.ReLU(), conv(17, 33), nn.ReLU(), conv(33, 5)
    ),
    "kernels and strides": lambda: nn.Sequential(
        conv(3, 16, 7, 2), nn.ReLU(), conv(16, 24, 1), conv(24, 16, 3, 2), conv(16, 8, 5)
    ),
    "padding on two sides": lambda: Net(
        lambda x, a, b: b(F.pad(a(x), (0, 1, 0, 1))), a=conv(3, 16), b=nn.Conv2d(16, 12, 3, 2)
    ),
    "padding that torch makes": lambda: Net(
        lambda x, a, b: b(F.pad(a(x), (1, 1, 1, 1), mode="replicate")), a=conv(3, 16), b=nn.Conv2d(16, 12, 3)
    ),
    "shared value": lambda: Net(shared, a=conv(3, 16), b=conv(16, 16), c=conv(16, 16, 1)),
    "value added to itself": lambda: Net(lambda x, a: (y := a(x)) + y, a=conv(3, 8)),
    "sum of two convolutions": lambda: Net(lambda x, a, b: a(x) + b(x), a=conv(3, 16), b=conv(3, 16, 1)),
    "group norms": lambda: nn.Sequential(
        conv(3, 32),
        nn.GroupNorm(8, 32),
        nn.SiLU(),
        conv(32, 32),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        conv(32, 32),
        nn.GroupNorm(32, 32),
        conv(32, 4),
        nn.SiLU(),
    ),
    "lone activations": lambda: Net(lambda x, a, b: torch.relu(F.silu(a(x))) * 2 + b(x), a=conv(3, 8), b=conv(3, 8)),
    "pools": lambda: Net(
        lambda x, a, b: b(blurred(F.max_pool2d(torch.relu(a(F.max_pool2d(x, 2))), 2, 1))), a=conv(3, 16), b=conv(16, 16)
    ),
    "overlapping pool, rounded up": lambda: Net(
        lambda x, a, b: b(F.max_pool2d(torch.relu(a(x)), 3, 2, ceil_mode=True)), a=conv(3, 16), b=conv(16, 16)
    ),
    "attention, one head": lambda: nn.Sequential(conv(3, 16, 3, 2), Attention(16, 1), conv(16, 4)),
    "attention, four heads": lambda: nn.Sequential(conv(3, 16, 3, 2), Attention(16, 4), conv(16, 4)),
    "ops that torch runs": lambda: Net(
        lambda x, a, b, c: c(torch.cat([torch.tanh(a(x)), F.avg_pool2d(b(x), 3, 1, 1)], dim=1)),
        a=conv(3, 8),
        b=conv(3, 8, groups=1),
        c=conv(16, 4),
    ),
    "grouped and dilated": lambda: nn.Sequential(
        conv(3, 16), nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.Conv2d(16, 8, 3, padding=2, dilation=2)
    ),
    "scaled images and latents": lambda: Net(
        lambda x, a: (a(x * 2 - 1)[:, :3] - torch.tensor([0.1, 0.2, 0.3], dtype=x.dtype)[None, :, None, None]) * 0.5,
        a=conv(3, 8),
    ),
    "images taken in twice": lambda: Net(lambda x, a, b: a(x - 0.5) + b(x), a=conv(3, 8), b=conv(3, 8)),
    "images at the end": lambda: Net(lambda x, a: a(x) + x, a=conv(3, 3)),
}


def relative(made: Tensor, right: Tensor) -> float:
    return float((made.double() - right).norm() / right.norm())


def flat(result: object) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)  # type: ignore[call-overload]


def gradients(module: nn.Module, images: Tensor, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """A module's results, and the gradient of a random sum of them."""
    images = images.clone().requires_grad_(True)
    outputs = flat(module(images))
    generator = torch.Generator().manual_seed(seed)
    total = sum(
        (output * torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)).sum()
        for output in outputs
    )
    (gradient,) = torch.autograd.grad(total, images)  # type: ignore[arg-type]
    return [output.detach() for output in outputs], gradient


def photograph(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETS[name]().eval().requires_grad_(False)


@pytest.mark.parametrize("accuracy", ["fast", "exact"])
@pytest.mark.parametrize("name", NETS)
def test_results_and_input_gradient_are_the_modules(name: str, accuracy: str) -> None:
    module = made(name)
    frozen = freeze(module, "native", accuracy=accuracy)
    double = made(name).double()
    for shape in ((1, 32, 32), (2, 21, 34)):
        images = photograph(shape[1], shape[2], shape[0])
        right, right_gradient = gradients(double, images.double())
        for _ in range(2):  # the second time in memory that holds the first's
            outputs, gradient = gradients(frozen, images)
            assert len(outputs) == len(right)
            for output, one in zip(outputs, right, strict=True):
                assert output.shape == one.shape
                assert relative(output, one) < TOLERANCE[accuracy]
            assert gradient.shape == images.shape
            assert relative(gradient, right_gradient) < TOLERANCE[accuracy]
        with torch.no_grad():
            for output, one in zip(flat(frozen(images)), right, strict=True):
                assert relative(output, one) < TOLERANCE[accuracy]
    assert isinstance(frozen, Frozen)
    assert frozen.report(images).reason is None


def test_several_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 8), conv(8, 4, stride=2)

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            first = torch.relu(self.a(images))
            return first, self.b(first)

    torch.manual_seed(0)
    module = Two().eval().requires_grad_(False)
    images = photograph(24, 32)
    outputs, gradient = gradients(freeze(module), images)
    right, right_gradient = gradients(module.double(), images.double())
    assert [relative(output, one) < 1e-4 for output, one in zip(outputs, right, strict=True)] == [True, True]
    assert relative(gradient, right_gradient) < 1e-4


def test_results_outlive_the_next_step() -> None:
    frozen = freeze(made("group norms"))
    first = frozen(photograph(32, 32))
    kept = first.clone()
    frozen(1 - photograph(32, 32))
    assert torch.equal(first, kept)


def test_steps_may_overlap_and_the_gradients_are_each_ones_own() -> None:
    frozen = freeze(made("shared value"))
    a, b = photograph(32, 32).requires_grad_(True), (1 - photograph(32, 32)).requires_grad_(True)
    alone = [torch.autograd.grad(frozen(one).square().sum(), one)[0] for one in (a, b)]
    first, second = frozen(a), frozen(b)
    together = [torch.autograd.grad(result.square().sum(), one)[0] for result, one in ((first, a), (second, b))]
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_threads_may_share_a_network() -> None:
    frozen = freeze(made("group norms"))
    images = [photograph(32, 32) * scale for scale in (0.2, 0.5, 0.8, 1.0)]
    right = [gradients(frozen, image)[1] for image in images]
    found: dict[int, list[bool]] = {}

    def work(number: int) -> None:
        found[number] = [torch.equal(gradients(frozen, images[number])[1], right[number]) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(all(found[number]) for number in range(len(images)))


def test_an_images_gradient_does_not_depend_on_its_neighbours() -> None:
    frozen = freeze(made("kernels and strides"))
    images = photograph(40, 24, 3)
    together = gradients(frozen, images)[0][0]
    for number in range(3):
        assert torch.equal(frozen(images[number : number + 1])[0], together[number])


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("tpu", "fast"), "backend 'tpu'"), (("native", "roughly"), "accuracy 'roughly': give one of fast, exact")],
)
def test_unknown_names(arguments: tuple[str, str], message: str) -> None:
    with pytest.raises(ShadeFastError, match=message):
        freeze(nn.Identity(), arguments[0], accuracy=arguments[1])


def test_images_of_another_type() -> None:
    with pytest.raises(ShadeFastError, match="takes float32 images"):
        freeze(nn.Identity())(torch.zeros(1, 3, 8, 8, dtype=torch.float64))


def test_reference_is_the_module_itself() -> None:
    module = made("one convolution")
    assert freeze(module, "reference") is module
    frozen = freeze(module)
    assert freeze(frozen) is frozen
