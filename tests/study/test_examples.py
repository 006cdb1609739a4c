"""Latents for a generator: each image is encoded once, by the backend that is there, and decoded again by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from shade_fast import load_encoder
from shade_fast.engine import run_by
from shade_fast.ops import native
from shade_fast.study.components import with_components
from shade_fast.study.examples import Known, decode_latents, encode


def test_an_image_that_is_known_is_not_encoded_again(images: np.ndarray) -> None:
    seen: list[int] = []

    def count(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(len(inputs[0]))

    encoder, known = load_encoder("embedded"), Known()
    encoder.module.register_forward_pre_hook(count)
    first = encode(encoder, images[:5], known, batch=2)
    assert seen == [2, 2, 1]
    again = encode(encoder, images[[8, 0, 4, 8, 1]], known)
    assert seen == [2, 2, 1, 1]
    assert torch.equal(again[1:3], first[[0, 4]]) and torch.equal(again[0], again[3])
    torch.testing.assert_close(again, encode(encoder, images[[8, 0, 4, 8, 1]]))


@pytest.mark.parametrize("components", [None, 5])
def test_a_backend_encodes_and_decodes_to_the_same(components: int | None, images: np.ndarray, tmp_path: Path) -> None:
    plain = load_encoder("embedded")
    if components is not None:
        plain = with_components(plain, components, images, tmp_path / "components.safetensors")
    assert run_by("reference", plain) is plain
    if not native.cpu_available():
        pytest.skip("the compiled module is not built")
    fast = run_by("native", plain)
    latents = encode(plain, images)
    torch.testing.assert_close(encode(fast, images), latents, rtol=1e-4, atol=1e-4)
    assert np.abs(decode_latents(fast, latents).astype(int) - decode_latents(plain, latents)).max() <= 1
    assert "runs the whole network" not in str(fast.decoder().report(latents))
    assert fast.sha256 == plain.sha256
