"""Every Triton kernel as the engine launches it, for compiling ahead of time: types, tiles, what is known of sizes.

Pointers and the counts of channels and elements are multiples of 16, as they are for the networks' tensors, which is
what the launcher finds at run time as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from shade_fast.kernels import epilogue, group_norm, latent_distance, lpips_layer, max_pool, relu_lpips_layer
from shade_fast.ops.group_norm import ACTIVATIONS

DTYPES = ("fp32", "fp16", "bf16")
#: Of the encoder's GroupNorms, whose tiles are the same; of VGG's compared layers.
GROUP_NORM_CHANNELS, LPIPS_CHANNELS = 512, (64, 128, 256, 512)
MULTIPLES_OF_16 = ("channels", "elements")
#: Pointers that hold float32, whatever the features are.
FLOAT32 = ("partial", "distance", "upstream", "statistics", "means", "gamma", "beta", "bias", "head")
#: Pointers to masks and to places in a window.
INTEGERS = {"mask": "*i16", "index": "*u8"}


@dataclass(frozen=True)
class Configuration:
    """A kernel with its constants, of features of one dtype; `dtype` is float32's name where it reads none."""

    name: str
    dtype: str
    source: ASTSource
    warps: int = 4

    def compile(self, architecture: int) -> Any:
        """The kernel that Triton makes of it for sm_`architecture`."""
        options = {"num_warps": self.warps, "enable_fp_fusion": True}
        return triton.compile(self.source, target=GPUTarget("cuda", architecture, 32), options=options)


def configurations(dtype: str, complete: bool = True) -> Iterator[Configuration]:
    """All that run on features of a dtype; without `complete` one of each kernel, as a step has it most often."""
    block = {"block_size": latent_distance.BLOCK}
    splits = {"split_size": latent_distance.MOST_SPLITS}
    pairs = ("latents", "anchor")
    yield _configuration("latent_distance", latent_distance.squared_difference_kernel, dtype, pairs, block)
    yield _configuration("latent_distance", latent_distance.root_kernel, dtype, (), splits)
    yield _configuration("latent_distance", latent_distance.gradient_kernel, dtype, (*pairs, "gradient"), block)

    tile, most = group_norm.tile_sides(GROUP_NORM_CHANNELS), {"most_splits": group_norm.MOST_SPLITS}
    kernels = group_norm
    warps = kernels.WARPS
    sums = ((False, False, ""), (True, False, "bias"), (True, True, "bias, addend"), (False, True, "addend"))
    for shift, add, note in sums if complete else sums[:1] + sums[2:3]:
        constants = {"shift": shift, "add": add, **tile}
        pointers = ("x", "addend", "total")
        yield _configuration("group_norm", kernels.moments_kernel, dtype, pointers, constants, note, warps)
    tile = epilogue.relu_tile(GROUP_NORM_CHANNELS)
    sums = ((True, False, True), (True, False, False), (True, True, True), (True, True, False), (False, True, False))
    for relu, add, mark in sums if complete else sums[:1]:
        constants = {"shift": True, "add": add, "relu": relu, "mark": mark, **tile}
        note = ", ".join(["bias", *["residual"] * add, *["relu"] * relu, *["mask"] * mark])
        pointers = ("x", "residual", "out")
        yield _configuration("epilogue", epilogue.epilogue_kernel, dtype, pointers, constants, note, epilogue.WARPS)
    pointers = ("gradient", "out")
    yield _configuration("epilogue", epilogue.relu_gradient_kernel, dtype, pointers, tile, "", epilogue.WARPS)
    yield from _pools(dtype, complete)
    tile = group_norm.tile_sides(GROUP_NORM_CHANNELS)
    yield _configuration("group_norm", kernels.statistics_kernel, dtype, (), most)
    yield _configuration("group_norm", kernels.means_kernel, dtype, (), most)
    for number, activation in enumerate(ACTIVATIONS):
        if activation != "silu" and not complete:
            continue
        for shift in (False, True) if complete else (False,):
            constants = {"activation": number, "shift": shift, **tile}
            note = f"{activation}, bias" if shift else activation
            yield _configuration("group_norm", kernels.apply_kernel, dtype, ("x", "out"), constants, note, warps)
            pointers = ("gradient", "x")
            yield _configuration("group_norm", kernels.slopes_kernel, dtype, pointers, constants, note, warps)
        for add, shift in ((False, False), (True, False), (False, True)) if complete else ((True, False),):
            pointers = ("gradient", "x", "residual", "out")
            note = ", ".join([activation, *["residual"] * add, *["bias"] * shift])
            constants = {"activation": number, "shift": shift, "add": add, **tile}
            yield _configuration("group_norm", kernels.gradient_kernel, dtype, pointers, constants, note, warps)

    most = {"most_splits": lpips_layer.MOST_SPLITS}
    yield _configuration("lpips_layer", lpips_layer.mean_kernel, dtype, (), most)
    for channels in LPIPS_CHANNELS if complete else LPIPS_CHANNELS[-1:]:
        parts = (("forward", 1, 0), ("backward", 0, 1))
        for name, measure, differentiate in parts if complete else parts[:1]:
            constants = {"measure": measure, "differentiate": differentiate, **lpips_layer.tile_sides(channels)}
            pointers = ("activations", "clean", "gradient")
            yield _configuration(
                "lpips_layer", lpips_layer.layer_kernel, dtype, pointers, constants, f"{name}, {channels} channels"
            )
        yield from _compared_relus(dtype, channels, complete)


