"""What happens where a device has no memory for a batch: the error is torch's own, raised by an encoder on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shade_fast import Budget, Poisoner, View
from shade_fast.engine import Slots
from shade_fast.images import decode
from shade_fast.protect.outcome import Work
from shade_fast.protect.upload import Uploader
from tests.workers.networks import Hungry, Tiny


def make(encoder: Any, batch_size: int) -> Poisoner:
    poisoner = Poisoner(
        encoder=encoder, perceptual=None, budget=Budget(16 / 255, None), view=View(None), steps=4, target_ratio=1.0,
        backend="reference", devices="cpu",
    )  # fmt: skip
    poisoner.protector.batch_size = batch_size
    return poisoner


def hungry(poisoner: Poisoner, most: dict[int, int]) -> Hungry:
    """A poisoner's encoder, which has been given this memory."""
    (encoder,) = poisoner.encoders
    (network,) = [module for module in encoder.module.modules() if isinstance(module, Hungry)]
    network.most = most
    network.given.clear()
    return network


def test_a_batch_without_memory_is_tried_by_halves_and_remembered(draw: Any) -> None:
    poisoner, plain = make(Hungry(), 8), make(Tiny(), 1)
    target = draw(64, 64, 99)
    anchor = poisoner.anchor(target)
    images = [draw(64, 64, index) for index in range(19)]
    encoder = hungry(poisoner, {64: 3, 72: 1})
    results = list(poisoner.protect((image, anchor) for image in images))
    expected = list(plain.protect((image, plain.anchor(target)) for image in images))
    assert [result.outcome.status for result in results] == ["ok"] * 19
    for result, other in zip(results, expected, strict=True):
        assert result.outcome.distance_after == pytest.approx(other.outcome.distance_after, rel=1e-3)
        assert (result.outcome.image == other.outcome.image).mean() > 0.99
    together = [count for count in encoder.given if count > 1]
    assert together[:2] == [8, 4]
    assert set(together[2:]) == {2}
    # What has more pixels has less room: it finds its own, and the first is not forgotten over it.
    encoder.given.clear()
    images = [draw(64, 72, index) for index in range(4)] + images[:4]
    assert [protected.outcome.status for protected in poisoner.protect((image, anchor) for image in images)] == [
        "ok"
    ] * 8
    assert max(encoder.given) == 4


def test_an_image_that_has_no_memory_even_alone_fails_with_the_fix(draw: Any) -> None:
    poisoner = make(Hungry(), 4)
    anchor = poisoner.anchor(draw(64, 64, 99))
    hungry(poisoner, {72: 0})
    images = [draw(64, 64, 1), draw(64, 72, 2), draw(64, 64, 3)]
    outcomes = [
        protected.outcome for protected in poisoner.protect((decode(image, "x.png"), anchor) for image in images)
    ]
    assert [outcome.status for outcome in outcomes] == ["ok", "failed", "ok"]
    assert outcomes[1].error == (
        "x.png: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.; not even this image alone fits into "
        "the memory of cpu: give a smaller view or another device, or end what else runs on it"
    )


@pytest.mark.parametrize("count", [8, 1])
def test_recorded_steps_give_their_memory_back_before_a_batch_is_halved(
    count: int, draw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoner = make(Hungry(), 8)
    encoder = hungry(poisoner, {64: 0})
    slots = Slots(8)
    slots._recorded["another size"] = (None, None)  # type: ignore[assignment]
    released: list[int] = []

    def release() -> None:
        released.append(1)
        slots._recorded.clear()
        encoder.most.clear()

    monkeypatch.setattr(slots, "release", release)
    target = decode(draw(64, 64, 99), "target.png")
    anchor = make(Tiny(), 1).anchor(target.pixels)
    monkeypatch.setattr(poisoner.protector, "_slots", slots)
    work = [Work(decode(draw(64, 64, index), f"{index}.png"), anchor) for index in range(count)]
    assert [protected.outcome.status for protected in poisoner.protector.protect_batch(work, None)] == ["ok"] * count
    assert released == [1]
    assert not poisoner.protector._fitting


def test_an_image_without_memory_is_not_tried_for_ever(draw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where each try records a step anew, which could be released again."""
    poisoner = make(Hungry(), 8)
    encoder = hungry(poisoner, {})
    slots = Slots(8)

    def run_out(*_: Any) -> Any:
        slots._recorded["its own"] = (None, None)  # type: ignore[assignment]
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    anchor = poisoner.anchor(draw(64, 64, 99))
    monkeypatch.setattr(poisoner.protector, "_slots", slots)
    monkeypatch.setattr(poisoner.protector, "_protect", run_out)
    (protected,) = poisoner.protector.protect_batch([Work(decode(draw(64, 64, 1), "x.png"), anchor)], None)
    assert protected.outcome.status == "failed"
    assert "not even this image alone fits" in str(protected.outcome.error)
    assert not encoder.given


def test_what_is_uploaded_are_the_images(draw: Any) -> None:
    poisoner = make(Tiny(), 4)
    images = [draw(40, 48, 1), draw(48, 40, 2).transpose(1, 0, 2), draw(40, 48, 3)[:, ::-1]]
    arrived = Uploader(poisoner.device).upload(images)()
    assert arrived.is_contiguous()
    assert np.array_equal(arrived.permute(0, 2, 3, 1).numpy(), np.stack(images))
