"""Networks frozen for a GPU against the modules that they came from, in float64; here with the ops' plain bodies.

`tests/kernels/interpreted/check_cuda_network.py` runs the same programs through the Triton kernels.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from shade_fast import load_encoder
from shade_fast.encoders.taesd import taesd_encoder
from shade_fast.perceptual.trunks import TRUNKS
from shade_fast.runtime import CUDA_PRECISIONS, CudaNetwork, freeze
from shade_fast.terms.errors import ShadeFastError
from tests.perceptual.random_weights import random_perceptual
from tests.runtime.networks import gradients, made, photograph, relative, small_kl, smooth_taesd

#: Relative root-mean-square of the input gradient against float64. Half precision rounds every feature; what a ReLU or
#: a pool decides otherwise for that is a jump of the gradient, and half of these small untrained nets' error.
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-2, "bf16": 0.15}
RESULTS = {"fp32": 1e-5, "fp16": 3e-3, "bf16": 2e-2}


def tiny_autoencoder() -> nn.Module:
    from diffusers import AutoencoderTiny

    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = AutoencoderTiny(encoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 2, 1))
    return load_encoder(autoencoder).module


def random_taesd() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return taesd_encoder(16, midblock_norm=True)


def smooth() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return smooth_taesd()


class WithBatchNorm(nn.Module):
    """What torch runs in float32: layers that no other encoder here has."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = nn.functional.softplus(self.norm(self.first(images)))
        return self.last(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def with_batch_norm() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = WithBatchNorm()
        module.norm.running_mean = torch.randn(8)
        module.norm.running_var = torch.rand(8) + 0.5
    return load_encoder(module).module


#: Every kind of encoder, and the error that bf16 leaves in its gradient.
ENCODERS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "kl": (small_kl, CUDA_PRECISIONS["bf16"].error),
    "taesd, smooth": (smooth, CUDA_PRECISIONS["bf16"].error),
    "taesd": (random_taesd, 0.5),
    "tiny": (tiny_autoencoder, 0.5),
    "embedded": (lambda: load_encoder("embedded").module, 0.5),
    "module": (with_batch_norm, CUDA_PRECISIONS["bf16"].error),
    "callable": (lambda: load_encoder(lambda images: nn.functional.avg_pool2d(images, 4)).module, 1e-2),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_kind_of_encoder(name: str) -> None:
    make, bf16_error = ENCODERS[name]
    module = make().eval().requires_grad_(False)
    images = photograph(24, 16)
    found = {precision: gradients(freeze(module, "cuda", accuracy=precision), images) for precision in TOLERANCE}
    (right,), right_gradient = gradients(module.double(), images.double())
    module.float()
    for precision, ((latents,), gradient) in found.items():
        assert relative(latents, right) < RESULTS[precision]
        limit = bf16_error if precision == "bf16" else min(bf16_error, TOLERANCE[precision] * 3)
        assert relative(gradient, right_gradient) < limit, precision


def test_an_autoencoders_norms_take_activations_sums_and_biases_in() -> None:
    """Of SD's layers nothing is left that only adds, normalises or activates, but for the attention's own sums."""
    network = freeze(small_kl(), "cuda")
    assert isinstance(network, CudaNetwork)
    module = small_kl()
    kinds = network.kinds(photograph(32, 32))
    norms = sum(isinstance(one, nn.GroupNorm) for one in module.modules())
    assert kinds["norm"] == norms
    assert kinds["silu.default"] == kinds["group_norm.default"] == kinds["conv2d.default"] == 0
    assert kinds["epilogue"] + kinds["add.Tensor"] <= 3
    program = network.program([photograph(32, 32)])
    assert program is not None
    biased = [node for node in program.run.graph.nodes if node.name.startswith("convolution") and node.args[2]]
    assert len(biased) <= 1  # the last convolution
    assert kinds["pad.default"] == 0


@pytest.mark.parametrize(
    ("trunk", "precision"),
    # A CPU's half precision is slow: the small trunks stand for it.
    [*((trunk, "fp32") for trunk in TRUNKS), ("alex", "bf16"), ("squeeze", "bf16"), ("alex", "fp16")],
)
def test_lpips_trunks(trunk: str, precision: str) -> None:
    network = random_perceptual(trunk)
    clean = photograph(32, 33)
    perturbed = (clean + 0.06 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    frozen = network.frozen(lambda module: freeze(module, "cuda", accuracy=precision))

    def measured(network, images: Tensor) -> tuple[Tensor, Tensor]:
        features = network.features(clean.to(images.dtype))
        images = images.clone().requires_grad_(True)
        distance = network.distance(images, features)
        return distance.detach(), torch.autograd.grad(distance.sum(), images)[0]

    distance, gradient = measured(frozen, perturbed)
    right, right_gradient = measured(network.to(torch.float64), perturbed.double())
    network.to(torch.float32)
    # The distance is of two features that are nearly alike: what is rounded away counts more than in them.
    assert relative(distance, right) < {"fp32": 1e-5, "fp16": 5e-3, "bf16": 5e-2}[precision]
    assert relative(gradient, right_gradient) < {"fp32": 1e-4, "fp16": 0.1, "bf16": 0.3}[precision]


#: Zeros left, right, above and below, and the window after them; whether the convolution adds them by itself.
PADDINGS = {
    "at the far ends": ((0, 1, 0, 1), {"kernel_size": 3, "stride": 2}, True),
    "at the near ends": ((1, 0, 1, 0), {"kernel_size": 3, "stride": 2}, True),
    "all around, beside the window's own": ((1, 1, 1, 1), {"kernel_size": 5, "stride": 2, "padding": 1}, True),
    "other zeros on each end": ((2, 0, 1, 3), {"kernel_size": 5, "stride": 1, "dilation": 2}, True),
    "of columns alone": ((1, 2), {"kernel_size": (2, 4), "stride": (3, 1)}, True),
    "more than a window": ((0, 4, 0, 1), {"kernel_size": 3, "stride": 2}, False),
    "less than nothing": ((-1, 1, 0, 0), {"kernel_size": 3}, False),
}


@pytest.mark.parametrize("name", PADDINGS)
def test_a_convolution_adds_the_zeros_before_it(name: str) -> None:
    zeros, window, itself = PADDINGS[name]

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, **window)

        def forward(self, images: Tensor) -> Tensor:
            return self.second(nn.functional.pad(self.first(images), zeros))

    for size in ((16, 16), (15, 18)):
        module, images = Padded().requires_grad_(False), photograph(*size)
        network = freeze(module, "cuda", accuracy="fp32")
        (output,), gradient = gradients(network, images)
        assert (network.kinds(images)["pad.default"] == 0) == itself
        (right,), right_gradient = gradients(module.double(), images.double())
        assert output.shape == right.shape
        assert relative(output, right) < RESULTS["fp32"]
        assert relative(gradient, right_gradient) < TOLERANCE["fp32"]


class Branches(nn.Module):
    """A biased convolution that a norm takes, and something else beside it."""

    def __init__(self, beside: str) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 3)
        self.beside = {
            "one pixel": nn.Conv2d(8, 6, 1),
            "one pixel, no bias": nn.Conv2d(8, 6, 1, bias=False),
            "window": nn.Conv2d(8, 6, 3, padding=1),
            "relu": nn.Sequential(nn.ReLU(), nn.Conv2d(8, 6, 1)),
            "norm": nn.Sequential(nn.GroupNorm(4, 8), nn.Conv2d(8, 6, 1)),
            "sum": nn.Identity(),
            "pool": nn.Sequential(nn.MaxPool2d(5, 1, 2), nn.MaxPool2d((1, 3), 1, (0, 1)), nn.Conv2d(8, 6, 1)),
        }[beside]

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        y, beside = nn.functional.silu(self.norm(x)), self.beside(x)
        if beside is x:
            return self.second(y + x)
        return torch.cat([self.second(y), beside[..., 1:-1, 1:-1]], dim=1)


