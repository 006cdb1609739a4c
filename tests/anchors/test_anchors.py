from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn
from torch.nn import functional

from shade_fast import Anchor, AnchorLibrary, Budget, Encoder, ShadeFastError, View, load_encoder, poison_batch
from shade_fast.anchors import generate_anchors, resolve_anchor
from shade_fast.anchors.anchor import CACHED_VIEWS


@pytest.fixture(scope="module")
def encoder(tiny_module: nn.Module) -> Encoder:
    return load_encoder(tiny_module)


@pytest.fixture
def folder(tmp_path: Path, draw: Any) -> Path:
    """cat with two images, Dog with one, bird.png by itself; and things that are no concepts."""
    folder = tmp_path / "anchors"
    for seed, name in enumerate(["cat/1.png", "cat/2.jpg", "Dog/1.webp", "bird.png"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(40, 50, seed)).save(folder / name)
    (folder / "empty").mkdir()
    (folder / "README.md").touch()
    (folder / "cat" / "licence.txt").touch()
    return folder


def pixels_of(latents: torch.Tensor, encoder: Encoder, image: Image.Image, size: tuple[int, int]) -> bool:
    covering = ImageOps.fit(image.convert("RGB"), size[::-1], method=Image.Resampling.BILINEAR)
    view = torch.from_numpy(np.array(covering)).permute(2, 0, 1)[None] / 255
    return torch.allclose(latents, encoder.encode(view), atol=1e-5)


def test_a_library_from_a_folder(folder: Path) -> None:
    library = AnchorLibrary.from_folder(str(folder))
    assert {name: len(anchor) for name, anchor in library.items()} == {"Dog": 1, "bird": 1, "cat": 2}
    assert library["cat"].paths == (str(folder / "cat/1.png"), str(folder / "cat/2.jpg"))
    assert "cat" in library
    assert "empty" not in library


def test_folders_that_are_no_library(tmp_path: Path) -> None:
    with pytest.raises(ShadeFastError, match=r"gone: not a folder; give one with a subfolder of images"):
        AnchorLibrary.from_folder(tmp_path / "gone")
    with pytest.raises(ShadeFastError, match=r": holds no images \(.bmp"):
        AnchorLibrary.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "suggested"), [("cta", "cat"), ("cats", "cat"), ("dog", "Dog"), ("DOG", "Dog"), ("BIRD", "bird")]
)
def test_a_wrong_name_is_answered_with_the_nearest(name: str, suggested: str, folder: Path) -> None:
    library = AnchorLibrary.from_folder(folder)
    for ask in (lambda: library[name], lambda: resolve_anchor(name, library)):
        with pytest.raises(ShadeFastError, match=f"'{name}'.*did you mean '{suggested}'.*has Dog, bird, cat"):
            ask()


def test_a_name_like_no_other_is_answered_with_all(folder: Path) -> None:
    with pytest.raises(ShadeFastError, match=r"no anchor 'xylophone'; the library has Dog, bird, cat"):
        AnchorLibrary.from_folder(folder)["xylophone"]


def test_embedded_concepts() -> None:
    library = AnchorLibrary.embedded()
    assert len(library) >= 2
    assert AnchorLibrary.embedded() is library
    for anchor in library.values():
        assert anchor.check() is anchor
        assert all(anchor.paths)


