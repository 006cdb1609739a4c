from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shade_fast.encoders import load_encoder
from shade_fast.terms.errors import ShadeFastError

diffusers = pytest.importorskip("diffusers")

KL_CONFIGS = {
    "sd15": {"latent_channels": 4, "scaling_factor": 0.18215},
    "sd3": {
        "latent_channels": 16,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "mean_and_std": {
        "latent_channels": 4,
        "scaling_factor": 0.5,
        "latents_mean": [-1.6, 1.1, 3.2, -0.9],
        "latents_std": [8.4, 5.8, 6.4, 4.2],
    },
}
SHIFT_AND_SCALE = {
    "sd15": (0.0, 0.18215),
    "sd3": (0.0609, 1.5305),
    "mean_and_std": (
        torch.tensor([-1.6, 1.1, 3.2, -0.9]).reshape(1, 4, 1, 1),
        0.5 / torch.tensor([8.4, 5.8, 6.4, 4.2]).reshape(1, 4, 1, 1),
    ),
}


def make_kl(name: str = "sd15", sides: int = 3):
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * sides,
        up_block_types=("UpDecoderBlock2D",) * sides,
        block_out_channels=(8, 16, 16, 16)[:sides],
        norm_num_groups=4,
        **KL_CONFIGS[name],
    ).eval()


def make_tiny(**config):
    torch.manual_seed(2)
    return diffusers.AutoencoderTiny(**config).eval()


@pytest.fixture
def kl_folder(tmp_path: Path) -> Path:
    make_kl().save_pretrained(tmp_path / "small-vae")
    return tmp_path / "small-vae"


@pytest.mark.parametrize(("name", "sides"), [("sd15", 4), ("sd3", 3), ("mean_and_std", 2)])
@torch.no_grad()
def test_kl_folder_equals_diffusers_scaled_mode(name: str, sides: int, tmp_path: Path, images: Tensor) -> None:
    autoencoder = make_kl(name, sides)
    autoencoder.save_pretrained(tmp_path / name)
    encoder = load_encoder(tmp_path / name)
    shift, scale = SHIFT_AND_SCALE[name]

    assert (encoder.name, encoder.kind, encoder.factor) == (name, "kl", 2 ** (sides - 1))
    latents = encoder.encode(images)
    expected = (autoencoder.encode(images * 2 - 1).latent_dist.mode() - shift) * scale
    torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-6)

    decoded = autoencoder.decode(expected / scale + shift).sample
    torch.testing.assert_close(encoder.decode(latents), (decoded / 2 + 0.5).clamp(0, 1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_tiny_folder_equals_diffusers(tmp_path: Path, images: Tensor) -> None:
    autoencoder = make_tiny(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159)
    autoencoder.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))

    assert (encoder.kind, encoder.factor, encoder.channels) == ("tiny", 8, 16)
    latents = encoder.encode(images)
    expected = (autoencoder.encode(images * 2 - 1).latents - 0.1159) * 0.3611
    torch.testing.assert_close(latents, expected)
    decoded = autoencoder.decode(latents / 0.3611 + 0.1159).sample
    torch.testing.assert_close(encoder.decode(latents), (decoded / 2 + 0.5).clamp(0, 1))


def test_pipeline_folder_gives_its_vae(kl_folder: Path, tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    kl_folder.rename(pipeline / "vae")
    (pipeline / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    encoder = load_encoder(pipeline)
    assert (encoder.name, encoder.kind, encoder.factor) == ("pipeline", "kl", 4)
    assert encoder.sha256 == load_encoder(make_kl()).sha256


@torch.no_grad()
def test_half_precision_variant_is_read_in_float32(tmp_path: Path, images: Tensor) -> None:
    make_kl().half().save_pretrained(tmp_path, variant="fp16")
    latents = load_encoder(tmp_path).encode(images)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, load_encoder(make_kl()).encode(images), rtol=0.02, atol=0.002)


def test_object_is_copied_and_left_as_it_was(images: Tensor) -> None:
    autoencoder = make_kl().half().train()
    encoder = load_encoder(autoencoder)
    encoder.decode(encoder.encode(images))
    assert autoencoder.training
    assert all(p.requires_grad and p.dtype == torch.float16 for p in autoencoder.parameters())
    assert not encoder.module.training
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in encoder.module.parameters())


