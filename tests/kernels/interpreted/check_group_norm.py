"""The group-norm kernels against the op's plain-torch body and float64 autograd, in Triton's interpreter."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from shade_fast.kernels import group_norm as kernels
from shade_fast.ops import gpu
from shade_fast.ops import group_norm as op
from shade_fast.ops.group_norm import group_norm
from shade_fast.terms.errors import ShadeFastError

EPSILON = 1e-6
# ([B, C, h, w], groups): 32 groups of 4, 8 and 16 channels, one pixel to more than one tile a program; then channels
# that fill no tile, that fill some and a part of one, prime ones, and groups of 1, 3 and all channels.
SHAPES = [
    ((1, 128, 1, 1), 32),
    ((1, 128, 65, 63), 32),
    ((2, 256, 3, 5), 32),
    ((1, 256, 17, 16), 32),
    ((1, 512, 1, 2), 32),
    ((1, 512, 13, 11), 32),
    ((2, 96, 9, 4), 32),
    ((1, 320, 2, 7), 32),
    ((3, 6, 5, 7), 3),
    ((1, 17, 6, 5), 17),
    ((1, 31, 23, 29), 1),
]
# Relative. float32: a few roundings, and for the gradient three terms that nearly cancel where a group has few values.
# float16: one rounding of each result.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 5e-4}
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-4}

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])


class Inputs(NamedTuple):
    x: Tensor
    gradient: Tensor
    gamma: Tensor
    beta: Tensor


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def images() -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(memory_format=torch.channels_last)

    gamma = 1 + 0.5 * torch.randn(shape[1], generator=generator)
    return Inputs(images(), images(), gamma, torch.randn(shape[1], generator=generator))


def scratch(x: Tensor, groups: int) -> Tensor:
    images, channels, height, width = x.shape
    return torch.full((kernels.scratch_size(images, height * width, channels, groups),), torch.nan)


def forward(given: Inputs, groups: int, activation: str = "silu") -> tuple[Tensor, Tensor]:
    out, statistics = torch.empty_like(given.x), torch.full((len(given.x), groups, 2), torch.nan)
    number = op.ACTIVATIONS.index(activation)
    arrays = (given.x, given.gamma, given.beta, statistics, out, scratch(given.x, groups))
    kernels.forward(*arrays, groups, EPSILON, number)
    return out, statistics


def backward(
    given: Inputs,
    statistics: Tensor,
    groups: int,
    activation: str = "silu",
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    out = torch.empty_like(given.x) if out is None else out
    arrays = (given.gradient, given.x, given.gamma, given.beta, statistics, out, scratch(given.x, groups))
    kernels.backward(*arrays, groups, op.ACTIVATIONS.index(activation), residual)
    return out


def truth(given: Inputs, groups: int, activation: str = "silu") -> tuple[Tensor, Tensor]:
    """The result and its gradient in x, by float64 autograd."""
    x = given.x.double().requires_grad_()
    out, _ = op.reference(x, given.gamma.double(), given.beta.double(), groups, EPSILON, activation)
    return out.detach(), torch.autograd.grad(out, x, given.gradient.double())[0]


def check(relative_rms, given: Inputs, groups: int, activation: str = "silu") -> None:
    true_out, true_gradient = truth(given, groups, activation)
    out, statistics = forward(given, groups, activation)
    dx = backward(given, statistics, groups, activation)
    assert relative_rms(out, true_out) < TOLERANCE[out.dtype]
    assert relative_rms(dx, true_gradient) < GRADIENT_TOLERANCE[out.dtype]


@every_dtype
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=lambda value: str(value).replace(", ", "x"))
def test_agrees_with_float64(relative_rms, shape: tuple[int, ...], groups: int, dtype: torch.dtype) -> None:
    check(relative_rms, inputs(shape, dtype), groups)


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_other_activations(relative_rms, activation: str) -> None:
    check(relative_rms, inputs((2, 24, 7, 5)), 4, activation)


def test_several_tiles_for_each_program(relative_rms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "TILE", 64)
    monkeypatch.setattr(kernels, "CHANNELS", 8)
    monkeypatch.setattr(kernels, "MOST_SPLITS", 4)
    check(relative_rms, inputs((2, 20, 13, 11)), 5)


@every_dtype
def test_a_residual_is_added(relative_rms, dtype: torch.dtype) -> None:
    given, groups = inputs((2, 16, 5, 7), dtype), 4
    residual = inputs((2, 16, 5, 7), dtype).x.flip(0).contiguous(memory_format=torch.channels_last)
    _, statistics = forward(given, groups)
    expected = truth(given, groups)[1] + residual.double()
    assert relative_rms(backward(given, statistics, groups, residual=residual), expected) < TOLERANCE[dtype]


def test_results_may_be_inputs() -> None:
    given, groups = inputs((2, 16, 5, 7)), 4
    out, statistics = forward(given, groups)
    residual = given.x.clone()
    dx = backward(given, statistics, groups, residual=residual)
    assert torch.equal(backward(given, statistics, groups, residual=residual, out=residual), dx)
    gradient = given.gradient.clone()
    overwritten = given._replace(gradient=gradient)
    assert torch.equal(backward(overwritten, statistics, groups, residual=given.x, out=gradient), dx)
    kernels.forward(
        *(given.x, given.gamma, given.beta, statistics, given.x, scratch(given.x, groups)), groups, EPSILON, 2
    )
    assert torch.equal(given.x, out)


def test_an_image_alone_has_its_bits_in_a_batch() -> None:
    given, groups = inputs((3, 24, 11, 13)), 4
    out, statistics = forward(given, groups)
    dx = backward(given, statistics, groups)
    for i in range(3):
        alone = given._replace(x=given.x[i : i + 1], gradient=given.gradient[i : i + 1])
        one, own = forward(alone, groups)
        assert torch.equal(one, out[i : i + 1])
        assert torch.equal(own, statistics[i : i + 1])
        assert torch.equal(backward(alone, own, groups), dx[i : i + 1])


def test_a_mean_far_above_the_deviation_does_no_harm() -> None:
    given = inputs((1, 16, 50, 60))
    given = given._replace(x=given.x + 3000)
    _, statistics = forward(given, 4)
    _, exact = op.reference(given.x.double(), given.gamma, given.beta, 4, EPSILON, "silu")
    torch.testing.assert_close(statistics.double(), exact, rtol=1e-6, atol=0)


def test_a_constant_image_is_beta() -> None:
    given = inputs((1, 4, 45, 50))
    given = given._replace(x=torch.full_like(given.x, 7.25))
    out, statistics = forward(given, 2, "none")
    assert torch.equal(out, given.beta[:, None, None].expand(out.shape))
    assert torch.equal(statistics[..., 0], torch.full((1, 2), 7.25))


@pytest.mark.parametrize("place", [(0, 5, 0, 0), (0, 5, 1, 1)], ids=["first pixel", "another"])
def test_nan_stays_in_its_group(place: tuple[int, ...]) -> None:
    given = inputs((1, 8, 3, 3))
    given.x[place] = torch.nan
    out, statistics = forward(given, 2, "relu")
    dx = backward(given, statistics, 2, "relu")
    for result in (out, dx):
        assert result[:, :4].isfinite().all()
        assert result[:, 4:].isnan().all()


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)], ids=["no images", "no pixels"])
def test_nothing_in_nothing_out(shape: tuple[int, ...]) -> None:
    given = inputs(shape)
    out, statistics = forward(given, 2)
    assert backward(given, statistics, 2).shape == out.shape == shape


@every_dtype
@pytest.mark.parametrize("keep", [False, True], ids=["norm alone", "sum too"])
@pytest.mark.parametrize("parts", ["", "bias", "addend", "bias addend"])
def test_the_op_takes_sums_in(
    relative_rms, dtype: torch.dtype, parts: str, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The op, from its checks through the kernels to autograd, on tensors that it takes for a GPU's."""
    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)
    given, groups = inputs((2, 40, 7, 9), dtype), 8
    bias = torch.randn(40, generator=torch.Generator().manual_seed(1)) if "bias" in parts else None
    addend = inputs((2, 40, 7, 9), dtype).x.flip(0) if "addend" in parts else None
    upstream = inputs((2, 40, 7, 9), dtype).gradient.flip(1).contiguous(memory_format=torch.channels_last)

    def run(kind: torch.dtype) -> list[Tensor]:
        x = given.x.to(kind).requires_grad_()
        other = None if addend is None else addend.to(kind).requires_grad_()
        shift = None if bias is None else bias.to(torch.float64 if kind == torch.float64 else torch.float32)
        total, y = group_norm(
            *(x, given.gamma, given.beta),
            **{"groups": groups, "epsilon": EPSILON, "activation": "silu", "bias": shift, "addend": other},
            keep=keep,
        )
        assert (total is None) != keep
        if total is not None:
            whole = x if other is None else x + other + (0 if shift is None else shift[:, None, None])
            assert relative_rms(total, whole.double()) < (1e-12 if kind == torch.float64 else GRADIENT_TOLERANCE[kind])
        results, gradients = [y], [given.gradient.to(kind)]
        if total is not None:
            results, gradients = [y, total], [*gradients, upstream.to(kind)]
        leaves = [x] if other is None else [x, other]
        return [one.detach() for one in results] + list(torch.autograd.grad(results, leaves, gradients))

    # A sum in half precision is rounded before it is normalised, the true one is not.
    limit = 5 * GRADIENT_TOLERANCE[dtype]
    for made, true in zip(run(dtype), run(torch.float64), strict=True):
        assert made.dtype == dtype
        assert relative_rms(made, true) < limit


def test_a_sum_is_the_same_bits_for_an_image_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)
    given = inputs((3, 24, 11, 13))
    named = {"groups": 4, "epsilon": EPSILON, "activation": "silu", "bias": given.beta}
    together = group_norm(given.x, given.gamma, given.beta, addend=given.gradient, **named)
    alone = group_norm(given.x[1:2], given.gamma, given.beta, addend=given.gradient[1:2], **named)
    assert all(torch.equal(one[0], other[1]) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"groups": 7}, "groups=7 does not divide 40 channels"),
        ({"epsilon": -1.0}, "epsilon=-1.0"),
        ({"activation": "gelu"}, "activation='gelu'"),
        ({"bias": torch.zeros(3)}, r"bias is torch.float32 \[3\]: give float32 \[40\]"),
        ({"addend": torch.zeros(1, 40, 2, 2)}, r"addend is \[1, 40, 2, 2\]"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, object], message: str) -> None:
    given = inputs((2, 40, 3, 3))
    with pytest.raises(ShadeFastError, match=message):
        group_norm(given.x, given.gamma, given.beta, **({"groups": 8, "epsilon": EPSILON} | changed))  # type: ignore[arg-type]