@pytest.mark.parametrize("size", [(32, 32), (24, 64), (8, 400)])
def test_an_image_is_scaled_to_cover_the_view_and_cropped(size: tuple[int, int], encoder: Encoder, draw: Any) -> None:
    image = Image.fromarray(draw(60, 50))
    latents = Anchor("one", [image]).latents(encoder, size)
    assert latents.shape == (1, 4, size[0] // 8, size[1] // 8)
    assert pixels_of(latents, encoder, image, size)


def test_every_kind_of_target(folder: Path, encoder: Encoder, draw: Any) -> None:
    library = AnchorLibrary.from_folder(folder)
    path, array = folder / "bird.png", draw(40, 50, 3)
    image = Image.open(path)
    for target in ("bird", path, str(path), image, array, library["bird"]):
        anchor = resolve_anchor(target, library)
        assert len(anchor) == 1
        assert pixels_of(anchor.latents(encoder, (32, 40)), encoder, image, (32, 40))
    assert resolve_anchor(path, library).name == "bird.png"
    assert resolve_anchor("bird", library).name == "bird"
    assert resolve_anchor(np.dstack([array, array[..., 0]]), library).latents(encoder, (8, 8)).shape == (1, 4, 1, 1)
    cat = resolve_anchor(folder / "cat", library)
    assert (cat.name, len(cat), len(resolve_anchor("cat", library))) == ("cat", 2, 2)


def test_targets_that_are_none(folder: Path, tmp_path: Path) -> None:
    library = AnchorLibrary.from_folder(folder)
    with pytest.raises(ShadeFastError, match=r"empty': the folder holds no images"):
        resolve_anchor(folder / "empty", library)
    with pytest.raises(ShadeFastError, match=r"missing.png': neither an anchor nor a path"):
        resolve_anchor(tmp_path / "missing.png", library)
    with pytest.raises(ShadeFastError, match=r"cannot be read: File name too long"):
        resolve_anchor("a" * 300, library)
    for target in (None, 5):
        with pytest.raises(ShadeFastError, match=r"an image is a path, bytes, a PIL image or a uint8 array"):
            resolve_anchor(target, library)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["path", "folder", "name", "anchor", "PIL image", "array"])
def test_a_damaged_target_is_an_error_of_the_run(kind: str, folder: Path, tiny_module: nn.Module, draw: Any) -> None:
    damaged = folder / "Dog" / "2.png"
    damaged.write_bytes((folder / "cat/1.png").read_bytes()[:1000])
    library = AnchorLibrary.from_folder(folder)
    target: dict[str, Any] = {
        "path": damaged,
        "folder": damaged.parent,
        "name": "Dog",
        "anchor": Anchor("mine", [draw(8, 8), damaged]),
        "PIL image": Image.open(damaged),
        "array": np.zeros((8, 8), np.float32),
    }
    with pytest.raises(ShadeFastError, match=r"damaged|dtype float32"):
        poison_batch(
            [draw(32, 32)],
            target[kind],
            **{"encoder": tiny_module, "anchors": library, "budget": Budget(0.1, None), "perceptual": None, "steps": 1},
        )


def test_a_damaged_image_of_another_concept_is_no_matter(folder: Path) -> None:
    (folder / "Dog" / "2.png").write_text("no image")
    library = AnchorLibrary.from_folder(folder)
    assert len(resolve_anchor("cat", library)) == 2