def _compared_relus(dtype: str, channels: int, complete: bool) -> Iterator[Configuration]:
    op, kernels, note = "relu_lpips_layer", relu_lpips_layer, f"{channels} channels"
    constants: dict[str, Any] = {"shift": True, **lpips_layer.tile_sides(channels)}
    pointers: tuple[str, ...] = ("x", "clean", "out")
    warps = kernels.FORWARD_WARPS[4 if dtype == "fp32" else 2]
    yield _configuration(op, kernels.forward_kernel, dtype, pointers, constants, note, warps)
    for add in (True, False) if complete else (True,):
        constants = {"add": add, **lpips_layer.tile_sides(channels)}
        pointers = ("activations", "clean", "residual", "out")
        rest = ", ".join([note, *["residual"] * add])
        yield _configuration(op, kernels.backward_kernel, dtype, pointers, constants, rest, kernels.BACKWARD_WARPS)


def _pools(dtype: str, complete: bool) -> Iterator[Configuration]:
    """Of VGG and of AlexNet and SqueezeNet: windows of 2 · 2 pixels side by side, and of 3 · 3 that overlap."""
    tile = max_pool.tile_sides(GROUP_NORM_CHANNELS)
    for kernel in (2, 3) if complete else (2,):
        size = f"{kernel} by {kernel}"
        for mark in (True, False) if complete else (True,):
            constants = {"kernel": kernel, "mark": mark, **tile}
            note = ", ".join([size, *["index"] * mark])
            yield _configuration(
                "max_pool", max_pool.max_pool_kernel, dtype, ("x", "out"), constants, note, max_pool.WARPS
            )
        constants = {"kernel": kernel, "reach": kernel - 1, **tile}
        pointers = ("gradient", "out")
        yield _configuration(
            "max_pool", max_pool.max_pool_gradient_kernel, dtype, pointers, constants, size, max_pool.WARPS
        )


def _configuration(
    op: str,
    kernel: Any,
    dtype: str,
    features: tuple[str, ...],
    constants: dict[str, Any],
    note: str = "",
    warps: int = 4,
) -> Configuration:
    """features: the kernel's pointers to values of the dtype; the other pointers are to float32."""
    signature = {name: _type(name, dtype, features, constants) for name in kernel.arg_names}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name in MULTIPLES_OF_16
    }
    name = f"{op}.{kernel.__name__.removesuffix('_kernel')}" + (f" ({note})" if note else "")
    return Configuration(
        name, dtype if features else "fp32", ASTSource(kernel, signature, constants, attributes), warps
    )


def _type(name: str, dtype: str, features: tuple[str, ...], constants: dict[str, Any]) -> str:
    if name in constants:
        return "constexpr"
    if name in features:
        return f"*{dtype}"
    if name in FLOAT32:
        return "*fp32"
    if name in INTEGERS:
        return INTEGERS[name]
    return "fp32" if name == "epsilon" else "i32"
