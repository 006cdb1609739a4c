"""What protection does to a trained generator, and the tools around it: selection, sparsity, poison sets, a small
generator, its judge (`shade_fast.study.experiments`: the paper's questions). Needs `pip install
'shade-fast[study]'`."""

from shade_fast.study.clip import Clip
from shade_fast.study.compose import Ingredient, Recipe, compose
from shade_fast.study.generator import Generator, GeneratorShape
from shade_fast.study.judge import Classifier, ClipJudge, train_classifier
from shade_fast.study.pool import Pair, read_captions, read_pool
from shade_fast.study.pools import judge_pool, train_judge_on_pool, train_on_pools, write_samples
from shade_fast.study.sampling import sample, sample_pipeline
from shade_fast.study.select import Selected, read_selected, select, write_selected
from shade_fast.study.sparsity import Sparsity, sparsity, sparsity_table, write_sparsity
from shade_fast.study.text import SentenceEncoder
from shade_fast.study.training import Checkpoint, Examples, Schedule, train

__all__ = [
    "Checkpoint",
    "Classifier",
    "Clip",
    "ClipJudge",
    "Examples",
    "Generator",
    "GeneratorShape",
    "Ingredient",
    "Pair",
    "Recipe",
    "Schedule",
    "Selected",
    "SentenceEncoder",
    "Sparsity",
    "compose",
    "judge_pool",
    "read_captions",
    "read_pool",
    "read_selected",
    "sample",
    "sample_pipeline",
    "select",
    "sparsity",
    "sparsity_table",
    "train",
    "train_classifier",
    "train_judge_on_pool",
    "train_on_pools",
    "write_samples",
    "write_selected",
    "write_sparsity",
]
