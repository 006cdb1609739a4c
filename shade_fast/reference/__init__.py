"""The published loops in plain PyTorch: ground truth and baseline, never tuned."""

from shade_fast.reference.paper import paper_loop
from shade_fast.reference.projected_descent import mist_loop, photoguard_loop
from shade_fast.reference.release import release_loop

__all__ = ["mist_loop", "paper_loop", "photoguard_loop", "release_loop"]
