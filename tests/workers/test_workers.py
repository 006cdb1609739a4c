"""Workers as they are: processes that are started, killed and left alone, on several CPU devices."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shade_fast import Anchor, Budget, PoisonResult, ShadeFastError, View, poison_batch
from shade_fast.images import DecodedImage
from shade_fast.protect.options import Options
from shade_fast.protect.outcome import Work
from shade_fast.terms.limits import Limits
from shade_fast.workers import Worker, packed
from shade_fast.workers.worker import StalledError
from tests.workers.networks import DEADLY, Deadly, Hanging, Homebound, Slow, Tiny
from tests.workers.processes import is_running, workers_of

THREE = ["cpu", "cpu", "cpu"]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find this folder's encoders, and every process takes its algorithms by rules."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    monkeypatch.setenv("SHADE_FAST_PLAN", "fixed")


@pytest.fixture
def options(draw: Any) -> dict[str, Any]:
    return {
        "target": draw(64, 64, 99),
        "encoder": Tiny(),
        "perceptual": None,
        "budget": Budget(16 / 255, None),
        "view": View(64),
        "steps": 100,
        "target_ratio": 1.0,
    }


def assert_same(result: PoisonResult, expected: PoisonResult) -> None:
    assert len(result) == len(expected)
    for image, other in zip(result, expected, strict=True):
        assert (image.status, image.name, image.error) == (other.status, other.name, other.error)
        assert np.array_equal(image.image, other.image)  # type: ignore[arg-type]
        for figure in ("linf", "distance_before", "distance_after", "history", "steps"):
            assert getattr(image, figure) == getattr(other, figure)


def test_forty_images_over_three_workers_one_of_which_is_killed(options: dict[str, Any], draw: Any) -> None:
    images = [draw(64 + 8 * (index % 3), 72, index) for index in range(40)]
    expected = poison_batch(images, **options, devices="cpu")
    assert [image.status for image in expected] == ["ok"] * 40
    killed: list[int] = []

    def progress(done: int, total: int) -> None:
        if done >= total // 2 and not killed:
            workers = workers_of(os.getpid())
            assert len(workers) == 3
            os.kill(workers[1], signal.SIGKILL)
            killed.append(workers[1])

    result = poison_batch(images, **options, devices=THREE, progress=progress)
    assert killed
    assert_same(result, expected)
    assert (result.device, result.backend) == ("cpu, cpu, cpu", expected.backend)
    assert workers_of(os.getpid()) == []
    assert not is_running(killed[0])


def test_an_image_that_kills_its_process_fails_and_the_others_go_on(options: dict[str, Any], draw: Any) -> None:
    images = [draw(64, 64, index) for index in range(5)]
    images.insert(2, np.full((64, 64, 3), DEADLY, np.uint8))
    options |= {"encoder": Deadly(), "backend": "reference", "steps": 5}
    result = poison_batch(images, **options, devices="cpu,cpu")
    assert [image.status for image in result] == ["ok", "ok", "failed", "ok", "ok", "ok"]
    assert "2 worker processes died over this image, the last on cpu" in str(result[2].error)
    assert "SIGKILL" in str(result[2].error)


def test_an_image_that_its_process_hangs_over_fails_and_the_others_go_on(
    options: dict[str, Any], draw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    images = [draw(64, 64, index) for index in range(5)]
    images.insert(2, np.full((64, 64, 3), DEADLY, np.uint8))
    options |= {"encoder": Hanging(), "backend": "reference", "steps": 5, "limits": Limits(stall_seconds=2)}
    result = poison_batch(images, **options, devices="cpu,cpu")
    assert [image.status for image in result] == ["ok", "ok", "failed", "ok", "ok", "ok"]
    assert "2 worker processes died over this image" in str(result[2].error)
    assert "no step for 2 s; it counts as hung" in str(result[2].error)
    assert "no step for 2 s; it counts as hung" in caplog.text
    assert workers_of(os.getpid()) == []


def test_a_worker_that_is_slow_but_takes_its_steps_is_left_alone(
    options: dict[str, Any], draw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    options |= {"encoder": Slow(), "backend": "reference", "steps": 5, "limits": Limits(stall_seconds=2)}
    (image,) = poison_batch([draw(64, 64, 1)], **options, devices="cpu,cpu")
    assert (image.status, image.steps) == ("ok", 5)
    assert image.seconds > 2
    assert caplog.text == ""


def test_a_process_that_stands_still_takes_no_batch_either(draw: Any) -> None:
    """What it does not read any more would be waited for as long as what it does not say."""
    worker = Worker("cpu", packed(Options(encoder=Tiny(), perceptual=None, budget=Budget(16 / 255, None))), 1, 1)
    try:
        worker.start()
        worker.process.send_signal(signal.SIGSTOP)
        work = Work(DecodedImage("large", draw(1024, 1024, 1)), Anchor("grey", [draw(64, 64, 2)]))
        with pytest.raises(StalledError, match="no step for 1 s; it counts as hung"):
            worker.send([work], None)
    finally:
        worker.kill()
    assert not is_running(worker.process.pid)


def test_a_process_that_hangs_before_it_begins_counts_as_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shade_fast.workers.worker.LEAST_START", 0.5)
    worker = Worker("cpu", packed(Options(encoder=Tiny())), 1, 0.5)
    try:
        worker.process.send_signal(signal.SIGSTOP)
        with pytest.raises(StalledError, match=r"no step for 0\.5 s"):
            worker.start()
    finally:
        worker.kill()


def test_a_share_of_the_threads_does_not_show(options: dict[str, Any], draw: Any, encoder_folder: Path) -> None:
    """Workers have fewer threads than a process that is alone has; torch's own sums would show that."""
    options |= {"encoder": encoder_folder, "perceptual": "st-alex", "budget": Budget(16 / 255, 0.02), "steps": 3}
    options |= {"view": View(128), "backend": "native", "devices": "cpu"}
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(poison_batch([draw(200, 240, 1)], **options))
    finally:
        torch.set_num_threads(threads)
    assert_same(*results)


def test_networks_that_cannot_be_made_in_another_process(options: dict[str, Any], draw: Any) -> None:
    images = [draw(64, 64, 1)]
    with pytest.raises(ShadeFastError, match=r"none is left \(cpu: encoder: cannot be made .*left its home\).*script"):
        poison_batch(images, **options | {"encoder": Homebound()}, devices=["cpu", "cpu"])
    with pytest.raises(ShadeFastError, match=r"encoder: several devices have a process each, .* or give one device"):
        poison_batch(images, **options | {"encoder": lambda shown: shown[:, :, ::8, ::8]}, devices=["cpu", "cpu"])
    assert workers_of(os.getpid()) == []
