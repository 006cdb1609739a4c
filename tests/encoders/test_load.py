from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shade_fast.encoders import load_encoder
from shade_fast.encoders.encoder import weights_sha256
from shade_fast.terms.errors import ShadeFastError


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return load_encoder(nn.Conv2d(3, 4, 8, 8))


def test_an_encoder_is_returned_as_it_is(encoder) -> None:
    assert load_encoder(encoder) is encoder


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("embeded", r"no encoder 'embeded': it is not 'embedded', and no file .*near it: 'embedded'.*Give 'embedded'"),
        ("", r"no encoder ''"),
        ("./owner/name", r"no file or folder is there\. Give"),
        ("owner/name.safetensors", r"no file or folder is there\. Give"),
        (3, r"got int 3"),
        (None, r"got NoneType None"),
    ],
)
def test_a_spec_that_stands_for_nothing(spec, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ShadeFastError, match=message):
        load_encoder(spec)


def test_near_file_names_are_suggested(tmp_path: Path) -> None:
    (tmp_path / "taesd_encoder.pth").touch()
    with pytest.raises(ShadeFastError, match=r"near it: '.*/taesd_encoder\.pth'"):
        load_encoder(tmp_path / "tasd_encoder.pth")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ShadeFastError, match=r"photo.jpg is not an encoder: a file of weights ends in .safetensors"):
        load_encoder(tmp_path / "photo.jpg")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 60, 64), r"multiples of 8 and at least 8; got \[1, 3, 60, 64\]"),
        (torch.zeros(1, 3, 0, 64), r"got \[1, 3, 0, 64\]"),
        (torch.zeros(1, 4, 64, 64), r"got \[1, 4, 64, 64\]"),
        (torch.zeros(3, 64, 64), r"got \[3, 64, 64\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r"torch.uint8: divide by 255"),
        ([0.5], r"takes a tensor; got list"),
    ],
)
def test_images_of_a_wrong_shape_are_refused(encoder, images, message: str) -> None:
    with pytest.raises(ShadeFastError, match=message):
        encoder.encode(images)


def test_decode_without_decoder_says_what_to_load(encoder) -> None:
    assert not encoder.has_decoder
    with pytest.raises(ShadeFastError, match=r"'Conv2d' has no decoder: load a diffusers autoencoder, or put"):
        encoder.decode(torch.zeros(1, 4, 8, 8))


def test_decode_checks_the_latents(models: Path) -> None:
    encoder = load_encoder(models / "taef2_encoder.safetensors")
    with pytest.raises(ShadeFastError, match=r"latents \[B, 32, h, w\]; got torch.float32 \[1, 4"):
        encoder.decode(torch.zeros(1, 4, 8, 8))


def test_hash_is_of_names_shapes_dtypes_and_values(encoder) -> None:
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1)}
    base = holder_hash(weights)
    assert base == holder_hash(dict(reversed(weights.items())))
    assert base == holder_hash(weights | {"a": torch.arange(6.0).reshape(3, 2).t().contiguous().t().reshape(2, 3)})
    assert base == holder_hash(weights | {"a": torch.arange(6.0).reshape(2, 3).t().contiguous().t()})
    assert len(base) == 64
    changed = [
        weights | {"a": torch.arange(6.0).reshape(3, 2)},
        weights | {"a": torch.arange(6.0, dtype=torch.float64).reshape(2, 3)},
        weights | {"a": torch.arange(1.0, 7.0).reshape(2, 3)},
        {"a": weights["a"], "c": weights["b"]},
    ]
    assert len({base, *map(holder_hash, changed)}) == 5
    assert weights_sha256(nn.Identity()) is None
    torch.manual_seed(0)
    assert load_encoder(nn.Conv2d(3, 4, 8, 8)).sha256 == encoder.sha256
    assert load_encoder(nn.Conv2d(3, 4, 8, 8)).sha256 != encoder.sha256


def holder_hash(tensors: dict[str, Tensor]) -> str | None:
    module = nn.Module()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    return weights_sha256(module)


def test_another_device_gets_an_independent_copy(encoder) -> None:
    assert encoder.to("cpu") is encoder
    elsewhere = encoder.to("meta")
    assert elsewhere.module.weight.device.type == "meta"
    assert encoder.module.weight.device.type == "cpu"
    assert elsewhere.describe() == encoder.describe()


def test_an_encoder_with_a_decoder_can_be_sent_to_another_process(models: Path, photograph: Tensor) -> None:
    encoder = load_encoder(models / "taef2_encoder.safetensors")
    copy = pickle.loads(pickle.dumps(encoder))
    small = photograph[:, :, :64, :64]
    assert torch.equal(copy.decode(copy.encode(small)), encoder.decode(encoder.encode(small)))
