"""shade_fast: bulk image protection. Nightshade perturbations (arXiv 2310.13828) as a high-performance engine.

What is public is imported when it is first asked for: a process that only decodes images never loads torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shade_fast.anchors import Anchor, AnchorLibrary, generate_anchors
    from shade_fast.api.export import export_onnx
    from shade_fast.api.fit import fit_start
    from shade_fast.api.poison import poison_batch
    from shade_fast.api.poisoner import PRESETS, Poisoner
    from shade_fast.archive import ArchiveReport, archive_status, poison_archive, verify_archive
    from shade_fast.encoders import Encoder, load_encoder
    from shade_fast.perceptual import load_perceptual
    from shade_fast.protect.outcome import PoisonedImage, PoisonResult
    from shade_fast.protect.survival import Survival, survival
    from shade_fast.protect.warm_start import WarmStart
    from shade_fast.report import write_report
    from shade_fast.terms.budget import Budget
    from shade_fast.terms.errors import ShadeFastError
    from shade_fast.terms.limits import Access, Limits
    from shade_fast.terms.version import __version__
    from shade_fast.views import View

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
        "api.export": ("export_onnx",),
        "api.fit": ("fit_start",),
        "api.poison": ("poison_batch",),
        "api.poisoner": ("PRESETS", "Poisoner"),
        "archive": ("ArchiveReport", "archive_status", "poison_archive", "verify_archive"),
        "encoders": ("Encoder", "load_encoder"),
        "perceptual": ("load_perceptual",),
        "protect.outcome": ("PoisonResult", "PoisonedImage"),
        "protect.survival": ("Survival", "survival"),
        "protect.warm_start": ("WarmStart",),
        "report": ("write_report",),
        "terms.budget": ("Budget",),
        "terms.errors": ("ShadeFastError",),
        "terms.limits": ("Access", "Limits"),
        "terms.version": ("__version__",),
        "views": ("View",),
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
