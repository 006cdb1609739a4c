from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from shade_fast.encoders import load_encoder
from shade_fast.encoders.taesd import taesd_decoder, taesd_encoder
from shade_fast.terms.errors import ShadeFastError

Weights = dict[str, Tensor]


def random_weights(channels: int, norm: bool) -> tuple[Weights, Weights]:
    torch.manual_seed(channels + norm)
    encoder, decoder = taesd_encoder(channels, norm).state_dict(), taesd_decoder(channels, norm).state_dict()
    for name, tensor in [*encoder.items(), *decoder.items()]:
        if ".pool.1." in name:
            tensor.copy_(torch.randn_like(tensor))
    return encoder, decoder


def convolve(x: Tensor, weights: Weights, name: str, stride: int = 1) -> Tensor:
    weight = weights[f"{name}.weight"]
    return F.conv2d(x, weight, weights.get(f"{name}.bias"), stride=stride, padding=weight.shape[2] // 2)


def block(x: Tensor, weights: Weights, layer: int) -> Tensor:
    if f"{layer}.pool.0.weight" in weights:
        y = convolve(x, weights, f"{layer}.pool.0")
        mean = y.unflatten(1, (4, -1)).mean((2, 3, 4), keepdim=True)
        variance = y.unflatten(1, (4, -1)).var((2, 3, 4), unbiased=False, keepdim=True)
        y = ((y.unflatten(1, (4, -1)) - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
        y = y * weights[f"{layer}.pool.1.weight"][:, None, None] + weights[f"{layer}.pool.1.bias"][:, None, None]
        x = x + convolve(y.relu(), weights, f"{layer}.pool.3")
    y = convolve(x, weights, f"{layer}.conv.0").relu()
    y = convolve(y, weights, f"{layer}.conv.2").relu()
    return (convolve(y, weights, f"{layer}.conv.4") + x).relu()


def reference_encode(x: Tensor, weights: Weights) -> Tensor:
    x = block(convolve(x, weights, "0"), weights, 1)
    for down in (2, 6, 10):
        x = convolve(x, weights, str(down), stride=2)
        for layer in range(down + 1, down + 4):
            x = block(x, weights, layer)
    return convolve(x, weights, "14")


def reference_decode(x: Tensor, weights: Weights) -> Tensor:
    x = convolve((x / 3).tanh() * 3, weights, "1").relu()
    for first in (3, 8, 13):
        for layer in range(first, first + 3):
            x = block(x, weights, layer)
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = convolve(x, weights, str(first + 4))
    return convolve(block(x, weights, 18), weights, "19")


def prefixed(weights: Weights, prefix: str, offset: int = 0) -> Weights:
    split = (key.partition(".") for key in weights)
    return {f"{prefix}{int(n) + offset}.{rest}": t for (n, _, rest), t in zip(split, weights.values(), strict=True)}


def write(weights: Weights, path: Path) -> None:
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "midblock_norm"])
@pytest.mark.parametrize(("channels", "suffix"), [(4, ".pth"), (16, ".safetensors"), (32, ".safetensors")])
@torch.no_grad()
def test_file_equals_the_formula(channels: int, suffix: str, norm: bool, tmp_path: Path, images: Tensor) -> None:
    encoder_weights, decoder_weights = random_weights(channels, norm)
    write(encoder_weights, tmp_path / f"taesd_encoder{suffix}")
    write(decoder_weights, tmp_path / f"taesd_decoder{suffix}")
    encoder = load_encoder(tmp_path / f"taesd_encoder{suffix}")

    assert (encoder.name, encoder.kind, encoder.factor, encoder.channels) == ("taesd", "taesd", 8, channels)
    latents = encoder.encode(images)
    torch.testing.assert_close(latents, reference_encode(images, encoder_weights), rtol=1e-4, atol=1e-5)
    wide = 4 * torch.randn(2, channels, 3, 2)
    expected = reference_decode(wide, decoder_weights).clamp(0, 1)
    torch.testing.assert_close(encoder.decode(wide), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["encoder.", "model.", "taesd.encoder.layers."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_prefix_and_precision_of_the_file_do_not_matter(prefix: str, suffix: str, tmp_path: Path) -> None:
    weights, _ = random_weights(4, True)
    weights = {key: tensor.half() for key, tensor in weights.items()}
    write(weights, tmp_path / f"plain{suffix}")
    write(prefixed(weights, prefix), tmp_path / f"prefixed{suffix}")
    plain, other = load_encoder(tmp_path / f"plain{suffix}"), load_encoder(tmp_path / f"prefixed{suffix}")
    assert plain.sha256 == other.sha256
    assert not plain.has_decoder
    assert not other.has_decoder
    assert all(parameter.dtype == torch.float32 for parameter in plain.module.parameters())


@torch.no_grad()
def test_both_halves_in_one_file(tmp_path: Path, images: Tensor) -> None:
    encoder_weights, decoder_weights = random_weights(16, True)
    write(prefixed(encoder_weights, "encoder.") | prefixed(decoder_weights, "decoder."), tmp_path / "both.pth")
    encoder = load_encoder(tmp_path / "both.pth")
    latents = encoder.encode(images)
    expected = reference_decode(latents, decoder_weights).clamp(0, 1)
    torch.testing.assert_close(encoder.decode(latents), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_weights_of_diffusers_autoencoder_tiny_equal_it(tmp_path: Path, images: Tensor) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderTiny(latent_channels=4).eval()
    autoencoder.save_pretrained(tmp_path)
    folder, file = load_encoder(tmp_path), load_encoder(tmp_path / "diffusion_pytorch_model.safetensors")
    latents = file.encode(images)
    torch.testing.assert_close(latents, folder.encode(images))
    torch.testing.assert_close(file.decode(latents), folder.decode(latents))


@torch.no_grad()
def test_taef2_reconstructs_a_photograph(models: Path, photograph: Tensor) -> None:
    encoder = load_encoder(models / "taef2_encoder.safetensors")
    assert encoder.describe() == {
        "name": "taef2",
        "kind": "taesd",
        "factor": 8,
        "channels": 32,
        "sha256": encoder.sha256,
        "parameters": 1_338_528,
        "has_decoder": True,
    }
    error = (encoder.decode(encoder.encode(photograph)) - photograph).square().mean()
    # 29.0 dB; with 8 groups in the norms, the nearest wrong layout, 26.3 dB.
    assert -10 * error.log10() > 28


def test_gradient_reaches_the_image_and_no_weight(tmp_path: Path, images: Tensor) -> None:
    write(random_weights(4, True)[0], tmp_path / "encoder.pth")
    encoder = load_encoder(tmp_path / "encoder.pth")
    images.requires_grad_(True)
    encoder.encode(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.flatten(1).norm(dim=1).min() > 0
    assert all(p.grad is None and not p.requires_grad for p in encoder.module.parameters())


def without(weights: Weights, key: str) -> Weights:
    return {name: tensor for name, tensor in weights.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: without(w, "3.conv.2.bias"), r"not a TAESD-family encoder: no 3\.conv\.2\.bias\. An Auto"),
        (lambda w: w | {"15.weight": torch.ones(1)}, r"unknown 15\.weight"),
        (lambda w: w | {"scale": torch.ones(1)}, r"unknown scale"),
        (lambda w: w | {"0.weight": torch.ones(64, 4, 3, 3)}, r"0\.weight is torch.float32 \[64, 4, 3, 3\], not"),
        (lambda w: w | {"14.weight": torch.ones(7)}, r"14\.weight is torch.float32 \[7\], not"),
        (lambda w: w | {"0.bias": w["0.bias"].int()}, r"0\.bias is torch.int32 \[64\], not floating-point \[64\]"),
        (lambda w: w | {"11.pool.0.weight": torch.ones(256, 64, 1, 1)}, r"no 11\.pool\.1\.weight;.* and 8 more"),
        (lambda w: {}, r"no 0\.weight; no 0\.bias; no 1\.conv\.0\.weight and 64 more"),
        (lambda w: random_weights(4, False)[1], r"not a TAESD-family encoder"),
        (lambda w: prefixed(w, "decoder."), r"not a TAESD-family encoder"),
        (lambda w: {"encoder.down_blocks.0.resnets.0.conv1.weight": torch.ones(1)}, "AutoencoderKL is given as its"),
    ],
)
def test_wrong_weights_are_named(change, message: str, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    write(change(random_weights(4, False)[0]), path)
    with pytest.raises(ShadeFastError, match=message) as caught:
        load_encoder(path)
    assert str(path) in str(caught.value)


def test_wrong_decoder_is_reported_when_it_is_wanted(tmp_path: Path, images: Tensor) -> None:
    weights, _ = random_weights(4, False)
    write(weights, tmp_path / "encoder.pth")
    write(weights, tmp_path / "decoder.pth")
    encoder = load_encoder(tmp_path / "encoder.pth")
    latents = encoder.encode(images)
    with pytest.raises(ShadeFastError, match=r"decoder.pth is not a TAESD-family decoder"):
        encoder.decode(latents)


def test_pickled_code_is_refused_and_does_not_run(tmp_path: Path, malicious) -> None:
    torch.save({"0.weight": malicious}, tmp_path / "encoder.pth")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps({"0.weight": malicious}, protocol=2))
    for name in ("encoder.pth", "raw.pt"):
        with pytest.raises(ShadeFastError, match=rf"{name} was not read: it is a pickle that asks for more than plain"):
            load_encoder(tmp_path / name)
    assert not malicious.path.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut off"])
def test_damaged_file_is_refused_by_name(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"encoder{suffix}"
    path.write_bytes(content)
    with pytest.raises(ShadeFastError, match=rf"encoder{suffix}"):
        load_encoder(path)


def test_more_than_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    for content in ([1, 2], {"state_dict": {"0.weight": torch.ones(1)}, "epoch": 3}):
        torch.save(content, path)
        with pytest.raises(ShadeFastError, match=r"checkpoint.pth holds more than named tensors; save the encoder's"):
            load_encoder(path)
