"""A warm start: the perturbation that images of one anchor begin with, kept in a file with what it was fitted for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from shade_fast.anchors import Anchor
from shade_fast.encoders import Encoder
from shade_fast.ops import resize
from shade_fast.system.files import write_whole
from shade_fast.terms.errors import ShadeFastError

Size = tuple[int, int]

#: Name of the entry in a file's metadata.
_METADATA = "shade_fast_warm_start"


@dataclass(frozen=True, eq=False)
class WarmStart:
    """Perturbations fitted to a sample of images, one for each size of view that the sample had.

    perturbations: (height, width) of a view in pixels -> float32 [K, 3, height, width] in [-1, 1], units of linf, one
        for each of the anchor's K images.
    anchor_sha256: hash of the anchor. encoder_sha256: of each encoder's weights, in order.
    images, steps: how many images it was fitted to, and for how many steps.
    """

    perturbations: dict[Size, torch.Tensor]
    anchor_sha256: str
    encoder_sha256: tuple[str, ...]
    images: int
    steps: int

    @property
    def sha256(self) -> str:
        """Hash of what images begin with."""
        digest = hashlib.sha256()
        for size in sorted(self.perturbations):
            value = self.perturbations[size]
            digest.update(f"{size} {len(value)}".encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | PathLike[str]) -> None:
        """Write a .safetensors file, and its folder where it is not there. Raises ShadeFastError where it cannot be
        written."""
        facts = {
            "anchor_sha256": self.anchor_sha256,
            "encoder_sha256": list(self.encoder_sha256),
            "images": self.images,
            "steps": self.steps,
        }
        tensors = {
            f"{height}x{width}": (127 * value).round().to(torch.int8).contiguous()
            for (height, width), value in self.perturbations.items()
        }
        try:
            write_whole(path, save(tensors, {_METADATA: json.dumps(facts)}))
        except OSError as error:
            raise ShadeFastError(f"{path}: the warm start cannot be written ({error}); give another file") from error

    @classmethod
    def load(cls, path: str | PathLike[str]) -> WarmStart:
        """Read what `save` wrote. Raises ShadeFastError for a file that is missing, or no warm start."""
        try:
            data = Path(path).read_bytes()
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            facts = json.loads(header["__metadata__"][_METADATA])
            perturbations = {}
            for name, tensor in load(data).items():
                height, width = map(int, name.split("x"))
                perturbations[height, width] = tensor.float() / 127
            return cls(
                perturbations=perturbations,
                anchor_sha256=facts["anchor_sha256"],
                encoder_sha256=tuple(facts["encoder_sha256"]),
                images=facts["images"],
                steps=facts["steps"],
            )
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ShadeFastError(
                f"{path}: no warm start that can be read ({error}); make one with `shade-fast fit`"
            ) from error

    def check(self, anchor: Anchor, encoders: Sequence[Encoder]) -> None:
        """Raise ShadeFastError where this was fitted to another anchor, or to other encoders."""
        if encoder_hashes(encoders) != self.encoder_sha256:
            raise ShadeFastError(
                f"warm start: fitted to other encoders than {' + '.join(encoder.name for encoder in encoders)}; "
                "fit one to these, or leave it out"
            )
        if anchor.sha256 != self.anchor_sha256:
            raise ShadeFastError(
                f"warm start: fitted to another anchor than {anchor.name!r}, or its images have changed; fit one to it"
            )

    def perturbation(self, pick: int, view: Size, size: Size) -> torch.Tensor:
        """What an image begins with, float32 [1, 3, *size] in units of linf.

        pick: which of the anchor's images it is moved to. view: its view's size, for which the nearest fitted one is
        taken. size: its own; the perturbation is resized to it, so that the view shows what was fitted.
        """
        nearest = min(
            self.perturbations,
            key=lambda fitted: sum(abs(math.log(side / other)) for side, other in zip(fitted, view, strict=True)),
        )
        return resize(self.perturbations[nearest][pick : pick + 1], size, backend="reference")


def encoder_hashes(encoders: Sequence[Encoder]) -> tuple[str, ...]:
    """Hashes that a warm start knows the encoders by. Raises ShadeFastError for an encoder without one."""
    hashes = tuple(encoder.sha256 for encoder in encoders if encoder.sha256 is not None)
    if len(hashes) < len(encoders):
        raise ShadeFastError(
            "warm start: an encoder that is a plain function has no hash to know it by; give a module or a file"
        )
    return hashes
