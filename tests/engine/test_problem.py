from __future__ import annotations

from collections.abc import Callable

import torch

from shade_fast.engine import Problem

MakeProblem = Callable[..., Problem]


def test_objective_is_the_latent_distance_through_the_view(make_problem: MakeProblem) -> None:
    problem = make_problem(2, 70, 50, size=40)
    view = problem.plan.apply(problem.clean / 255)
    latents = problem.encoders[0].encode(view)
    torch.testing.assert_close(problem.start, (latents - problem.anchor_latents[0]).flatten(1).norm(dim=1))
    distances, lpips = problem.measure(problem.clean)
    torch.testing.assert_close(distances, [problem.start])
    assert lpips is not None
    assert float(lpips.abs().max()) < 1e-6


def test_objective_of_an_ensemble_is_the_mean_of_each_distance_over_its_start(make_problem: MakeProblem) -> None:
    problem = make_problem(2, 48, 48, encoders=2, lpips=False)
    torch.testing.assert_close(problem.start, torch.ones(2))
    brighter = (problem.clean.int() + 9).clamp(0, 255).to(torch.uint8)
    singles = []
    for encoder, anchor in zip(problem.encoders, problem.anchor_latents, strict=True):
        single = Problem(problem.clean, problem.plan, [encoder], [anchor], None)
        singles.append(single.measure(brighter)[0][0] / single.start)
    measured = problem.objective(problem.measure(brighter)[0])
    torch.testing.assert_close(measured, torch.stack(singles).mean(dim=0))
    parts = (problem.clean, problem.plan, problem.encoders, problem.anchor_latents, None)
    weighted = Problem(*parts, weights=[3, 1])
    torch.testing.assert_close(weighted.start, torch.ones(2))
    torch.testing.assert_close(weighted.objective(weighted.measure(brighter)[0]), 0.75 * singles[0] + 0.25 * singles[1])


def test_an_ensembles_gradients_have_their_weights_whatever_their_magnitude(make_problem: MakeProblem) -> None:
    problem = make_problem(2, 48, 48, encoders=2, lpips=False)
    parts = (problem.clean, problem.plan, problem.encoders, problem.anchor_latents, None)
    delta = 0.02 * torch.randn(problem.clean.shape, generator=torch.Generator().manual_seed(3))
    weighted, _ = Problem(*parts, weights=[3, 1]).gradient(delta)
    expected = torch.zeros_like(weighted)
    for weight, encoder, anchor in zip((0.75, 0.25), problem.encoders, problem.anchor_latents, strict=True):
        single = Problem(problem.clean, problem.plan, [encoder], [anchor], None)
        gradient, distance = single.gradient(delta)
        expected += (weight * single.start / distance)[:, None, None, None] * gradient
    expected /= expected.abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(weighted, expected)


def test_gradient_is_each_terms_over_its_mean_led_back_through_the_view(make_problem: MakeProblem) -> None:
    problem = make_problem(2, 90, 70, size=48)
    delta = 0.05 * torch.randn(problem.clean.shape, generator=torch.Generator().manual_seed(3))
    weights, met = torch.tensor([0.5, 2.0]), []

    def weigh(lpips: torch.Tensor) -> torch.Tensor:
        met.append(lpips)
        return weights

    gradient, distance = problem.gradient(delta, weigh)

    images = (problem.clean / 255 + delta).requires_grad_(True)
    view = problem.plan.apply(images)
    terms = []
    for value in (problem.distance(view), problem.lpips(view)):
        assert value is not None
        (term,) = torch.autograd.grad(value.sum(), view, retain_graph=True)
        terms.append(term / term.abs().mean(dim=(1, 2, 3), keepdim=True))
    (expected,) = torch.autograd.grad(view, images, terms[0] + weights[:, None, None, None] * terms[1])
    assert float((gradient - expected).norm() / expected.norm()) < 1e-4
    torch.testing.assert_close(distance, problem.distance(view).detach())
    torch.testing.assert_close(met, [problem.lpips(view).detach()])


def test_gradient_at_the_clean_image_is_finite_though_lpips_has_none_there(make_problem: MakeProblem) -> None:
    problem = make_problem(1, 48, 48)
    gradient, _ = problem.gradient(torch.zeros(1, 3, 48, 48), torch.ones_like)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().sum()) > 0
