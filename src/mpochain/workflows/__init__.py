"""Recipe-driven workflows from files to files: compress, finetune, distill and compare language models."""

from mpochain.workflows.comparing import compare
from mpochain.workflows.compressed import Compressed
from mpochain.workflows.compressing import compress_by
from mpochain.workflows.finetuning import Finetuned, finetune_by
from mpochain.workflows.inputs import evaluate
from mpochain.workflows.recipe import Recipe, at_once, built_in_recipes, example_recipes
from mpochain.workflows.recipe_file import read_recipe
from mpochain.workflows.staging import Distilled, distill_by
from mpochain.workflows.timing import time_models

__all__ = [
    "Compressed",
    "Distilled",
    "Finetuned",
    "Recipe",
    "at_once",
    "built_in_recipes",
    "compare",
    "compress_by",
    "distill_by",
    "evaluate",
    "example_recipes",
    "finetune_by",
    "read_recipe",
    "time_models",
]
