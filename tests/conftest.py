"""Fixtures that several rooms' tests share: photographs drawn from a seed, and encoders small enough to run at once."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import nn

# Read when the hub's client is imported: a name that is no file must not be waited for.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

#: Defaults of torch that are not the usual ones: a dtype, or a device.
DEFAULTS = [torch.float64, torch.bfloat16, torch.device("meta")]
Draw = Callable[..., npt.NDArray[np.uint8]]


@pytest.fixture(scope="session")
def draw() -> Draw:
    """`draw(height, width, seed=0)`: a smooth picture with texture, uint8 [H, W, 3]."""

    def build(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
        random = np.random.default_rng(seed)
        coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        return np.clip(smooth + random.integers(-12, 13, (height, width, 1)), 0, 255).astype(np.uint8)

    return build


@pytest.fixture(scope="session")
def tiny_module() -> nn.Module:
    """An encoder of factor 8 and 4 channels with random weights."""
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.SiLU(), nn.Conv2d(16, 4, 3, 2, 1))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return module.requires_grad_(False)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with a tiny AutoencoderKL of factor 8 and 4 channels, random weights."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("encoder") / "vae"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=4,
        ).save_pretrained(folder)
    return folder


@pytest.fixture(params=DEFAULTS, ids=str)
def other_defaults(request: pytest.FixtureRequest) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """`with other_defaults():` tensors for which nothing else is said are of another dtype, or on another device."""

    @contextlib.contextmanager
    def others() -> Iterator[None]:
        before = torch.get_default_dtype()
        if isinstance(request.param, torch.dtype):
            torch.set_default_dtype(request.param)
        try:
            with request.param if isinstance(request.param, torch.device) else contextlib.nullcontext():
                yield
        finally:
            torch.set_default_dtype(before)

    return others


def letter_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer with a vocabulary of letters, whose files it leaves in a folder."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion pipeline's folder, tiny and with random weights."""
    pytest.importorskip("transformers", reason="anchors are drawn with transformers: pip install 'shade-fast[anchors]'")
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("pipeline")
    tokenizer = letter_tokenizer(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=16,
                bos_token_id=len(tokenizer) - 2,
                eos_token_id=len(tokenizer) - 1,
                pad_token_id=len(tokenizer) - 1,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(4, 8),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=2,
            norm_num_groups=2,
        )
        vae = AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=4,
        )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a CLIP of random weights: its figures mean nothing, but they are the same every time."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = letter_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={
            **small, "vocab_size": len(tokenizer), "max_position_embeddings": 16,
            "bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1,
        },
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


class _Opens:
    """Unpickled by a loader that runs code, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return open, (str(self.path), "w")


@pytest.fixture
def malicious(tmp_path: Path) -> _Opens:
    """An object whose unpickling creates `malicious.path`."""
    content = _Opens(tmp_path / "code_ran")
    pickle.loads(pickle.dumps(content)).close()
    if not content.path.is_file():
        pytest.fail("the malicious pickle does nothing, so refusing it shows nothing")
    content.path.unlink()
    return content
