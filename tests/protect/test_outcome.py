from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shade_fast import PoisonedImage, PoisonResult
from shade_fast.protect.outcome import summarize


def outcome(before: float | None, after: float | None, status: str = "ok", lpips: float | None = 0.05) -> PoisonedImage:
    pixels = None if status == "failed" else np.zeros((8, 8, 3), np.uint8)
    measured = None if before is None else 16 / 255
    return PoisonedImage(
        image=pixels,
        status=status,  # type: ignore[arg-type]
        linf=measured,
        lpips=None if before is None else lpips,
        distance_before=before,
        distance_after=after,
        error="a.jpg: the file is empty" if status == "failed" else None,
    )


def result(*images: PoisonedImage, seconds: float = 8.0) -> PoisonResult:
    return PoisonResult(
        images=images, backend="native", encoder="embedded", perceptual="st-vgg", device="cpu", seconds=seconds
    )


@pytest.mark.parametrize(
    ("before", "after", "ratio"), [(10.0, 4.0, 0.4), (0.0, 0.0, 1.0), (None, None, None), (10.0, None, None)]
)
def test_ratio_is_the_share_of_the_way_that_is_left(
    before: float | None, after: float | None, ratio: float | None
) -> None:
    assert outcome(before, after).ratio == ratio


def test_a_result_is_a_sequence_in_order() -> None:
    images = [outcome(10, 4), outcome(10, 9.5, "below_target"), outcome(None, None, "failed")]
    whole = result(*images)
    assert len(whole) == 3
    assert list(whole) == images
    assert whole[0] is images[0]
    assert whole[-1] is images[2]
    assert whole[1:] == tuple(images[1:])
    assert whole.index(images[1]) == 1
    assert images[2] in whole
    with pytest.raises(IndexError):
        whole[3]


def test_summary_gives_counts_figures_speed_and_every_failure() -> None:
    summary = result(
        outcome(10, 4), outcome(10, 9, "below_target", lpips=0.06), outcome(None, None, "failed"), outcome(10, 8)
    ).summary()
    assert summary.splitlines() == [
        "4 images: 2 ok, 1 below target, 1 failed",
        "encoder embedded, perceptual st-vgg, backend native",
        "latent distance left: mean 70.0%, from 40.0% to 90.0%",
        "largest linf 16/255, largest lpips 0.0600",
        "8.0 s, 0.500 images/s",
        "failed: a.jpg: the file is empty",
    ]


def test_summary_of_failures_alone_and_without_lpips() -> None:
    assert "latent distance" not in result(outcome(None, None, "failed")).summary()
    assert "largest linf 16/255\n" in result(outcome(10, 4, lpips=None)).summary()


def test_images_per_second() -> None:
    assert result(outcome(10, 4), outcome(None, None, "failed")).images_per_second == 0.25
    assert result(outcome(10, 4), seconds=0.0).images_per_second == 0.0


def test_pixels_and_history_stay_out_of_the_printed_form() -> None:
    printed = repr(PoisonedImage(image=None, status="failed", history=(1.0,) * 1000, error="why"))
    assert "1.0" not in printed
    assert "why" in printed


def test_a_failed_image_has_no_share_in_the_figures() -> None:
    good = PoisonedImage(None, "ok", linf=16 / 255, lpips=0.05, distance_before=10.0, distance_after=6.0)
    bad = PoisonedImage(None, "failed", linf=1.0, lpips=0.9, distance_before=10.0, distance_after=9.9, error="why")
    text = summarize([good, bad], seconds=1.0, encoder="e", perceptual="p", backend="b")
    assert "largest linf 16/255, largest lpips 0.0500" in text
    assert "mean 60.0%, from 60.0% to 60.0%" in text
    assert bad.ratio is None


def test_an_image_that_was_not_moved_is_left_out_of_the_mean_survival() -> None:
    moved = replace(outcome(10, 4), survival={"flip": 0.5})
    still = replace(outcome(10, 10, "below_target"), survival={"flip": float("nan")})
    assert "shift left after flip 50%" in result(still, moved).summary()
    assert "shift left after flip nan%" in result(still).summary()
