"""What a recorded step may not do, on tensors without values: each planted, and seen."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from shade_fast import Budget
from shade_fast.encoders import Encoder
from shade_fast.engine import Problem, Stopping
from shade_fast.engine.capture import captured, complaints, is_out_of_memory
from shade_fast.engine.step import Recipe, Step
from shade_fast.perceptual import Perceptual
from shade_fast.runtime import freeze
from shade_fast.terms.errors import ShadeFastError
from shade_fast.views import View

META = torch.device("meta")


def make_step(encoder: Encoder, perceptual: Perceptual, plant: Callable[[Tensor, Tensor], Any] | None = None) -> Step:
    """The whole step of two images at half their size, on the meta device, with something planted in its middle."""

    def freeze_for_gpu(module: torch.nn.Module) -> torch.nn.Module:
        return freeze(module, "cuda")

    encoders = [encoder.to(META).frozen(freeze_for_gpu)] * 2
    lpips = copy.deepcopy(perceptual).to(META).frozen(freeze_for_gpu)
    clean = torch.zeros(2, 3, 96, 80, dtype=torch.uint8, device=META)
    plan = View(40).plan(96, 80, encoder.factor)
    latents = [torch.empty(2, encoder.channels, plan.crop[0] // 8, plan.crop[1] // 8, device=META)] * 2
    problem = Problem(clean, plan, encoders, latents, lpips, "cuda")
    if plant is not None:
        gradient = problem.gradient

        def planted(*arguments: Any) -> tuple[Tensor, Tensor]:
            result = gradient(*arguments)
            plant(*result)
            return result

        problem.gradient = planted  # type: ignore[method-assign]
    return Step(problem, Recipe(Budget(), 10, Stopping(ratio=0.5, patience=3)))


def test_the_step_can_be_recorded(encoder: Encoder, perceptual: Perceptual) -> None:
    assert complaints(make_step(encoder, perceptual), META) == []


kept: list[Tensor] = []
calls: list[int] = []


def every_other_time(gradient: Tensor, _: Tensor) -> None:
    calls.append(1)
    if len(calls) % 2:
        gradient.neg()


PLANTS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    ".item()": (lambda gradient, distance: distance.sum().item(), "_local_scalar_dense makes the host wait"),
    "a branch": (lambda gradient, distance: gradient if distance.max() > 1 else distance, "makes the host wait"),
    ".tolist()": (lambda gradient, distance: distance.tolist(), "to cpu|makes the host wait|fails"),
    "a boolean index": (lambda gradient, distance: gradient[distance > 1], "index by a mask"),
    "an assignment by a mask": (
        lambda gradient, distance: gradient.__setitem__(distance > 1, distance.sum()),
        "index_put_ by a mask",
    ),
    "nonzero": (lambda gradient, distance: torch.nonzero(distance), "nonzero gives a tensor whose size depends"),
    ".cpu()": (lambda gradient, distance: gradient.cpu(), "_to_copy moves a tensor from meta to cpu"),
    "a copy from the host": (
        lambda gradient, distance: distance.copy_(torch.zeros(2)),
        "copy_ moves a tensor from cpu to meta",
    ),
    "a tensor of the host's numbers": (
        lambda gradient, distance: distance + torch.tensor([1.0, 2.0], device=META),
        "tensor makes a tensor of the host's values",
    ),
    "a tensor that stays": (lambda gradient, distance: kept.append(gradient * 2), "mul leaves a new tensor behind"),
    "something else each time": (every_other_time, "a second run does something else than the first"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_what_cannot_be_recorded_is_seen(name: str, encoder: Encoder, perceptual: Perceptual) -> None:
    plant, message = PLANTS[name]
    kept.clear()
    problems = complaints(make_step(encoder, perceptual, plant), META)
    assert problems
    assert re.search(message, "; ".join(problems)), problems


class Graph:
    """CUDA's graphs as torch hands them out, on a machine that has none."""

    def __init__(self) -> None:
        self.streams: list[object] = []

    def replay(self) -> None:
        pass

    def reset(self) -> None:
        events.append(("reset", self.streams[0]))


