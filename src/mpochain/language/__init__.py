"""Language models: loading and saving, token windows of text, perplexity, generation and speed."""

from mpochain.language.generation import generate
from mpochain.language.perplexity import Perplexity, perplexity
from mpochain.language.source import (
    LanguageModel,
    load_language_model,
    require_no_model,
    save_dense,
    save_language_model,
)
from mpochain.language.speed import Speed, compare_speed
from mpochain.language.tasks import TaskScore, evaluate_tasks
from mpochain.language.text import read_tokens, require_window, windows

__all__ = [
    "LanguageModel",
    "Perplexity",
    "Speed",
    "TaskScore",
    "compare_speed",
    "evaluate_tasks",
    "generate",
    "load_language_model",
    "perplexity",
    "read_tokens",
    "require_no_model",
    "require_window",
    "save_dense",
    "save_language_model",
    "windows",
]
