"""The Triton kernels: one module an op. A wheel carries them here; in the source tree they stand in `kernels/`."""

from __future__ import annotations

from pathlib import Path

_here = Path(__file__).resolve().parent
if not (_here / "latent_distance.py").is_file():
    __path__.append(str(_here.parents[1] / "kernels"))
