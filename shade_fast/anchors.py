"""Anchors: images of the target concept, whose latents the protected images are moved to."""

from __future__ import annotations

import difflib
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional

from shade_fast.checks import at_least
from shade_fast.encoders import Encoder, load_encoder
from shade_fast.errors import ShadeFastError, reason
from shade_fast.hub import load_pipeline
from shade_fast.images import INPUT_SUFFIXES, UInt8Array, decode
from shade_fast.pulse import pulse

ImageLike = str | Path | Image.Image | UInt8Array
Target = ImageLike | torch.Tensor
_ONE_IMAGE = (str, Path, Image.Image, np.ndarray)

#: Latents of this many views are kept for each anchor; an archive has few shapes, but may have many.
CACHED_VIEWS = 32


class Anchor:
    """One target: images of a concept, or a latent.

    name: shown in results. images: one or more paths, PIL images or uint8 arrays [H, W, C], decoded when first used.
    latent: [C, h, w] or [1, C, h, w], instead of images; resampled where a view's latent has another size.
    paths: where images that are given as pixels came from.
    Raises ShadeFastError for neither or both, and for a latent that has another shape or is not finite.
    """

    def __init__(
        self,
        name: str,
        images: Iterable[ImageLike] | ImageLike = (),
        latent: torch.Tensor | None = None,
        *,
        paths: Sequence[str] | None = None,
    ) -> None:
        images = (images,) if isinstance(images, _ONE_IMAGE) else tuple(images)
        if bool(images) == (latent is not None):
            raise ShadeFastError(f"anchor {name!r}: give one or more images, or a latent")
        self.name = name
        self.paths: tuple[str | None, ...] = tuple(
            paths or (str(image) if isinstance(image, str | Path) else None for image in images)
        )
        self._images = images
        self._latent = None if latent is None else _checked_latent(latent, name)
        self._cache: dict[tuple[Any, ...], torch.Tensor] = {}
        self._checked = False

    def __len__(self) -> int:
        return max(1, len(self._images))

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: not the latents, which are made again where they are needed."""
        return self.__dict__ | {"_cache": {}}

    def check(self) -> Anchor:
        """This anchor, its images having been decoded once. Raises ShadeFastError for one that cannot be."""
        if not self._checked:
            for image in self._images:
                decode(image)
            self._checked = True
        return self

    @property
    def is_latent(self) -> bool:
        """Whether this is a latent, which fits only encoders with as many channels."""
        return self._latent is not None

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the images as decoded, in order, or of the latent."""
        digest = hashlib.sha256()
        if self._latent is not None:
            digest.update(f"latent {list(self._latent.shape)}".encode())
            digest.update(self._latent.cpu().contiguous().numpy().tobytes())
        for image in self._images:
            pixels = decode(image).pixels
            digest.update(f"image {pixels.shape}".encode())
            digest.update(pixels.tobytes())
        return digest.hexdigest()

    def latents(self, encoder: Encoder, size: tuple[int, int]) -> torch.Tensor:
        """The candidates' latents [K, C, h, w] for a view of `size` (height, width) pixels; kept per encoder and size.

        An image is scaled to cover the view, aspect kept, and cropped at its centre.
        """
        # The hash is of weights alone: of the kinds whose architecture is the caller's, networks may share it.
        own = encoder.sha256 is None or encoder.kind in ("module", "callable")
        key = (encoder if own else encoder.sha256, encoder.name, encoder.factor, encoder.device, size)
        if key not in self._cache:
            while len(self._cache) >= CACHED_VIEWS:
                del self._cache[next(iter(self._cache))]
            self._cache[key] = self._encode(encoder, size)
        return self._cache[key]

    @torch.no_grad()
    def _encode(self, encoder: Encoder, size: tuple[int, int]) -> torch.Tensor:
        height, width = size
        if self._latent is not None:
            if self._latent.shape[1] != encoder.channels:
                raise ShadeFastError(
                    f"anchor {self.name!r}: a latent of {self._latent.shape[1]} channels; "
                    f"encoder {encoder.name!r} has {encoder.channels}"
                )
            latent = self._latent.to(encoder.device)
            return functional.interpolate(
                latent, size=(height // encoder.factor, width // encoder.factor), mode="bilinear", antialias=True
            )
        latents = []
        for image in self._images:
            pulse()
            picture = Image.fromarray(decode(image).pixels)
            covering = ImageOps.fit(picture, (width, height), method=Image.Resampling.BILINEAR)
            pixels = torch.frombuffer(bytearray(covering.tobytes()), dtype=torch.uint8).view(height, width, 3)
            latents.append(encoder.encode(pixels.to(encoder.device).permute(2, 0, 1)[None] / 255))
        return torch.cat(latents)


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
            images = _images_in(entry) if entry.is_dir() else [entry] if _is_image(entry) else []
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
    image that cannot be decoded: it is named now, not once for every image protected.
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
    Raises ShadeFastError where the pipeline cannot be loaded or does not draw, naming the model and the mend, and where
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
    return [path for path in sorted(folder.iterdir()) if _is_image(path)]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in INPUT_SUFFIXES


def _checked_latent(latent: torch.Tensor, name: str) -> torch.Tensor:
    if latent.ndim == 3:
        latent = latent[None]
    if latent.ndim != 4 or latent.shape[0] != 1 or latent.numel() == 0 or not latent.is_floating_point():
        raise ShadeFastError(
            f"anchor {name!r}: a {latent.dtype} tensor of shape {tuple(latent.shape)}; "
            "give a float latent [C, h, w] or [1, C, h, w]"
        )
    if not bool(torch.isfinite(latent).all()):
        raise ShadeFastError(f"anchor {name!r}: the latent holds NaN or infinite values; encode it again")
    return latent.detach().float()
