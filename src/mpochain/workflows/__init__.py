"""Whole jobs, from files to files: a recipe is read, a model made smaller, healed, evaluated, timed and compared."""

from mpochain.workflows.comparing import compare
from mpochain.workflows.compressing import Compressed, compress_by, evaluate, time_models
from mpochain.workflows.healing import Healed, heal_by
from mpochain.workflows.recipe import Recipe, at_once, built_in_recipes
from mpochain.workflows.recipe_file import read_recipe
from mpochain.workflows.staging import Distilled, distill_by

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