def test_checkpointing_of_an_object_changes_nothing(images: Tensor) -> None:
    autoencoder = make_tiny()
    expected = load_encoder(autoencoder).encode(images)
    autoencoder.encoder.gradient_checkpointing = autoencoder.decoder.gradient_checkpointing = True
    encoder = load_encoder(autoencoder)
    latents = encoder.encode(images.requires_grad_(True))
    torch.testing.assert_close(latents, expected)
    assert autoencoder.encoder.gradient_checkpointing
    assert encoder.decode(latents).requires_grad


def test_gradient_reaches_the_image_and_no_weight(kl_folder: Path, images: Tensor) -> None:
    encoder = load_encoder(kl_folder)
    images.requires_grad_(True)
    encoder.encode(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().min() > 0
    assert all(p.grad is None and not p.requires_grad for p in encoder.module.parameters())


def test_other_diffusers_model_is_refused_by_name(tmp_path: Path) -> None:
    model = diffusers.VQModel(block_out_channels=(8,), norm_num_groups=4)
    with pytest.raises(ShadeFastError, match="VQModel is not an autoencoder that is known here"):
        load_encoder(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(ShadeFastError, match="holds a VQModel, not AutoencoderKL or AutoencoderTiny"):
        load_encoder(tmp_path)


def test_folder_without_config_lists_what_was_tried(tmp_path: Path) -> None:
    (tmp_path / "taesd_encoder.pth").touch()
    with pytest.raises(
        ShadeFastError,
        match=r"has no config.json; .*vae has no config.json. The folder holds taesd_encoder.pth: give that",
    ):
        load_encoder(tmp_path)


@pytest.mark.parametrize("config", ["{", json.dumps({"_class_name": "AutoencoderKL", "latent_channels": "four"}), "[]"])
def test_damaged_config_is_refused(config: str, kl_folder: Path) -> None:
    (kl_folder / "config.json").write_text(config)
    with pytest.raises(ShadeFastError, match="small-vae"):
        load_encoder(kl_folder)


def test_incomplete_weights_are_refused_not_made_up(kl_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = kl_folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["encoder.conv_in.weight"]
    save_file(weights, file)
    with pytest.raises(ShadeFastError, match=r"lack 1 that its config.json asks for: encoder.conv_in.weight"):
        load_encoder(kl_folder)
    file.write_bytes(b"")
    with pytest.raises(ShadeFastError, match=r"cannot read the weights in .*small-vae"):
        load_encoder(kl_folder)
    file.unlink()
    with pytest.raises(ShadeFastError, match=r"cannot read the weights in .*small-vae"):
        load_encoder(kl_folder)


def test_pickled_code_in_a_folder_is_refused(kl_folder: Path, malicious) -> None:
    (kl_folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"encoder.conv_in.weight": malicious}, kl_folder / "diffusion_pytorch_model.bin")
    with pytest.raises(ShadeFastError, match="cannot read the weights"):
        load_encoder(kl_folder)
    assert not malicious.path.exists()


@pytest.mark.parametrize("change", [{"scaling_factor": 0.0}, {"latents_std": [1.0, 2.0]}, {"in_channels": 4}])
def test_unusable_config_values_are_refused(change: dict[str, object]) -> None:
    autoencoder = make_kl("sd15", 2)
    autoencoder.register_to_config(**change)
    with pytest.raises(ShadeFastError, match="AutoencoderKL"):
        load_encoder(autoencoder)


def test_hub_ids_are_found_in_the_cache_without_a_network(tmp_path: Path) -> None:
    commit = "0" * 40
    for repository, subfolder in (("owner--vae", ""), ("owner--pipeline", "vae")):
        folder = tmp_path / f"models--{repository}"
        make_kl().save_pretrained(folder / "snapshots" / commit / subfolder)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
    script = """
import sys, torch
from shade_fast.encoders import load_encoder
load_encoder(torch.nn.Conv2d(3, 4, 8, 8))
print("diffusers" in sys.modules)
for name in ("owner/vae", "owner/pipeline"):
    print(load_encoder(name).name)
try:
    load_encoder("owner/nothing")
except ValueError as error:
    print(error)
"""
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lazy, vae, pipeline, error = done.stdout.splitlines()
    assert (lazy, vae, pipeline) == ("False", "owner/vae", "owner/pipeline")
    for part in ("no file or folder is there", "not in the hub's cache", "hub:owner/nothing"):
        assert part in error
