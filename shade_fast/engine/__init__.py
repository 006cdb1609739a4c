"""The optimisation: tensors in, tensors out, no files."""

from shade_fast.engine.devices import BACKENDS, kernels, resolve_backend, resolve_device
from shade_fast.engine.optimizers import OPTIMIZERS, check_optimizer, optimize
from shade_fast.engine.problem import Problem
from shade_fast.engine.projection import Codec, Projected, project, project_to_files

__all__ = [
    "BACKENDS",
    "OPTIMIZERS",
    "Codec",
    "Problem",
    "Projected",
    "kernels",
    "optimize",
    "check_optimizer",
    "project",
    "project_to_files",
    "resolve_backend",
    "resolve_device",
]
