"""The optimisation: tensors in, tensors out, no files."""

from shade_fast.engine.capture import is_out_of_memory
from shade_fast.engine.devices import BACKENDS, kernels, resolve_backend, resolve_device, resolve_devices, run_by
from shade_fast.engine.footprint import Footprint
from shade_fast.engine.optimizers import OPTIMIZERS, check_optimizer, optimize
from shade_fast.engine.problem import Problem
from shade_fast.engine.projection import Codec, Projected, project, project_to_files
from shade_fast.engine.slots import Optimized, Slots, played
from shade_fast.engine.stopping import NEVER, Stopping
from shade_fast.engine.together import optimize_together

__all__ = [
    "BACKENDS",
    "NEVER",
    "OPTIMIZERS",
    "Codec",
    "Footprint",
    "Optimized",
    "Problem",
    "Projected",
    "Slots",
    "Stopping",
    "is_out_of_memory",
    "kernels",
    "optimize",
    "optimize_together",
    "check_optimizer",
    "played",
    "project",
    "project_to_files",
    "resolve_backend",
    "resolve_device",
    "resolve_devices",
    "run_by",
]