class Stream:
    def wait_stream(self, other: Stream) -> None:
        pass


events: list[tuple[str, object]] = []


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device on which a recording can be made, and what is asked of torch for it goes into `events`."""
    current = [Stream()]

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        current.append(stream)
        try:
            yield
        finally:
            current.pop()

    @contextlib.contextmanager
    def graph(graph: Graph, pool: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert (pool, capture_error_mode) == ("pool", "thread_local")
        graph.streams.append(stream)
        events.append(("record", stream))
        yield

    events.clear()
    monkeypatch.setattr("shade_fast.engine.capture._streams", {})
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    return torch.device("cuda:1")


def test_each_recording_has_a_stream_of_its_own_while_it_is_there(cuda: torch.device) -> None:
    """Libraries keep memory by the stream, and let it go with the graph that was recorded there."""
    tensor = torch.zeros(3)

    def run() -> None:
        events.append(("run", torch.cuda.current_stream()))
        tensor.add_(1)

    first, second = captured(run, cuda), captured(run, cuda)
    recorded = [stream for name, stream in events if name == "record"]
    assert len(set(recorded)) == 2
    for stream in recorded:
        place = events.index(("record", stream))
        assert events[place - 2 : place + 2] == [("run", stream)] * 2 + [("record", stream), ("run", stream)]
    del first
    assert events[-1] == ("reset", recorded[0])
    third = captured(run, cuda)
    assert [stream for name, stream in events if name == "record"] == [*recorded, recorded[0]]
    third()
    second()


def test_a_recording_keeps_what_it_reads(cuda: torch.device) -> None:
    holder = [torch.ones(3)]
    storage = StorageWeakRef(holder[0].untyped_storage())
    out = torch.zeros(3)

    def run() -> None:
        out.copy_(holder[0] * 2)

    recording = captured(run, cuda)
    holder.clear()
    assert not storage.expired()
    del recording
    assert storage.expired()


@pytest.mark.parametrize("ended", [True, False])
def test_what_goes_wrong_while_recording_is_reported_and_cleared_away(
    ended: bool, cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ended: whether torch could end the graph, which then has its memory to release."""
    calls: list[int] = []
    given_up: list[object] = []

    def run() -> None:
        calls.append(1)
        if len(calls) > 5:  # in the recording: three runs that are watched, and two more, go before
            raise RuntimeError("operation not permitted when stream is capturing")

    def end(device: int, pool: object) -> None:
        if ended:
            raise RuntimeError("not currently recording to mempool_id")
        given_up.append(pool)

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda device, pool: given_up.append(pool))
    before = torch.cuda.current_stream()
    for _ in range(2):
        calls.clear()
        with pytest.raises(
            ShadeFastError, match=r"the step cannot be recorded \(RuntimeError: operation not permitted"
        ):
            captured(run, cuda)
    assert torch.cuda.current_stream() is before
    assert given_up == ([] if ended else ["pool"] * 4)
    # The second had the stream of the first, which is in nobody's hands.
    assert len({stream for name, stream in events if name == "record"}) == 1


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 bytes"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_say_that_there_is_no_memory(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one
    try:
        try:
            raise error
        finally:
            raise RuntimeError("the recording was given up")
    except RuntimeError as other:
        assert is_out_of_memory(other) is is_one
        assert not is_out_of_memory(other, handled=error)
    try:
        try:
            raise error
        except type(error):
            raise ValueError("something else, once that was dealt with") from None
    except ValueError as other:
        assert not is_out_of_memory(other)


def test_on_the_cpu_a_step_is_called(encoder: Encoder) -> None:
    def run() -> None:
        pass

    assert captured(run, torch.device("cpu")) is run


@pytest.mark.parametrize("times", [0, 1])
def test_out_of_memory_stays_what_it_is(times: int) -> None:
    calls: list[int] = []

    def run() -> None:
        calls.append(0)
        if len(calls) > times:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        complaints(run, META)