@pytest.mark.parametrize(
    ("beside", "adds"),
    [("one pixel", 0), ("one pixel, no bias", 0), ("window", 1), ("relu", 1), ("norm", 0), ("sum", 1), ("pool", 1)],
)
def test_a_bias_that_a_norm_takes_is_added_once_more_only_where_it_must_be(beside: str, adds: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Branches(beside).requires_grad_(False)
    images = photograph(14, 17, 2)
    network = freeze(module, "cuda", accuracy="fp32")
    (output,), gradient = gradients(network, images)
    assert network.kinds(images)["epilogue"] == adds
    (right,), right_gradient = gradients(module.double(), images.double())
    assert relative(output, right) < RESULTS["fp32"]
    assert relative(gradient, right_gradient) < TOLERANCE["fp32"]


def test_relus_keep_bits_and_those_that_lpips_compares_nothing() -> None:
    images = photograph(64, 64).requires_grad_(True)
    network = freeze(random_taesd(), "cuda")
    sizes = kept_by(network, images)
    assert sizes
    assert sum(sizes) < 0.1 * sum(kept_by(random_taesd().requires_grad_(False), images)) / 2  # of two bytes a value

    perceptual = random_perceptual("vgg").frozen(lambda module: freeze(module, "cuda"))
    clean = perceptual.features(photograph(64, 64))
    kinds = perceptual._distances.kinds(images, *clean)
    assert (kinds["relu_lpips_layer"], kinds["epilogue"], kinds["max_pool"]) == (5, 8, 4)
    assert kinds["lpips_layer"] == kinds["relu.default"] == kinds["max_pool2d.default"] == 0


def kept_by(run: nn.Module, images: Tensor) -> list[int]:
    """Bytes of each feature map, or what stands for it, that autograd keeps of a network that has run before."""
    run(images)
    own = {one.untyped_storage()._cdata for one in [*run.parameters(), *run.buffers(), images]}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Held, or the address would be given to another.
        alive.append(tensor)
        if storage._cdata not in own and tensor.ndim > 2 and tensor.shape[0] == 1:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        result = run(images)
    del result
    return list(sizes.values())


def test_nothing_is_kept_that_only_a_weights_gradient_needs() -> None:
    """What autograd keeps of a norm is its input and of a convolution nothing, where plain torch keeps both."""
    module = small_kl()
    images = photograph(64, 64).requires_grad_(True)
    network = freeze(module, "cuda", accuracy="fp32")
    module.requires_grad_(True)  # as a pipeline loads it
    plain = kept_by(module, images)
    module.requires_grad_(False)
    assert sum(kept_by(network, images)) < 0.45 * sum(plain)


def test_gradients_in_float16_do_not_vanish() -> None:
    """LPIPS' gradient has a mean over all pixels in it: at 512 squared, values below float16's least."""
    network = random_perceptual("alex")
    frozen = network.frozen(lambda module: freeze(module, "cuda", accuracy="fp16"))
    clean = photograph(128, 128)
    images = (clean + 0.004).requires_grad_(True)
    (gradient,) = torch.autograd.grad(frozen.distance(images, frozen.features(clean)).sum(), images)
    (right,) = torch.autograd.grad(network.distance(images, network.features(clean)).sum(), images)
    assert relative(gradient, right.double()) < 0.2


def test_what_cannot_be_traced_runs_through_torch_and_says_so() -> None:
    class Moody(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images * 2 if images.mean() > 0.5 else images

    network = freeze(Moody(), "cuda")
    images = torch.full((1, 3, 8, 8), 0.9)
    assert torch.equal(network(images), images * 2)
    assert isinstance(network, CudaNetwork)
    with pytest.raises(ShadeFastError, match="it cannot be traced"):
        network.kinds(images)


def test_precisions_by_name() -> None:
    assert freeze(made("one convolution"), "cuda").precision is CUDA_PRECISIONS["bf16"]
    assert freeze(made("one convolution"), "cuda", accuracy="exact").precision is CUDA_PRECISIONS["fp32"]
    with pytest.raises(ShadeFastError, match="accuracy 'bf16' of backend 'native': give one of fast, exact"):
        freeze(made("one convolution"), "native", accuracy="bf16")
    with pytest.raises(ShadeFastError, match="accuracy 'int8' of backend 'cuda': give one of bf16, fp16, tf32, fp32"):
        freeze(made("one convolution"), "cuda", accuracy="int8")


def switches() -> tuple[object, ...]:
    """How torch rounds the factors of float32 products, which depends on its version, and chooses their algorithms."""
    convolutions, matrices = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(convolutions, "conv"):
        return convolutions.conv.fp32_precision == "tf32", matrices.fp32_precision == "tf32", convolutions.deterministic
    return convolutions.allow_tf32, matrices.allow_tf32, convolutions.deterministic


def test_switches_of_the_products_are_as_the_precision_says_and_then_as_they_were() -> None:
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.convolution.default:
                seen.append(switches())
            return function(*args, **(kwargs or {}))

    before = switches()
    for precision in ("tf32", "fp32", "bf16"):
        network = freeze(made("one convolution"), "cuda", accuracy=precision)
        network(photograph(16, 16))
        with Watch():
            gradients(network, photograph(16, 16))
    # Half precision has no float32 factors to round.
    assert seen == [(True, True, True)] * 2 + [(False, False, True)] * 2 + [(*before[:2], True)] * 2
    assert switches() == before


SWITCHED = """
import torch
from shade_fast.runtime import freeze, products
from shade_fast.runtime.switches import _newer, _older, _precision

{}
convolutions, matrices = torch.backends.cudnn, torch.backends.cuda.matmul


def stand():
    newer = [one.fp32_precision for one in _newer()]
    return [_older(convolutions), _older(matrices), _precision(), newer]


before = stand()
module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 1))
images = torch.rand(1, 3, 8, 8).requires_grad_()
for rounded in (None, False, True):
    with products(rounded):
        inside = stand()
        assert rounded is None or set(inside[3]) <= {{"tf32" if rounded else "ieee"}}, inside
        assert rounded is None or inside[3] or inside[:2] == [rounded] * 2, inside
        network = freeze(module, "cuda", accuracy="tf32")
        network(images).sum().backward()
        assert not network.reasons, network.reasons
    assert stand() == before, (before, stand())
"""


@pytest.mark.parametrize(
    "caller",
    [
        "pass",
        "torch.backends.cudnn.allow_tf32 = False",
        "torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.set_float32_matmul_precision('high')",
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.fp32_precision = 'tf32'; torch.set_float32_matmul_precision('high')",
        *(
            f"{where}.fp32_precision = {value!r}"
            for where in ("torch.backends", "torch.backends.cudnn.conv", "torch.backends.cuda.matmul")
            for value in ("ieee", "tf32")
        ),
    ],
)
def test_networks_are_traced_and_switches_put_back_however_they_stand(caller: str) -> None:
    """Torch may refuse to tell how the older switches stand, and asks that itself where it traces. In a process of its
    own: what a caller has set cannot always be taken back."""
    if "fp32_precision" in caller and not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("this torch has the older switches alone")
    subprocess.run([sys.executable, "-c", SWITCHED.format(caller)], check=True)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"),
    [
        (3, 1, 1, 1, 1),
        (3, 2, 0, 1, 1),
        (3, 2, 1, 1, 2),
        (1, 2, 0, 1, 1),
        (4, 4, 0, 1, 1),
        (3, 3, 2, 2, 4),
        (5, 2, 3, 1, 8),
    ],
)
@pytest.mark.parametrize("size", [(16, 16), (17, 14)])
def test_a_convolutions_gradient_of_every_geometry(
    kernel: int, stride: int, padding: int, dilation: int, groups: int, size: tuple[int, int]
) -> None:
    """A transposed convolution, whose result has the size of the input also where strides leave some of it out."""
    torch.manual_seed(0)
    module = nn.Conv2d(8, 16, kernel, stride, padding, dilation, groups)
    images = torch.randn(2, 8, *size)
    network = freeze(module, "cuda", accuracy="fp32")
    _, gradient = gradients(network, images)
    assert not network.reasons
    assert gradient.shape == images.shape
    assert relative(gradient, gradients(module.double(), images.double())[1]) < TOLERANCE["fp32"]


@pytest.mark.parametrize("size", [(3, 3), (4, 5), (9, 8), (17, 16)])
@pytest.mark.parametrize("sides", [(2, 2, 2, 2), (1, 0, 2, 1), (0, 0, 0, 0)])
def test_mirrored_pixels(size: tuple[int, int], sides: tuple[int, int, int, int]) -> None:
    images = torch.rand(2, 3, *size)
    network = freeze(nn.ReflectionPad2d(sides), "cuda", accuracy="fp32")
    (output,), gradient = gradients(network, images)
    (right,), right_gradient = gradients(nn.ReflectionPad2d(sides), images.double())
    assert network.kinds(images)["reflection_pad"] == 1
    assert torch.equal(output, right.float())
    assert relative(gradient, right_gradient) < 1e-6
    assert output.is_contiguous(memory_format=torch.channels_last)
