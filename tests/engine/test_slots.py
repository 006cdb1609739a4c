"""Images that enter and leave while others go on: each one's result is what it has alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from shade_fast import Budget
from shade_fast.engine import Optimized, Problem, Slots, Stopping, optimize
from shade_fast.engine.step import Recipe
from shade_fast.runtime import freeze
from shade_fast.terms.errors import ShadeFastError

MakeProblem = Callable[..., Problem]
BUDGET, STEPS = Budget(linf=0.05, lpips=0.1), 10


@pytest.fixture
def problem(make_problem: MakeProblem) -> Problem:
    """Four images under networks whose results for an image are the same bits in any place of a batch."""
    return frozen(make_problem(4, 32, 40), "native")


def frozen(problem: Problem, backend: str) -> Problem:
    def freeze_for(module: torch.nn.Module) -> torch.nn.Module:
        return freeze(module, backend, accuracy="exact")

    encoders = [encoder.frozen(freeze_for) for encoder in problem.encoders]
    perceptual = None if problem.perceptual is None else problem.perceptual.frozen(freeze_for)
    return Problem(problem.clean, problem.plan, encoders, problem.anchor_latents, perceptual, backend)


def single(problem: Problem, index: int) -> Problem:
    chosen = slice(index, index + 1)
    latents = [latents[chosen] for latents in problem.anchor_latents]
    return Problem(problem.clean[chosen], problem.plan, problem.encoders, latents, problem.perceptual, problem.backend)


def leaving_at_different_steps(problem: Problem) -> Stopping:
    """A target that some reach early, some late and one perhaps not."""
    whole = optimize(problem, "momentum", BUDGET, STEPS)
    return Stopping(ratio=1.001 * float((whole.history[4] / problem.start).median()))


def test_each_images_result_is_what_it_has_alone(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    stopping = leaving_at_different_steps(problem)
    slots = Slots(2)
    plays = count_plays(monkeypatch)
    result = slots.run(problem, Recipe(BUDGET, STEPS, stopping))
    together = len(plays)
    assert len(set(result.steps.tolist())) > 1
    for index in range(4):
        alone = slots.run(single(problem, index), Recipe(BUDGET, STEPS, stopping))
        assert int(alone.steps) == int(result.steps[index])
        assert torch.equal(alone.delta[0], result.delta[index])
        taken = int(alone.steps)
        assert torch.equal(alone.history[:taken, 0], result.history[:taken, index])
    # A slot is never empty while an image waits: in turns, four images share two slots.
    assert together == shared_plays([min(int(steps) + 1, STEPS) for steps in result.steps], 2)
    assert together < len(plays) - together


def shared_plays(plays: list[int], slots: int) -> int:
    """How many plays as many slots take when each takes the next image as soon as it is free."""
    ends = [0] * slots
    for length in plays:
        place = ends.index(min(ends))
        ends[place] += length
    return max(ends)


def count_plays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each play of a recorded step."""
    plays: list[int] = []

    def counted(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        def play() -> None:
            plays.append(1)
            run()

        return play

    monkeypatch.setattr("shade_fast.engine.slots.captured", counted)
    return plays


def test_slots_give_what_a_batch_gives_under_networks_frozen_for_a_gpu(make_problem: MakeProblem) -> None:
    problem = frozen(make_problem(4, 32, 40), "cuda")
    by_slots, by_batch = (optimize(problem, "momentum", BUDGET, 6, slots=slots) for slots in (Slots(2), None))
    assert by_slots.steps.tolist() == by_batch.steps.tolist() == [6] * 4
    # Products of other batch sizes round otherwise, and the sign of what is near 0 may turn.
    assert float(((by_slots.delta - by_batch.delta).abs() > 1e-6).float().mean()) < 1e-3


def test_a_bucket_is_recorded_once_and_its_tensors_stay(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[object] = []

    def record(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        recorded.append(run)
        return run

    monkeypatch.setattr("shade_fast.engine.slots.captured", record)
    slots = Slots(2)

    def run(budget: Budget = BUDGET) -> Optimized:
        return slots.run(problem, Recipe(budget, 3))

    first = run()
    (step,) = recorded
    tensors = (step.delta, step.history, step.problem.clean, *step.problem.anchor_latents)  # type: ignore[attr-defined]
    addresses = [tensor.data_ptr() for tensor in tensors]
    assert torch.equal(run().delta, first.delta)
    assert len(recorded) == 1
    assert [tensor.data_ptr() for tensor in tensors] == addresses
    run(Budget(linf=0.02, lpips=0.1))
    assert len(recorded) == 2


def test_a_step_that_cannot_be_recorded_runs_as_it_is(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        raise ShadeFastError("the step cannot be recorded: item makes the host wait for a value")

    right = Slots(2).run(problem, Recipe(BUDGET, 3))
    monkeypatch.setattr("shade_fast.engine.slots.captured", refuse)
    slots = Slots(2)
    assert torch.equal(slots.run(problem, Recipe(BUDGET, 3)).delta, right.delta)
    assert torch.equal(slots.run(problem, Recipe(BUDGET, 3)).delta, right.delta)
    assert [record.message for record in caplog.records if "recorded" in record.message] == [
        "the step cannot be recorded: item makes the host wait for a value; each of its launches is the host's now, "
        "which is slower"
    ]


def test_a_start_goes_with_its_image(problem: Problem) -> None:
    start = torch.rand(problem.clean.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    result = Slots(2).run(problem, Recipe(BUDGET, 2), start)
    for index in range(4):
        alone = Slots(2).run(single(problem, index), Recipe(BUDGET, 2), start[index : index + 1])
        assert torch.equal(alone.delta[0], result.delta[index])
