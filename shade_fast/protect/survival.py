"""How much of the latent shift is left after what may happen to a file (`views.treatments`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from shade_fast.encoders import Encoder, load_encoder
from shade_fast.engine import kernels, resolve_backend, run_by
from shade_fast.images import DecodedImage, ImageLike, UInt8Array, decode
from shade_fast.images.batch import listed
from shade_fast.protect.outcome import mean_share
from shade_fast.runtime import exact_products
from shade_fast.system.pulse import pulse
from shade_fast.terms.errors import ShadeFastError
from shade_fast.views import View
from shade_fast.views.treatments import TREATMENTS, Treatment


@dataclass(frozen=True)
class Survival:
    """The share of the latent shift that is left, by image and treatment.

    encoder: its name. names: the images'. shares: treatment -> one share for each image; 1.0 is all of the shift, 0
    none, below 0 a shift the other way, NaN where there was no shift. Such images are left out of what follows.
    """

    encoder: str
    names: tuple[str, ...]
    shares: Mapping[str, tuple[float, ...]]

    @property
    def means(self) -> dict[str, float]:
        """Treatment -> mean share over the images."""
        return {name: mean_share(shares) for name, shares in self.shares.items()}

    def table(self) -> str:
        """The means and the extremes, as text."""
        width = max(map(len, self.shares))
        lines = [f"share of the latent shift left, encoder {self.encoder}, {len(self.names)} images"]
        lines.append(f"{'treatment':<{width}}    mean     least    most")
        for name, shares in self.shares.items():
            measured = [share for share in shares if math.isfinite(share)] or [math.nan]
            least, most = min(measured), max(measured)
            lines.append(f"{name:<{width}}  {mean_share(shares):>6.1%}  {least:>8.1%}  {most:>6.1%}")
        return "\n".join(lines)

    def plot(self, path: str | Path) -> Path:
        """Draw the means as bars, the images as points, into an image file (svg, png, pdf). Needs matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ShadeFastError(f"plots need matplotlib ({error}): pip install 'shade-fast[bench]'") from error
        path = Path(path)
        figure = Figure(figsize=(7, 0.6 + 0.35 * len(self.shares)), layout="constrained")
        panel = figure.subplots()
        places = range(len(self.shares))
        panel.barh(places, list(self.means.values()), height=0.7, color="#f0a070")
        for place, shares in zip(places, self.shares.values(), strict=True):
            panel.plot(shares, [place] * len(shares), ".", color="#7c2d12", markersize=4)
        panel.set_yticks(places, list(self.shares))
        panel.invert_yaxis()
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_xlabel(f"share of the latent shift left, encoder {self.encoder}")
        panel.spines[["top", "right"]].set_visible(False)
        try:
            figure.savefig(path)
        except (OSError, ValueError) as error:
            raise ShadeFastError(f"{path}: cannot be drawn ({error}); give a path that ends in .svg or .png") from error
        return path


def survival(
    clean: Sequence[ImageLike] | Tensor,
    perturbed: Sequence[ImageLike] | Tensor,
    encoder: Any = "embedded",
    *,
    view: View = View(size=512),
    treatments: Mapping[str, Treatment] | None = None,
    backend: str = "auto",
) -> Survival:
    """Measure how much of the latent shift that a perturbation made is left after each treatment of the file.

        shift = E(x_adv) - E(x),  shift_T = E(T(x_adv)) - E(T(x)),  share = ⟨shift_T, G(shift)⟩ / ‖G(shift)‖²

    E is the encoder through the view, T the treatment, by Pillow's codecs and filters on uint8 pixels, and G what a
    crop or a flip does to latents.

    clean, perturbed: paths, PIL images or uint8 arrays [H, W, C], or uint8 [N, 3, H, W]; pairs of one size.
    encoder: what `load_encoder` takes. view: what a trainer's loader does; its random transforms are left out.
    treatments: name -> treatment, default `TREATMENTS`: JPEG 90, 75, 60, WebP 80, resize to 75% and 50% and back
        (bicubic), 10% cut off and resized back, Gaussian noise of 0.03, a flip, three passes of a 3x3 median filter.
    backend: what executes the encoder. Runs on the CPU.

    Raises ShadeFastError for no images, an image that cannot be decoded, and pairs of different sizes.
    """
    clean, perturbed = listed(clean, "clean"), listed(perturbed, "perturbed")
    if len(clean) != len(perturbed):
        raise ShadeFastError(f"{len(clean)} clean and {len(perturbed)} perturbed images: give pairs")
    pairs = ((decode(before), decode(after)) for before, after in zip(clean, perturbed, strict=True))
    return survival_of_pairs(pairs, encoder, view=view, treatments=treatments, backend=backend)


def survival_of_pairs(
    pairs: Iterable[tuple[DecodedImage, DecodedImage]],
    encoder: Any = "embedded",
    *,
    view: View = View(size=512),
    treatments: Mapping[str, Treatment] | None = None,
    backend: str = "auto",
) -> Survival:
    """`survival` of any number of (clean, perturbed) images, of which one pair is held at a time."""
    backend = resolve_backend(backend, torch.device("cpu"))
    loaded = run_by(backend, load_encoder(encoder))
    treatments = TREATMENTS if treatments is None else treatments
    names, rows = [], []
    for clean, perturbed in pairs:
        before, after = clean.pixels, perturbed.pixels
        if before.shape != after.shape:
            raise ShadeFastError(
                f"{perturbed.name}: {after.shape[1]}x{after.shape[0]} pixels, but {clean.name} has "
                f"{before.shape[1]}x{before.shape[0]}; give the clean image that it was made from"
            )
        names.append(perturbed.name)
        rows.append(shares([loaded], before, after, view=view, treatments=treatments, backend=backend))
    if not rows:
        raise ShadeFastError("no images to measure; an archive has some once a shard is finished")
    return Survival(loaded.name, tuple(names), {name: tuple(row[name] for row in rows) for name in treatments})


@torch.no_grad()
def shares(
    encoders: Sequence[Encoder],
    clean: UInt8Array,
    perturbed: UInt8Array,
    *,
    view: View,
    treatments: Mapping[str, Treatment],
    backend: str,
) -> dict[str, float]:
    """`survival` of one image, uint8 [H, W, 3]; of several encoders the mean. NaN where there was no shift."""

    def latent(encoder: Encoder, pixels: UInt8Array) -> Tensor:
        pulse()
        images = torch.tensor(pixels).permute(2, 0, 1)[None].to(encoder.device) / 255
        plan = view.plan(pixels.shape[0], pixels.shape[1], encoder.factor)
        with exact_products(encoder.device):
            return encoder.encode(plan.apply(images, backend=kernels(backend)))

    shifts = [latent(encoder, perturbed) - latent(encoder, clean) for encoder in encoders]
    left = {}
    for name, treatment in treatments.items():
        before, after = treatment.apply(clean), treatment.apply(perturbed)
        each = []
        for encoder, shift in zip(encoders, shifts, strict=True):
            moved = shift if treatment.latent is None else treatment.latent(shift)
            shown = latent(encoder, after) - latent(encoder, before)
            each.append(float((shown * moved).sum() / (moved * moved).sum()))
        left[name] = fmean(each)
    return left