def test_latents_are_kept_per_encoder_and_size(encoder: Encoder, draw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    encode = Encoder.encode

    def counted(self: Encoder, images: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(images.shape))
        return encode(self, images)

    monkeypatch.setattr(Encoder, "encode", counted)
    anchor = Anchor("two", [draw(40, 40, 1), draw(40, 40, 2)])
    first = anchor.latents(encoder, (32, 32))
    assert anchor.latents(encoder, (32, 32)) is first
    assert len(calls) == 2
    assert anchor.latents(load_encoder(encoder.module), (32, 32)).shape == first.shape
    anchor.latents(encoder, (32, 40))
    anchor.latents(load_encoder(nn.Sequential(nn.Conv2d(3, 4, 8, 8))), (32, 32))
    assert len(calls) == 8  # a module loaded anew may be another architecture with the same weights
    for side in range(1, CACHED_VIEWS + 2):
        anchor.latents(encoder, (8, 8 * side))
    assert len(anchor._cache) == CACHED_VIEWS


def test_encoders_of_the_same_weights_are_distinguished(draw: Any) -> None:
    strides = [nn.Sequential(nn.Conv2d(3, 4, 8, stride, 4 - stride // 2)) for stride in (4, 8)]
    strides[1].load_state_dict(strides[0].state_dict())
    anchor = Anchor("one", [draw(40, 40)])
    shapes = [anchor.latents(load_encoder(module), (32, 32)).shape for module in strides]
    assert shapes == [(1, 4, 8, 8), (1, 4, 4, 4)]


def test_latents_are_on_the_encoders_device(encoder: Encoder, draw: Any) -> None:
    anchor = Anchor("one", [draw(40, 40)])
    assert anchor.latents(encoder, (32, 32)).device.type == "cpu"
    assert anchor.latents(encoder.to("meta"), (32, 32)).device.type == "meta"


@pytest.mark.parametrize("dimensions", [3, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_latent_is_itself_the_target(dimensions: int, dtype: torch.dtype, encoder: Encoder) -> None:
    latent = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    given = latent[0] if dimensions == 3 else latent
    anchor = resolve_anchor(given.requires_grad_(), AnchorLibrary({}))
    assert torch.allclose(anchor.latents(encoder, (40, 48)), latent.float(), atol=1e-6)
    smaller = anchor.latents(encoder, (24, 16))
    assert smaller.shape == (1, 4, 3, 2)
    assert torch.allclose(smaller, functional.interpolate(latent.float(), (3, 2), mode="bilinear", antialias=True))
    assert not smaller.requires_grad
    assert anchor.latents(encoder, (400, 8)).shape == (1, 4, 50, 1)


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        (torch.full((4, 8, 8), torch.nan), "NaN or infinite"),
        (torch.full((1, 4, 8, 8), torch.inf), "NaN or infinite"),
        (torch.zeros(2, 4, 8, 8), r"shape \(2, 4, 8, 8\); give a float latent"),
        (torch.zeros(8, 8), r"shape \(8, 8\)"),
        (torch.zeros(4, 0, 8), r"shape \(1, 4, 0, 8\)"),
        (torch.zeros(4, 8, 8, dtype=torch.int32), r"torch.int32 tensor"),
        (torch.zeros(16, 8, 8), r"a latent of 16 channels; encoder 'Sequential' has 4"),
    ],
)
def test_latents_refused(latent: torch.Tensor, message: str, tiny_module: nn.Module, draw: Any) -> None:
    with pytest.raises(ShadeFastError, match=rf"anchor 'latent': .*{message}"):
        poison_batch(
            [draw(32, 32)],
            latent,
            **{"encoder": tiny_module, "anchors": AnchorLibrary({}), "budget": Budget(0.1, None), "perceptual": None},
        )


def test_an_anchor_is_images_or_a_latent() -> None:
    for images, latent in (((), None), ([np.zeros((8, 8), np.uint8)], torch.zeros(4, 8, 8))):
        with pytest.raises(ShadeFastError, match=r"anchor 'x': give one or more images, or a latent"):
            Anchor("x", images, latent)


def test_one_image_need_not_be_a_list(draw: Any, tmp_path: Path) -> None:
    pixels = draw(24, 32)
    Image.fromarray(pixels).save(tmp_path / "b.png")
    right = Anchor("x", [pixels]).sha256
    for images in (str(tmp_path / "b.png"), tmp_path / "b.png", Image.fromarray(pixels), pixels, iter([pixels])):
        anchor = Anchor("x", images)
        assert (len(anchor), anchor.sha256) == (1, right)
    assert AnchorLibrary({"x": tmp_path / "b.png"})["x"].sha256 == right


def test_each_image_is_given_the_nearest_of_several(tiny_module: nn.Module, draw: Any, tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.png" for seed in range(4)]
    for seed, path in enumerate(paths):
        Image.fromarray(draw(32, 32, seed)).save(path)
    images = [draw(32, 32, seed) for seed in (3, 0, 7)]
    library = AnchorLibrary({"thing": paths})
    result = poison_batch(
        images,
        "thing",
        **{"encoder": tiny_module, "anchors": library, "budget": Budget(0.1, None), "perceptual": None, "steps": 1},
        view=View(None),
    )
    encoder = load_encoder(tiny_module)
    candidates = library["thing"].latents(encoder, (32, 32))
    for image, outcome in zip(images, result, strict=True):
        own = encoder.encode(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
        nearest = int((candidates - own).flatten(1).norm(dim=1).argmin())
        assert outcome.anchor == str(paths[nearest])
    assert [outcome.anchor for outcome in result[:2]] == [str(paths[3]), str(paths[0])]


def test_anchors_are_drawn_by_a_pipeline(pipeline_folder: Path, tmp_path: Path, encoder: Encoder) -> None:
    options: dict[str, Any] = {"count": 2, "steps": 2, "size": 64}
    paths = generate_anchors("cat", pipeline_folder, tmp_path / "first", **options)
    assert paths == [tmp_path / "first/cat/0000.png", tmp_path / "first/cat/0001.png"]
    again = generate_anchors("cat", str(pipeline_folder), tmp_path / "second", **options)
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    assert paths[0].read_bytes() != paths[1].read_bytes()
    (shifted,) = generate_anchors("cat", pipeline_folder, tmp_path / "third", count=1, steps=2, size=64, seed=1)
    assert shifted.name == "0001.png"
    assert shifted.read_bytes() == paths[1].read_bytes()
    assert Image.open(paths[0]).size == (64, 64)
    library = AnchorLibrary.from_folder(tmp_path / "first")
    assert library["cat"].latents(encoder, (32, 32)).shape == (2, 4, 4, 4)


def test_the_most_typical_draws_are_kept(pipeline_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 1, "size": 64, "seed": 3}
    every = generate_anchors("cat", pipeline_folder, tmp_path / "every", count=5, **options)
    kept = generate_anchors("cat", pipeline_folder, tmp_path / "kept", count=2, draws=5, **options)
    own = load_encoder(str(pipeline_folder))
    latents = torch.cat([Anchor("one", [path]).latents(own, (64, 64)) for path in every])
    far = (latents - latents.mean(dim=0)).flatten(1).norm(dim=1)
    assert {path.name for path in kept} == {every[place].name for place in far.argsort()[:2].tolist()}
    for path in kept:
        assert path.read_bytes() == (tmp_path / "every" / "cat" / path.name).read_bytes()
    with pytest.raises(ShadeFastError, match="draws=1: 2 of them are to be kept"):
        generate_anchors("cat", pipeline_folder, tmp_path, count=2, draws=1)


def test_a_folder_that_cannot_be_written_is_named(pipeline_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ShadeFastError, match="file/castle: cannot be written: Not a directory; make room, or give"):
        generate_anchors("castle", pipeline_folder, tmp_path / "file", count=1, steps=1)


def test_the_prompt_names_the_concept(pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import StableDiffusionPipeline

    prompts = []
    call = StableDiffusionPipeline.__call__

    def recorded(self: Any, prompt: str, **options: Any) -> Any:
        prompts.append(prompt)
        return call(self, prompt, **options)

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", recorded)
    options: dict[str, Any] = {"count": 1, "steps": 1, "size": 64}
    generate_anchors("cat", pipeline_folder, tmp_path, **options)
    generate_anchors("cat", pipeline_folder, tmp_path, prompt="{concept} {in} oil", **options)
    assert prompts == ["a photo of cat", "cat {in} oil"]


def test_models_that_draw_nothing(pipeline_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for model in (empty, encoder_folder, pipeline_folder / "vae"):
        with pytest.raises(ShadeFastError, match=rf"model '{model}': not a text-to-image pipeline that loads"):
            generate_anchors("cat", model, tmp_path / "out", count=1, steps=1)
    with pytest.raises(ShadeFastError, match=r"does not draw with steps=1, size=63 \(.*divisible by 8"):
        generate_anchors("cat", pipeline_folder, tmp_path / "out", count=1, steps=1, size=63)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_pipeline_that_takes_no_prompt(tmp_path: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(tmp_path / "model")
    with pytest.raises(ShadeFastError, match=r"does not draw .* give a text-to-image pipeline"):
        generate_anchors("cat", tmp_path / "model", tmp_path / "out", count=1, steps=1)


@pytest.mark.parametrize("concept", ["", ".", "..", "../cat", "a/cat", "/cat"])
def test_a_concept_is_the_name_of_one_folder(concept: str, tmp_path: Path) -> None:
    with pytest.raises(ShadeFastError, match=r"concept '.*': it names a folder below"):
        generate_anchors(concept, tmp_path, tmp_path / "out")


def test_no_anchors_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ShadeFastError, match="count=0: give a whole number, at least 1"):
        generate_anchors("cat", tmp_path, tmp_path / "out", count=0)


def test_networks_that_share_their_weights_do_not_share_latents() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 4, 1)
    encoders = [load_encoder(nn.Sequential(layers[0], between, layers[1])) for between in (nn.ReLU(), nn.Tanh())]
    anchor = Anchor("one", [np.full((32, 32, 3), 200, np.uint8)])
    first, second = (anchor.latents(encoder, (32, 32)) for encoder in encoders)
    assert not torch.equal(first, second)
