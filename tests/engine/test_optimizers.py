from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from shade_fast import Budget, ShadeFastError
from shade_fast.encoders import Encoder
from shade_fast.engine import OPTIMIZERS, Problem, Stopping, optimize
from shade_fast.engine.lpips_control import LpipsControl
from shade_fast.engine.step import Recipe, Step
from shade_fast.perceptual import Perceptual
from shade_fast.reference import release_loop
from shade_fast.views import View

MakeProblem = Callable[..., Problem]


@pytest.fixture(scope="module")
def flat(encoder: Encoder, perceptual: Perceptual) -> Problem:
    """An image that is flat but for a patch."""
    clean = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    clean[..., 20:40, 20:40] = torch.randint(0, 256, (3, 20, 20), generator=torch.Generator().manual_seed(0))
    anchor = encoder.encode(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    return Problem(clean, View(None).plan(64, 64, 8), [encoder], [anchor], perceptual, "native")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_moves_the_latent_and_reports_its_history(optimizer: str, make_problem: MakeProblem) -> None:
    problem = make_problem(2, 64, 48)
    result = optimize(problem, optimizer, Budget(), 20)
    delta, history = result.delta, result.history
    assert delta.shape == problem.clean.shape
    assert history.shape == (20, 2)
    torch.testing.assert_close(history[0], problem.start)
    assert bool((history[-1] < 0.9 * history[0]).all())
    perturbed = problem.clean / 255 + delta
    assert float(perturbed.min()) >= -1e-6
    assert float(perturbed.max()) <= 1 + 1e-6


@pytest.mark.parametrize("optimizer", ["momentum", "release"])
def test_the_box_is_kept(optimizer: str, make_problem: MakeProblem) -> None:
    delta = optimize(make_problem(1, 48, 64, lpips=False), optimizer, Budget(linf=10 / 255, lpips=None), 12).delta
    assert float(delta.abs().max()) <= 10 / 255 + 1e-7


def test_momentum_keeps_lpips_near_its_bound_where_the_box_alone_would_break_it(make_problem: MakeProblem) -> None:
    problem, bound = make_problem(2, 64, 64), 0.01
    free = optimize(problem, "momentum", Budget(linf=32 / 255, lpips=None), 40).delta
    held = optimize(problem, "momentum", Budget(linf=32 / 255, lpips=bound), 40).delta

    def lpips(delta: torch.Tensor) -> torch.Tensor:
        value = problem.lpips(problem.plan.apply(problem.clean / 255 + delta))
        assert value is not None
        return value

    assert bool((lpips(free) > 2 * bound).all())
    assert bool((lpips(held) < 1.2 * bound).all())


def test_momentum_holds_lpips_on_an_image_that_is_flat_but_for_a_patch(flat: Problem) -> None:
    """On flat areas steps of full length are noise that breaks the bound by itself; they have to get shorter."""
    result = optimize(flat, "momentum", Budget(linf=16 / 255, lpips=0.02), 40)
    delta, history = result.delta, result.history
    lpips = flat.lpips(flat.plan.apply(flat.clean / 255 + delta))
    assert lpips is not None
    assert 0.25 * 0.02 < float(lpips) < 1.2 * 0.02
    assert float(history[-1]) < float(history[0])


def test_the_first_steps_stay_near_the_lpips_bound(flat: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full first step is noise that breaks the bound by far, and the next ones go into the way back."""
    bound = 0.02

    def largest() -> float:
        """The largest LPIPS that the first 18 of 60 steps lead to."""
        step = Step(flat, Recipe(Budget(linf=16 / 255, lpips=bound), 60))
        step.begin(0)
        reached = []
        for _ in range(18):
            step()
            lpips = flat.lpips(flat.plan.apply(flat.clean / 255 + step.delta))
            assert lpips is not None
            reached.append(float(lpips))
        return max(reached)

    assert 0.5 * bound < largest() < 2 * bound
    monkeypatch.setattr(LpipsControl, "FIRST_LENGTH", 1.0)
    assert largest() > 4 * bound


def test_lpips_may_pass_its_bound_while_steps_are_long_and_holds_it_at_the_end() -> None:
    bound, met = 0.05, torch.tensor([0.06])
    control = LpipsControl(bound, 1, torch.device("cpu"))
    early = control(met, torch.tensor([0.9])).clone()
    assert not bool(control.held) and float(control.length) > control.FIRST_LENGTH and float(control.kept) == 1
    control.begin(0)
    late = control(met, torch.tensor([0.0]))
    assert not bool(control.held) and float(control.length) < control.FIRST_LENGTH
    assert float(control.kept) == pytest.approx(0.9) and float(early) < 1 < float(late)


def test_an_image_that_may_stop_early_is_held_to_its_bound_at_every_step(
    flat: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    call = LpipsControl.__call__

    def recorded(self: LpipsControl, lpips: torch.Tensor, left: torch.Tensor | float = 0.0) -> torch.Tensor:
        asked.append(left)
        return call(self, lpips, left)

    monkeypatch.setattr(LpipsControl, "__call__", recorded)
    optimize(flat, "momentum", Budget(linf=16 / 255, lpips=0.02), 4, stopping=Stopping(ratio=0.1))
    assert asked == [0.0] * 4
    optimize(flat, "momentum", Budget(linf=16 / 255, lpips=0.02), 4)
    assert [float(torch.as_tensor(left)) for left in asked[4:]] == [1.0, 0.75, 0.5, 0.25]


def test_momentum_without_a_box_is_bounded_by_lpips_alone(make_problem: MakeProblem) -> None:
    delta = optimize(make_problem(1, 48, 48), "momentum", Budget(linf=None, lpips=0.05), 25).delta
    assert float(delta.abs().max()) > 16 / 255


def test_momentum_runs_alike_on_native_and_reference_kernels(make_problem: MakeProblem) -> None:
    results = [
        optimize(make_problem(1, 64, 48, backend=backend), "momentum", Budget(), 10).delta
        for backend in ("native", "reference")
    ]
    assert float(((results[0] - results[1]).abs() > 1e-6).float().mean()) < 1e-3


def test_release_is_the_reference_loop_through_the_view(make_problem: MakeProblem) -> None:
    problem = make_problem(1, 80, 64, size=40, lpips=False)
    delta = optimize(problem, "release", Budget(linf=0.05, lpips=None), 6).delta
    clean = problem.clean / 255
    perturbed = release_loop(
        lambda images: problem.encoders[0].encode(problem.plan.apply(images)), clean, problem.anchor_latents[0], 0.05, 6
    )
    torch.testing.assert_close(clean + delta, perturbed)


@pytest.mark.parametrize(
    ("optimizer", "budget", "encoders", "named"),
    [
        ("release", Budget(linf=None), 1, "sized by linf"),
        ("paper", Budget(lpips=None), 1, "lpips bound"),
        ("release", Budget(), 2, "one encoder"),
        ("paper", Budget(), 2, "one encoder"),
    ],
)
def test_what_a_published_loop_cannot_do_is_refused(
    optimizer: str, budget: Budget, encoders: int, named: str, make_problem: MakeProblem
) -> None:
    with pytest.raises(ShadeFastError, match=named):
        optimize(make_problem(1, 48, 48, encoders=encoders), optimizer, budget, 2)


def test_an_image_stops_at_its_target_whatever_its_neighbours_do(make_problem: MakeProblem) -> None:
    problem, budget = make_problem(3, 64, 48, lpips=False), Budget(linf=0.05, lpips=None)
    whole = optimize(problem, "momentum", budget, 30)
    ratio = 1.01 * float((whole.history[4] / problem.start).median())
    together = optimize(problem, "momentum", budget, 30, stopping=Stopping(ratio=ratio))
    assert int(together.steps.min()) < int(together.steps.max()) <= 30
    for index in range(3):
        parts = (problem.clean[index : index + 1], problem.plan, problem.encoders)
        alone = Problem(*parts, [latents[index : index + 1] for latents in problem.anchor_latents], None, "native")
        single = optimize(alone, "momentum", budget, 30, stopping=Stopping(ratio=ratio))
        assert int(single.steps) == int(together.steps[index])
        torch.testing.assert_close(single.delta[0], together.delta[index], rtol=0, atol=1e-3)
        if int(single.steps) < 30:
            reached = alone.distance(alone.plan.apply(alone.clean / 255 + single.delta))
            assert float(reached) <= ratio * float(alone.start) * 1.001


def test_an_image_without_progress_stops_and_keeps_its_best(make_problem: MakeProblem) -> None:
    problem, budget = make_problem(2, 48, 48, lpips=False), Budget(linf=2 / 255, lpips=None)
    result = optimize(problem, "momentum", budget, 200, stopping=Stopping(patience=4))
    assert int(result.steps.max()) < 100
    assert len(result.history) <= int(result.steps.max()) + 1
    reached = problem.distance(problem.plan.apply(problem.clean / 255 + result.delta))
    assert bool((reached <= result.history.nan_to_num(nan=torch.inf).min(dim=0).values * 1.002).all())


@pytest.mark.parametrize(("name", "stopping"), [("stop_ratio=0", {"ratio": 0}), ("patience=0", {"patience": 0})])
def test_a_wrong_stop_is_named(name: str, stopping: dict[str, int]) -> None:
    with pytest.raises(ShadeFastError, match=name):
        Stopping(**stopping)  # type: ignore[arg-type]


def test_lpips_is_held_on_flat_images_without_giving_the_shift_away(make_problem: MakeProblem) -> None:
    """Noise of the first steps on a flat image breaks the bound for good, unless the perturbation shrinks again."""
    problem, bound = make_problem(2, 64, 64), 0.003
    result = optimize(problem, "momentum", Budget(linf=32 / 255, lpips=bound), 60)
    lpips = problem.lpips(problem.plan.apply(problem.clean / 255 + result.delta))
    assert lpips is not None
    assert bool((lpips < 1.05 * bound).all())
    assert bool((result.history[-1] < 0.95 * result.history[0]).all())
