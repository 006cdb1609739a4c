from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from shade_fast import Budget
from shade_fast.engine import Problem, project

MakeProblem = Callable[..., Problem]


def noise(problem: Problem, size: float) -> torch.Tensor:
    return size * torch.randn(problem.clean.shape, generator=torch.Generator().manual_seed(5)).sign()


def test_a_perturbation_inside_the_budget_is_only_rounded(make_problem: MakeProblem) -> None:
    problem = make_problem(2, 48, 48)
    projected = project(problem, noise(problem, 2 / 255), Budget(lpips=0.5))
    torch.testing.assert_close(projected.scale, torch.ones(2))
    change = projected.pixels.int() - problem.clean.int()
    assert int(change.abs().max()) == 2
    assert bool(projected.held.all())


@pytest.mark.parametrize("levels", [1, 5, 16])
def test_linf_holds_in_whole_levels(levels: int, make_problem: MakeProblem) -> None:
    problem = make_problem(1, 48, 56, lpips=False)
    projected = project(problem, noise(problem, 0.2), Budget(linf=levels / 255, lpips=None))
    assert projected.levels.tolist() == [levels]
    assert int((projected.pixels.int() - problem.clean.int()).abs().max()) == levels


def test_lpips_holds_on_the_rounded_pixels_and_is_used_up_image_by_image(make_problem: MakeProblem) -> None:
    problem, bound = make_problem(3, 64, 64), 0.005
    delta = 0.06 * torch.randn(problem.clean.shape) * torch.tensor([1.2, 1.0, 0.01])[:, None, None, None]
    projected = project(problem, delta, Budget(linf=32 / 255, lpips=bound))
    distances, lpips = problem.measure(projected.pixels)
    distance = problem.objective(distances)
    assert lpips is not None
    assert bool((lpips <= bound).all())
    used_up = projected.scale < 1
    assert used_up.tolist() == [True, True, False]
    assert bool((lpips[used_up] > 0.9 * bound).all())
    torch.testing.assert_close(projected.lpips, lpips)
    torch.testing.assert_close(projected.distance, distance)


def test_an_images_projection_does_not_depend_on_its_neighbours(make_problem: MakeProblem) -> None:
    problem = make_problem(3, 64, 64)
    delta = noise(problem, 20 / 255)
    together = project(problem, delta, Budget(lpips=0.02))
    for index in range(3):
        part = slice(index, index + 1)
        alone = Problem(
            problem.clean[part], problem.plan, problem.encoders, [problem.anchor_latents[0][part]], problem.perceptual
        )
        pixels = project(alone, delta[part], Budget(lpips=0.02)).pixels
        assert float((pixels == together.pixels[part]).float().mean()) >= 0.999


def test_figures_are_those_of_what_the_codec_makes_of_the_pixels(make_problem: MakeProblem) -> None:
    def coarse(pixels: torch.Tensor) -> torch.Tensor:
        return (pixels // 4 * 4).to(torch.uint8)

    problem = make_problem(2, 64, 64)
    projected = project(problem, noise(problem, 12 / 255), Budget(linf=10 / 255), [coarse, None])
    assert torch.equal(projected.pixels[0], coarse(projected.stored[0]))
    assert torch.equal(projected.pixels[1], projected.stored[1])
    assert bool(projected.held.all())
    assert int((projected.pixels.int() - problem.clean.int()).abs().max()) <= 10


def test_a_codec_that_breaks_the_budget_by_itself_is_said(make_problem: MakeProblem) -> None:
    problem = make_problem(1, 48, 48)
    projected = project(problem, noise(problem, 4 / 255), Budget(linf=4 / 255), [lambda p: (p // 32 * 32).to(p.dtype)])
    assert projected.held.tolist() == [False]
    assert int(projected.levels[0]) > 4
