"""shade_fast: bulk image protection. Nightshade perturbations (arXiv 2310.13828) as a high-performance engine.

What is public is imported when it is first asked for: a process that only decodes images never loads torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shade_fast.anchors import Anchor, AnchorLibrary, generate_anchors
    from shade_fast.archive import ArchiveReport, archive_status, poison_archive, verify_archive
    from shade_fast.budget import Budget
    from shade_fast.encoders import Encoder, load_encoder
    from shade_fast.errors import ShadeFastError
    from shade_fast.export import export_onnx
    from shade_fast.fit import fit_start
    from shade_fast.limits import Access, Limits
    from shade_fast.perceptual import load_perceptual
    from shade_fast.poison import poison_batch
    from shade_fast.poisoner import PRESETS, Poisoner
    from shade_fast.report import write_report
    from shade_fast.results import PoisonedImage, PoisonResult
    from shade_fast.survival import Survival, survival
    from shade_fast.version import __version__
    from shade_fast.view import View
    from shade_fast.warm_start import WarmStart

__all__ = [
    "Access",
    "Anchor",
    "AnchorLibrary",
    "ArchiveReport",
    "Budget",
    "Encoder",
    "Limits",
    "PRESETS",
    "PoisonResult",
    "PoisonedImage",
    "Poisoner",
    "ShadeFastError",
    "Survival",
    "View",
    "WarmStart",
    "__version__",
    "archive_status",
    "export_onnx",
    "fit_start",
    "generate_anchors",
    "load_encoder",
    "load_perceptual",
    "poison_archive",
    "poison_batch",
    "survival",
    "verify_archive",
    "write_report",
]

#: Public name -> the module that has it.
_HOMES = {
    name: module
    for module, names in {
        "anchors": ("Anchor", "AnchorLibrary", "generate_anchors"),
        "archive": ("ArchiveReport", "archive_status", "poison_archive", "verify_archive"),
        "budget": ("Budget",),
        "encoders": ("Encoder", "load_encoder"),
        "errors": ("ShadeFastError",),
        "export": ("export_onnx",),
        "fit": ("fit_start",),
        "limits": ("Access", "Limits"),
        "perceptual": ("load_perceptual",),
        "poison": ("poison_batch",),
        "poisoner": ("PRESETS", "Poisoner"),
        "report": ("write_report",),
        "results": ("PoisonResult", "PoisonedImage"),
        "survival": ("Survival", "survival"),
        "version": ("__version__",),
        "view": ("View",),
        "warm_start": ("WarmStart",),
    }.items()
    for name in names
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is not None:
        value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value
    if not name.startswith("__"):
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps a public function in place of the module of the same name, which its import would put there."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, getattr(value, name) if isinstance(value, ModuleType) and name in _HOMES else value)


sys.modules[__name__].__class__ = _Package
