"""Whole jobs, from files to files: a recipe is read, a model made smaller, healed, evaluated, timed and compared."""

from mpochain.jobs.comparing import compare
from mpochain.jobs.compressing import Compressed, compress_by, evaluate, time_models
from mpochain.jobs.healing import Healed, heal_by
from mpochain.jobs.recipe import Recipe, at_once, built_in_recipes
from mpochain.jobs.recipe_file import read_recipe
from mpochain.jobs.staging import Distilled, distill_by

__all__ = [
    "Compressed",
    "Distilled",
    "Healed",
    "Recipe",
    "at_once",
    "built_in_recipes",
    "compare",
    "compress_by",
    "distill_by",
    "evaluate",
    "heal_by",
    "read_recipe",
    "time_models",
]
