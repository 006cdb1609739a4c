"""shade_fast: bulk image protection. Nightshade perturbations (arXiv 2310.13828) as a high-performance engine."""

from shade_fast.anchors import Anchor, AnchorLibrary, generate_anchors
from shade_fast.archive import ArchiveReport, archive_status, poison_archive, verify_archive
from shade_fast.budget import Budget
from shade_fast.encoders import Encoder, load_encoder
from shade_fast.errors import ShadeFastError
from shade_fast.export import export_onnx
from shade_fast.fit import fit_start
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
    "Anchor",
    "AnchorLibrary",
    "ArchiveReport",
    "Budget",
    "Encoder",
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
