"""Group normalisation: every instruction set against plain torch in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shade_fast.ops import group_norm, native
from shade_fast.ops.epilogue import Epilogue
from shade_fast.terms.errors import ShadeFastError

pytestmark = pytest.mark.skipif(not native.cpu_available(), reason="shade_fast._cpu is not built")

EPSILON = 1e-5
GROUPS = {1: [1], 3: [1, 3], 5: [1], 16: [2, 4], 17: [17], 31: [1], 33: [3], 64: [1, 32], 100: [10]}
LARGE = (1, 32, 363, 363)  # results of 16 MiB go past the caches
every_activation = pytest.mark.parametrize("activation", group_norm.ACTIVATIONS)


def factors(layers, channels: int) -> tuple[Tensor, Tensor]:
    return 1 + 0.5 * layers.normal(channels), layers.normal(channels)


def forward(layers, x, gamma, beta, groups, activation, threads=2) -> tuple[Tensor, Tensor]:
    out, statistics = layers.poisoned(x.shape), torch.full(group_norm.statistics_shape(x.shape, groups), torch.nan)
    scratch = torch.full((group_norm.scratch_size(x.shape, groups, threads),), torch.nan)
    layers.run(group_norm.bind(x, gamma, beta, statistics, out, groups, EPSILON, activation, scratch, threads))
    return out, statistics


def check_forward(layers, x, groups, activation) -> None:
    gamma, beta = factors(layers, x.shape[1])
    out, statistics = layers.same_on_any_threads(
        lambda threads: forward(layers, x, gamma, beta, groups, activation, threads)
    )
    exact = group_norm.reference(x.double(), gamma.double(), beta.double(), groups, EPSILON, activation)
    # One rounding of the mean, of the deviation and of each step after them.
    torch.testing.assert_close(statistics.double(), exact[1], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(out.double(), exact[0], rtol=2e-6, atol=2e-6)


def check_gradient(layers, x, groups, activation, parts) -> None:
    gamma, beta = factors(layers, x.shape[1])
    gradient = layers.images(x.shape)
    _, statistics = group_norm.reference(x.double(), gamma.double(), beta.double(), groups, EPSILON, activation)
    rounded = statistics.float()
    expected = group_norm.reference_gradient(
        gradient.double(), x.double(), gamma.double(), beta.double(), rounded.double(), groups, activation, Epilogue()
    )

    def bind(out: Tensor, epilogue: Epilogue, threads: int):
        scratch = torch.full((group_norm.scratch_size(x.shape, groups, threads),), torch.nan)
        return group_norm.bind_gradient(
            gradient, x, gamma, beta, rounded, out, groups, activation, epilogue, scratch, threads
        )

    # Three terms that nearly cancel where a group has few values.
    layers.check_with_epilogue(bind, expected, parts, tolerance=3e-6)


@every_activation
def test_forward(shape, activation, layers) -> None:
    for groups in GROUPS[shape[1]]:
        check_forward(layers, layers.images(shape), groups, activation)


@every_activation
def test_gradient(shape, activation, parts, layers) -> None:
    check_gradient(layers, layers.images(shape), GROUPS[shape[1]][-1], activation, parts)


def test_large_results(layers) -> None:
    x = layers.images(LARGE)
    check_forward(layers, x, 8, "silu")
    for parts in ("", "in place", "gate"):
        check_gradient(layers, x, 8, "silu", parts)


@every_activation
def test_the_reference_gradient_is_autograds(activation) -> None:
    generator = torch.Generator().manual_seed(0)
    x, gradient = torch.randn(2, 2, 6, 3, 4, dtype=torch.float64, generator=generator)
    gamma, beta = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    x.requires_grad_()
    out, statistics = group_norm.reference(x, gamma, beta, 3, EPSILON, activation)
    (expected,) = torch.autograd.grad(out, x, gradient)
    result = group_norm.reference_gradient(
        gradient, x.detach(), gamma, beta, statistics.detach(), 3, activation, Epilogue()
    )
    torch.testing.assert_close(result, expected)


def test_a_mean_far_above_the_deviation_does_no_harm(layers) -> None:
    x = layers.images((1, 16, 50, 60)) + 3000
    _, statistics = forward(layers, x, torch.ones(16), torch.zeros(16), 4, "none")
    _, exact = group_norm.reference(x.double(), torch.ones(16).double(), torch.zeros(16).double(), 4, EPSILON, "none")
    torch.testing.assert_close(statistics.double(), exact, rtol=1e-6, atol=0)


def test_an_image_alone_has_its_bits_in_a_batch(layers) -> None:
    x, gradient = layers.images((3, 24, 31, 45)), layers.images((3, 24, 31, 45))
    gamma, beta = factors(layers, 24)

    def both(x: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
        out, statistics = forward(layers, x, gamma, beta, 4, "silu")
        dx = layers.poisoned(x.shape)
        scratch = torch.full((group_norm.scratch_size(x.shape, 4, 2),), torch.nan)
        layers.run(
            group_norm.bind_gradient(gradient, x, gamma, beta, statistics, dx, 4, "silu", Epilogue(), scratch, 2)
        )
        return out, statistics, dx

    together = both(x, gradient)
    for i in range(3):
        for alone, batch in zip(both(x[i : i + 1], gradient[i : i + 1]), together, strict=True):
            assert torch.equal(alone, batch[i : i + 1])


def test_a_constant_image_is_beta(layers) -> None:
    x = layers.channels_last(torch.full((1, 4, 5, 5), 7.25))
    out, statistics = forward(layers, x, torch.ones(4), torch.arange(4.0), 2, "none")
    assert torch.equal(out, torch.arange(4.0)[:, None, None].expand(1, 4, 5, 5))
    assert torch.equal(statistics[..., 0], torch.full((1, 2), 7.25))


def test_nan_stays_in_its_group(layers) -> None:
    x = layers.images((1, 8, 3, 3))
    x[0, 5, 1, 1] = torch.nan
    out, _ = forward(layers, x, torch.ones(8), torch.zeros(8), 2, "relu")
    assert out[:, :4].isfinite().all() and out[:, 4:].isnan().all()


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros(1, 6, 4, 5).contiguous(memory_format=torch.channels_last)
    gamma, statistics, scratch = torch.zeros(6), torch.zeros(1, 3, 2), torch.zeros(10_000)

    def bind(groups=3, gamma=gamma, statistics=statistics, epsilon=1e-6, activation="none", scratch=scratch):
        group_norm.bind(x, gamma, gamma, statistics, x, groups, epsilon, activation, scratch, 1)

    bind()
    with pytest.raises(ShadeFastError, match="groups=4 does not divide 6"):
        bind(groups=4)
    with pytest.raises(ShadeFastError, match="gamma is"):
        bind(gamma=torch.zeros(5))
    with pytest.raises(ShadeFastError, match="statistics is"):
        bind(statistics=torch.zeros(1, 3))
    with pytest.raises(ShadeFastError, match="epsilon=-1"):
        bind(epsilon=-1)
    with pytest.raises(ShadeFastError, match="activation='gelu'"):
        bind(activation="gelu")
    with pytest.raises(ShadeFastError, match="scratch is"):
        bind(scratch=torch.zeros(3))
