"""Whole jobs, from files to files: a recipe is read, a model made smaller, evaluated, timed, reported and compared."""

from mpochain.jobs.compressing import Compressed, compress_by, evaluate, time_models
from mpochain.jobs.recipe import Recipe, read_recipe

__all__ = ["Compressed", "Recipe", "compress_by", "evaluate", "read_recipe", "time_models"]
