"""The paper's questions (arXiv 2310.13828) as experiments, each answered by a table, a plot, a sheet and a
paragraph."""

from shade_fast.study.experiments.registry import EXPERIMENTS
from shade_fast.study.experiments.run import run_experiments
from shade_fast.study.experiments.scale import FULL, SMOKE, Scale

__all__ = ["EXPERIMENTS", "FULL", "SMOKE", "Scale", "run_experiments"]
