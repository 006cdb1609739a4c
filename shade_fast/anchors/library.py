"""Anchors by name: a folder of images for each concept, and how one is made."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from shade_fast.anchors.anchor import Anchor, Target
from shade_fast.encoders import load_encoder
from shade_fast.encoders.hub import load_pipeline
from shade_fast.images import INPUT_SUFFIXES, ImageLike, decode, is_image
from shade_fast.terms.checks import at_least
from shade_fast.terms.errors import ShadeFastError, reason


class AnchorLibrary(Mapping[str, Anchor]):
    """Named target concepts with one or more images each; where there are several, an image is given its nearest.

    concepts: name -> images (paths, PIL images or uint8 arrays [H, W, C]). Looking up an unknown name raises
    ShadeFastError and suggests the nearest.
    """

    def __init__(self, concepts: Mapping[str, Iterable[ImageLike] | ImageLike]) -> None:
        self._anchors = {name: Anchor(name, images) for name, images in concepts.items()}
        #: where `from_folder` found it
        self.folder: str | None = None

    @classmethod
    def embedded(cls) -> AnchorLibrary:
        """The few concepts that come with the package."""
        return _embedded()

    @classmethod
    def from_folder(cls, folder: str | Path) -> AnchorLibrary:
        """A library from a folder: each subfolder is a concept with its images, each single image one by itself."""
        folder = Path(folder)
        if not folder.is_dir():
            raise ShadeFastError(f"{folder}: not a folder; give one with a subfolder of images for each concept")
        concepts: dict[str, list[ImageLike]] = {}
        for entry in sorted(folder.iterdir()):
            images = _images_in(entry) if entry.is_dir() else [entry] if is_image(entry.name) else []
            if images:
                concepts.setdefault(entry.name if entry.is_dir() else entry.stem, []).extend(images)
        if not concepts:
            raise ShadeFastError(f"{folder}: holds no images ({', '.join(INPUT_SUFFIXES)})")
        library = cls(concepts)
        library.folder = str(folder.resolve())
        return library

    def __getitem__(self, name: str) -> Anchor:
        if name in self._anchors:
            return self._anchors[name]
        raise ShadeFastError(f"no anchor {name!r}{self.suggestion(name)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._anchors)

    def __len__(self) -> int:
        return len(self._anchors)

    def __contains__(self, name: object) -> bool:
        return name in self._anchors

    def suggestion(self, name: str) -> str:
        """The end of an error message: the nearest name where one is near, and all of them."""
        names = {known.lower(): known for known in self._anchors}
        near = difflib.get_close_matches(name.lower(), names, n=1)
        return (
            f"; did you mean {names[near[0]]!r}?" if near else ";"
        ) + f" the library has {', '.join(sorted(self._anchors))}"


def resolve_anchor(target: Target | Anchor, library: AnchorLibrary) -> Anchor:
    """The anchor that a caller means: a library's name, a path (image or folder), an image, or a latent tensor.

    Raises ShadeFastError for a name that is neither in the library nor a path (with the nearest), other types, and an
    image that cannot be decoded. The error comes now, and not again for every image protected.
    """
    if isinstance(target, Anchor):
        return target.check()
    if isinstance(target, torch.Tensor):
        return Anchor("latent", latent=target)
    if isinstance(target, str | Path):
        return (library[str(target)] if str(target) in library else _from_path(Path(target), library)).check()
    if isinstance(target, Image.Image):
        return Anchor("PIL image", [target]).check()
    return Anchor("array", [decode(target, "target").pixels])


def generate_anchors(
    concept: str,
    model: str | Path,
    out: str | Path,
    *,
    count: int = 4,
    prompt: str = "a photo of {concept}",
    steps: int = 50,
    size: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    draws: int | None = None,
) -> list[Path]:
    """Draw `count` anchor images of a concept with a diffusers text-to-image pipeline, as PNG files in out/concept.

    model: a pipeline's local folder, hub:owner/name, or owner/name of one in the hub's cache.
    size: pixels of the square drawn, None for the model's own.
    draws: draw so many and keep the `count` most typical, whose latents under the pipeline's own autoencoder are
        nearest to the mean of all; None: as many as are kept.
    The image of index i has seed + i. `out` is then a folder for `AnchorLibrary.from_folder`.
    Raises ShadeFastError where the pipeline cannot be loaded or does not draw, naming the model and the fix, and where
    an image cannot be written.
    """
    count, steps = at_least("count", count), at_least("steps", steps)
    if draws is not None and at_least("draws", draws) < count:
        raise ShadeFastError(f"draws={draws}: {count} of them are to be kept; draw at least as many")
    if concept in ("", ".", "..") or Path(concept).name != concept:
        raise ShadeFastError(f"concept {concept!r}: it names a folder below {out}; give a word without slashes")
    try:
        pipeline = load_pipeline(model, device)
    except Exception as error:  # diffusers raises many kinds, from its own and from its libraries.
        raise ShadeFastError(
            f"model {str(model)!r}: not a text-to-image pipeline that loads ({reason(error)}); give a pipeline's "
            "folder or hub:owner/name, and install what it needs (pip install 'shade-fast[anchors]')"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    vae: Any = getattr(pipeline, "vae", None)
    if draws is not None and vae is None:
        raise ShadeFastError(f"model {str(model)!r}: has no autoencoder that tells typical draws; leave out draws")
    options = {} if size is None else {"height": size, "width": size}

    def draw(index: int) -> Image.Image:
        generator = torch.Generator(device="cpu").manual_seed(seed + index)
        try:
            drawn: Image.Image = pipeline(
                prompt.replace("{concept}", concept), num_inference_steps=steps, generator=generator, **options
            ).images[0]
        except Exception as error:  # a pipeline's own checks of its options, and one that takes no prompt
            raise ShadeFastError(
                f"model {str(model)!r}: does not draw with steps={steps}, size={size} ({reason(error)}); "
                "change these, or give a text-to-image pipeline"
            ) from error
        return drawn

    folder = Path(out) / concept
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritten(folder, error) from error
    kept: Iterable[tuple[int, Image.Image]] = ((index, draw(index)) for index in range(count))
    if draws is not None:
        drawn = [draw(index) for index in range(draws)]
        width, height = drawn[0].size
        typical = most_typical(Anchor(concept, drawn).latents(load_encoder(vae, device), (height, width)), count)
        kept = [(index, drawn[index]) for index in sorted(typical)]
    paths = []
    for index, image in kept:
        paths.append(folder / f"{seed + index:04d}.png")
        try:
            image.save(paths[-1])
        except OSError as error:
            raise _unwritten(paths[-1], error) from error
    return paths


def _unwritten(path: Path, error: OSError) -> ShadeFastError:
    return ShadeFastError(f"{path}: cannot be written: {error.strerror or error}; make room, or give another folder")


def most_typical(latents: torch.Tensor, count: int) -> list[int]:
    """Which `count` of latents [N, ...] are nearest to the mean of all, the nearest first."""
    flat = latents.flatten(1)
    chosen: list[int] = (flat - flat.mean(0)).norm(dim=1).argsort()[:count].tolist()
    return chosen


def _from_path(path: Path, library: AnchorLibrary) -> Anchor:
    try:
        if path.is_dir():
            images = _images_in(path)
            if not images:
                raise ShadeFastError(f"target {str(path)!r}: the folder holds no images ({', '.join(INPUT_SUFFIXES)})")
            return Anchor(path.resolve().name, images)
        if path.exists():
            return Anchor(path.name, [path])
    except OSError as error:  # a name too long for a path, a folder that may not be read
        raise ShadeFastError(f"target {str(path)!r}: cannot be read: {error.strerror}") from error
    raise ShadeFastError(f"target {str(path)!r}: neither an anchor nor a path{library.suggestion(str(path))}")


@functools.cache
def _embedded() -> AnchorLibrary:
    return AnchorLibrary.from_folder(Path(str(resources.files("shade_fast") / "data" / "anchors")))


def _images_in(folder: Path) -> list[ImageLike]:
    return [path for path in sorted(folder.iterdir()) if is_image(path.name)]
