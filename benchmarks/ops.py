"""The table of ops: what timing, checks on a GPU, ahead-of-time compiles and the count of launches know of each.

An op is a class, and a row of `OPS`: its inputs and sizes, what it is compared with, the bytes that it moves, its
Triton kernels as the engine launches them, and how many kernels a call launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.inputs import LINF, Inputs, Pixels
from shade_fast.ops import bisect_scale, latent_distance, optimizer_update, quantize
from shade_fast.ops.epilogue import epilogue
from shade_fast.ops.group_norm import ACTIVATIONS
from shade_fast.ops.lpips_layer import lpips_layer
from shade_fast.ops.max_pool import max_pool
from shade_fast.ops.relu_lpips_layer import relu_lpips_layer
from shade_fast.ops.residual_group_norm import residual_group_norm

#: Relative root-mean-square error of a kernel's result in bfloat16.
ROUNDING = 1e-2
LEVELS = 16
#: Height and width of the images that pixel ops are timed on.
SIZES = {"512": (512, 512), "12mp": (3000, 4000)}
#: Channels of the compiled kernels: of the encoder's GroupNorms, whose tiles are the same; of VGG's compared layers.
CHANNELS, LPIPS_CHANNELS = 512, (64, 128, 256, 512)


@dataclass(frozen=True)
class Check:
    """An op on a device, what is right, what eager torch has for it, and the bytes that it moves.

    error: the relative root-mean-square error that is allowed.
    """

    name: str
    run: Callable[[], Tensor]
    reference: Callable[[], Tensor]
    eager: Callable[[], Tensor]
    bytes: float
    error: float = ROUNDING


@dataclass(frozen=True)
class Kernel:
    """A Triton kernel as an op launches it on features of one dtype.

    features: its pointers to values of the dtype; the types of the others follow from their names. note: how it
    differs from the op's others of its name. usual: whether a step has it most often this way.
    """

    function: Any
    features: tuple[str, ...]
    constants: Mapping[str, Any]
    note: str = ""
    warps: int = 4
    usual: bool = True


@dataclass(frozen=True)
class Launches:
    """What an op launches: how many kernels, and which tensors they read or write a second time.

    name: as torch dispatches it. again: a function of the op's arguments and its result.
    """

    name: str
    kernels: int
    again: Callable[[Any, Any], Sequence[Tensor]] = lambda arguments, result: ()


class OpCase:
    """An op; each subclass gives what its op has.

    launches: of what torch dispatches for it; what is not there launches one kernel.
    """

    name: str
    launches: tuple[Launches, ...] = ()

    def checks(self, inputs: Inputs) -> Iterator[Check]:
        """The op beside its reference and eager torch, on a step's inputs."""
        raise NotImplementedError

    def kernels(self, dtype: str) -> Iterator[Kernel]:
        """Its Triton kernels on features of a dtype, `fp32`, `fp16` or `bf16`. Needs Triton."""
        yield from ()


