"""Whole jobs, from files to files: a recipe is read, a model made smaller, healed, evaluated, timed and compared."""

from mpochain.jobs.comparing import compare
from mpochain.jobs.compressing import Compressed, compress_by, evaluate, time_models
from mpochain.jobs.healing import Healed, heal_by
from mpochain.jobs.recipe import Recipe, read_recipe

__all__ = [
    "Compressed",
    "Healed",
    "Recipe",
    "compare",
    "compress_by",
    "evaluate",
    "heal_by",
    "read_recipe",
    "time_models",
]