class GroupNorm(OpCase):
    name = "group_norm"
    launches = (
        # The statistics' pass reads x and writes the sum; the other reads that, or x where there is no sum.
        Launches(
            "shade_fast::residual_group_norm", 3, lambda given, result: [result[0] if len(result[0]) else given[0]]
        ),
        Launches("shade_fast::residual_group_norm_gradient", 3, lambda given, result: given[:2]),
    )

    def checks(self, inputs: Inputs) -> Iterator[Check]:
        given = inputs.features
        options: dict[str, Any] = {"groups": inputs.channels // 4, "epsilon": 1e-6, "activation": "silu"}

        def eager(x: Tensor, *addends: Tensor) -> Tensor:
            for addend in addends:
                x = x + (addend if addend.ndim == 4 else addend.to(x.dtype)[:, None, None])
            weights = (values.to(x.dtype) for values in (given.gamma, given.beta))
            return functional.silu(functional.group_norm(x, options["groups"], *weights, options["epsilon"]))

        def fused(x: Tensor, **more: Any) -> Tensor:
            return residual_group_norm(x, given.gamma, given.beta, **options, **more)[1]

        def alone(x: Tensor) -> Tensor:
            return fused(x, keep=False)

        x, addend, bias = given.x, given.addend, given.bias
        yield Check("group norm, SiLU", partial(alone, x), _exactly(eager, x), partial(eager, x), 3 * given.bytes)
        yield Check(
            "group norm, SiLU, of a sum",
            lambda: fused(x, bias=bias, addend=addend),
            _exactly(eager, x, addend, bias),
            partial(eager, x, addend, bias),
            5 * given.bytes,
        )
        yield _with_gradient("group norm, SiLU", alone, eager, x, given.upstream, 8 * given.bytes)

    def kernels(self, dtype: str) -> Iterator[Kernel]:
        from shade_fast.kernels import group_norm_silu as kernels

        tile, splits, warps = kernels.tile_sides(CHANNELS), {"most_splits": kernels.MOST_SPLITS}, kernels.WARPS
        for shift, add in ((False, False), (True, False), (True, True), (False, True)):
            constants = {"shift": shift, "add": add, **tile}
            note = _note(bias=shift, addend=add)
            yield Kernel(kernels.moments_kernel, ("x", "addend", "total"), constants, note, warps, usual=shift == add)
        yield Kernel(kernels.statistics_kernel, (), splits)
        yield Kernel(kernels.means_kernel, (), splits)
        for number, activation in enumerate(ACTIVATIONS):
            often = activation == "silu"
            for shift in (False, True):
                constants = {"activation": number, "shift": shift, **tile}
                note, usual = _note(activation, bias=shift), often and not shift
                yield Kernel(kernels.apply_kernel, ("x", "out"), constants, note, warps, usual)
                yield Kernel(kernels.slopes_kernel, ("gradient", "x"), constants, note, warps, usual)
            for add, shift in ((False, False), (True, False), (False, True)):
                constants = {"activation": number, "shift": shift, "add": add, **tile}
                note, pointers = _note(activation, residual=add, bias=shift), ("gradient", "x", "residual", "out")
                yield Kernel(kernels.gradient_kernel, pointers, constants, note, warps, usual=often and add)


class Epilogue(OpCase):
    name = "epilogue"

    def checks(self, inputs: Inputs) -> Iterator[Check]:
        given = inputs.features
        x, addend, bias = given.x, given.addend, given.bias
        yield Check(
            "bias, residual, ReLU",
            lambda: epilogue(x, bias, addend, relu=True),
            lambda: torch.relu(x.float() + addend.float() + bias[:, None, None]),
            lambda: torch.relu(x + addend + bias.to(x.dtype)[:, None, None]),
            3 * given.bytes,
        )

        def fused(x: Tensor) -> Tensor:
            return epilogue(x, bias, relu=True)

        eager = partial(_eager_relu, bias=bias)
        yield _with_gradient("bias, ReLU", fused, eager, x, given.upstream, 4.125 * given.bytes)

    def kernels(self, dtype: str) -> Iterator[Kernel]:
        from shade_fast.kernels import epilogue as kernels

        tile, pointers = kernels.relu_tile(CHANNELS), ("x", "residual", "out")
        sums = (
            (True, False, True),
            (True, False, False),
            (True, True, True),
            (True, True, False),
            (False, True, False),
        )
        for relu, add, mark in sums:
            constants = {"shift": True, "add": add, "relu": relu, "mark": mark, **tile}
            note, usual = _note("bias", residual=add, relu=relu, mask=mark), mark and not add
            yield Kernel(kernels.epilogue_kernel, pointers, constants, note, kernels.WARPS, usual)
        yield Kernel(kernels.relu_gradient_kernel, ("gradient", "out"), tile, warps=kernels.WARPS)


class MaxPool(OpCase):
    name = "max_pool"

    def checks(self, inputs: Inputs) -> Iterator[Check]:
        given, half = inputs.features, inputs.side // 2
        upstream = given.upstream[..., :half, :half].contiguous(memory_format=torch.channels_last)

        def fused(x: Tensor) -> Tensor:
            return max_pool(x, 2, 2, 0, (half, half))

        eager = partial(functional.max_pool2d, kernel_size=2)
        yield _with_gradient("max pool", fused, eager, given.x, upstream, 2.75 * given.bytes)

    def kernels(self, dtype: str) -> Iterator[Kernel]:
        """Of VGG, and of AlexNet and SqueezeNet: windows of 2 · 2 pixels side by side, and of 3 · 3 that overlap."""
        from shade_fast.kernels import max_pool as kernels

        tile, warps = kernels.tile_sides(CHANNELS), kernels.WARPS
        for side in (2, 3):
            size, usual = f"{side} by {side}", side == 2
            for mark in (True, False):
                constants = {"kernel": side, "mark": mark, **tile}
                note = _note(size, index=mark)
                yield Kernel(kernels.max_pool_kernel, ("x", "out"), constants, note, warps, usual and mark)
            constants = {"kernel": side, "reach": side - 1, **tile}
            yield Kernel(kernels.max_pool_gradient_kernel, ("gradient", "out"), constants, size, warps, usual)


class LpipsLayer(OpCase):
    name = "lpips_layer"
    launches = (Launches("shade_fast::lpips_layer", 2),)

    def checks(self, inputs: Inputs) -> Iterator[Check]:
        given = inputs.features
        eager = partial(_eager_lpips, head=given.head)
        yield Check(
            "LPIPS layer",
            lambda: lpips_layer(given.x, given.clean, given.head),
            _exactly(eager, given.x, given.clean),
            partial(eager, given.x, given.clean),
            2 * given.bytes,
        )

    def kernels(self, dtype: str) -> Iterator[Kernel]:
        from shade_fast.kernels import lpips_layer as kernels

        yield Kernel(kernels.mean_kernel, (), {"most_splits": kernels.MOST_SPLITS})
        pointers = ("activations", "clean", "gradient")
        for channels in LPIPS_CHANNELS:
            for part, measure, differentiate in (("both", 1, 1), ("forward", 1, 0), ("backward", 0, 1)):
                constants = {"measure": measure, "differentiate": differentiate, **kernels.tile_sides(channels)}
                note, usual = f"{part}, {channels} channels", part == "both" and channels == LPIPS_CHANNELS[-1]
                yield Kernel(kernels.layer_kernel, pointers, constants, note, usual=usual)


class ReluLpipsLayer(OpCase):
    name = "relu_lpips_layer"
    launches = (Launches("shade_fast::relu_lpips_layer", 2),)

    def checks(self, inputs: Inputs) -> Iterator[Check]:
        given = inputs.features

        def fused(x: Tensor) -> Tensor:
            return relu_lpips_layer(x, given.bias, given.clean, given.head)[1]

        def eager(x: Tensor) -> Tensor:
            return _eager_lpips(_eager_relu(x, given.bias), given.clean.to(x.dtype), given.head)

        ones = torch.ones(1, device=inputs.device)
        yield Check(
            "bias, ReLU, LPIPS layer, with their gradient",
            _gradient(fused, given.x, ones),
            _gradient(eager, given.x.float(), ones),
            _gradient(eager, given.x, ones.to(given.x.dtype)),
            6 * given.bytes,
        )

    def kernels(self, dtype: str) -> Iterator[Kernel]:
        from shade_fast.kernels.lpips_layer import tile_sides

        from shade_fast.kernels import relu_lpips_layer as kernels

        warps = kernels.FORWARD_WARPS[4 if dtype == "fp32" else 2]
        for channels in LPIPS_CHANNELS:
            tile, note, usual = tile_sides(channels), f"{channels} channels", channels == LPIPS_CHANNELS[-1]
            pointers: tuple[str, ...] = ("x", "clean", "out")
            yield Kernel(kernels.forward_kernel, pointers, {"shift": True, **tile}, note, warps, usual)
            pointers = ("activations", "clean", "residual", "out")
            for add in (True, False):
                constants, text = {"add": add, **tile}, _note(note, residual=add)
                yield Kernel(kernels.backward_kernel, pointers, constants, text, kernels.BACKWARD_WARPS, usual and add)


class LatentDistance(OpCase):
    name = "latent_distance"
    launches = (Launches("shade_fast::latent_distance", 2),)

    def checks(self, inputs: Inputs) -> Iterator[Check]:
        latents, anchor = (
            maps[:, :4].contiguous(memory_format=torch.channels_last)
            for maps in (inputs.features.x, inputs.features.addend)
        )

        def eager(latents: Tensor, anchor: Tensor) -> Tensor:
            return (latents - anchor).flatten(1).norm(dim=1)

        yield Check(
            "latent distance",
            lambda: latent_distance(latents, anchor),
            _exactly(eager, latents, anchor),
            partial(eager, latents, anchor),
            2.0 * latents.numel() * latents.element_size(),
        )

    def kernels(self, dtype: str) -> Iterator[Kernel]:
        from shade_fast.kernels import latent_distance as kernels

        block, pointers = {"block_size": kernels.BLOCK}, ("latents", "anchor")
        yield Kernel(kernels.squared_difference_kernel, pointers, block)
        yield Kernel(kernels.root_kernel, (), {"split_size": kernels.MOST_SPLITS})
        yield Kernel(kernels.gradient_kernel, (*pointers, "gradient"), block)


class PixelOp(OpCase):
    """An op on images of the file's size; its plain-torch body is what eager torch has, and on the CPU what is right.

    purpose: of its timing on the CPU, at `SIZES`; without one it is not timed there. label: of its check. bytes: that
    it moves for each value. changes: what it writes in place. error: allowed on a GPU, relative; differing: the share
    of the first result's values that may differ from the reference's by more than 1e-6 on the CPU.
    """

    purpose = ""
    label: str
    bytes: int
    changes: tuple[str, ...] = ()
    error = 0.0
    differing = 0.0

    def results(self, pixels: Pixels, backend: str) -> tuple[Tensor, ...]:
        """What the op makes, the checked result first; and it writes in place what `changes` names."""
        raise NotImplementedError

    def checks(self, inputs: Inputs) -> Iterator[Check]:
        given = inputs.pixels

        def run(backend: str) -> Tensor:
            return self.results(given.copied(self.changes), backend)[0]

        def reference() -> Tensor:
            # The CPU divides as the kernels do.
            return self.results(given.cpu().copied(self.changes), "reference")[0]

        copies = sum(2 * getattr(given, name).element_size() for name in self.changes)
        moved = float((self.bytes + copies) * given.clean.numel())
        yield Check(self.label, partial(run, "native"), reference, partial(run, "reference"), moved, self.error)

    def wrong(self, results: Sequence[Tensor], right: Sequence[Tensor]) -> str | None:
        """None, or how results on the CPU differ from the reference's."""
        for place, (result, wanted) in enumerate(zip(results, right, strict=True)):
            result, wanted = result.double(), wanted.double()
            count = int(torch.count_nonzero((result - wanted).abs() > 1e-6 * (1 + wanted.abs())))
            if count > (0 if place else self.differing * wanted.numel()):
                return f"{count} values of result {place + 1} differ from the reference"
        return None


class OptimizerUpdate(PixelOp):
    name, purpose = "optimizer_update", "momentum, step and projection"
    launches = (Launches("shade_fast::optimizer_update", 2),)
    label = "update (with copies of delta and momentum)"
    bytes = 25
    changes = ("delta", "momentum")
    # The update's mean is of float64 sums on a GPU. On the CPU it is summed in another order than the reference's, and
    # a momentum within one rounding of 0 may change its sign.
    error = differing = 1e-6

    def results(self, pixels: Pixels, backend: str) -> tuple[Tensor, ...]:
        values = (pixels.delta, pixels.momentum, pixels.gradient, pixels.clean)
        optimizer_update(*values, step=0.3 * LINF, decay=0.8, linf=LINF, backend=backend)
        return pixels.delta, pixels.momentum


class Quantize(PixelOp):
    name, purpose, label = "quantize", "rounding to uint8 in the box", "rounding"
    bytes = 6

    def results(self, pixels: Pixels, backend: str) -> tuple[Tensor, ...]:
        return (quantize(pixels.clean, pixels.delta, pixels.scale, levels=LEVELS, backend=backend),)


class BisectScale(PixelOp):
    name, label = "bisect_scale", "bisection's step"
    bytes = 7

    def results(self, pixels: Pixels, backend: str) -> tuple[Tensor, ...]:
        values = (pixels.clean, pixels.delta, pixels.distance, pixels.interval)
        interval, images = bisect_scale(*values, bound=0.5, levels=LEVELS, backend=backend)
        return images, interval


#: The table, in the order of the checks.
OPS: tuple[OpCase, ...] = (
    GroupNorm(),
    Epilogue(),
    MaxPool(),
    LpipsLayer(),
    ReluLpipsLayer(),
    LatentDistance(),
    OptimizerUpdate(),
    Quantize(),
    BisectScale(),
)


def launches_of(name: str) -> Launches:
    """What torch's op of a name launches; one kernel where no row knows it."""
    return next((launches for op in OPS for launches in op.launches if launches.name == name), Launches(name, 1))


def _note(*parts: str, **flags: bool) -> str:
    return ", ".join([*parts, *(name for name, flag in flags.items() if flag)])


def _exactly(function: Callable[..., Tensor], *tensors: Tensor) -> Callable[[], Tensor]:
    """The function of the same values in float32."""
    return lambda: function(*(tensor.float() for tensor in tensors))


def _gradient(function: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor) -> Callable[[], Tensor]:
    """The function's gradient in its input, forward and backward."""

    def run() -> Tensor:
        leaf = x.detach().requires_grad_(True)
        return torch.autograd.grad(function(leaf), leaf, upstream)[0]

    return run


def _with_gradient(
    name: str,
    fused: Callable[[Tensor], Tensor],
    eager: Callable[[Tensor], Tensor],
    x: Tensor,
    upstream: Tensor,
    moved: float,
) -> Check:
    reference = _gradient(eager, x.float(), upstream.float())
    label = f"{name}, with its gradient"
    return Check(label, _gradient(fused, x, upstream), reference, _gradient(eager, x, upstream), moved)


def _eager_relu(x: Tensor, bias: Tensor) -> Tensor:
    return torch.relu(x + bias.to(x.dtype)[:, None, None])


def _eager_lpips(x: Tensor, clean: Tensor, head: Tensor) -> Tensor:
    squares = (functional.normalize(x, dim=1) - clean).square()
    return (squares * head.to(x.dtype)[:, None, None]).sum(1).mean((1, 2))
