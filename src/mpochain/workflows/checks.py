"""Checks of a recipe's inputs before a model is read: models, texts, layers and packages, all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from mpochain.checkpoint import is_checkpoint
from mpochain.compression import select
from mpochain.distributed import team_of_group
from mpochain.errors import MissingDependencyError, MPOError, RecipeError
from mpochain.language import require_window
from mpochain.language.lookup import missing_package, sketch, source_problem
from mpochain.validation import listed
from mpochain.workflows.recipe import Recipe
from mpochain.workflows.texts import seen_texts, text_problem

__all__ = ["require_found", "require_inputs"]


def require_inputs(
    recipe: Recipe, sections: Sequence[str], *, model: Path | None = None, teacher: str | None = None
) -> None:
    """Check the inputs of a recipe, and list every problem.

    Args:
        recipe: recipe that names the model and the texts.
        sections: sections whose texts are read; sections that the recipe lacks are skipped.
        model: folder of a compressed model that is read instead of the recipe's dense one.
        teacher: source of another model to learn from.

    Raises:
        RecipeError: a model, text or layer does not exist, the evaluation text is also used for calibration or
            finetuning, a window is longer than the model's context, the recipe's model is already compressed, or its
            device is one of several processes.
        MissingDependencyError: only an optional package is missing.
    """
    texts = {f"{name}.text": getattr(recipe, name).text for name in sections if getattr(recipe, name) is not None}
    if "evaluation" in sections and recipe.evaluation is not None:
        texts |= {f"evaluation.also[{number}]": text for number, text in enumerate(recipe.evaluation.also)}
    processes = team_of_group().size
    if processes > 1 and ":" in recipe.device:
        raise RecipeError(
            f"device: {processes} processes cannot share {recipe.device}; give {recipe.device.partition(':')[0]}, the "
            "one of each process"
        )
    models = {"model": recipe.model if model is None else model}
    if teacher is not None:
        models["teacher"] = teacher
    problems = [*_model_problems(recipe, sections, model), *_use_problems(recipe, sections, set(texts.values()))]
    require_found(models, texts, problems)


def require_found(
    models: Mapping[str, str | Path], texts: Mapping[str, Path] | None = None, problems: Iterable[str] = ()
) -> None:
    """Check that models and texts exist and that the packages to read them are installed, and list every problem.

    Args:
        models: sources by role, see :func:`mpochain.language.load_language_model`.
        texts: texts by the option or field that names them.
        problems: problems found already.

    Raises:
        RecipeError: something does not exist.
        MissingDependencyError: only an optional package is missing.

    Example:
        >>> require_found({"model": "./nowhere"}, {"--text": Path("none.txt")})
        Traceback (most recent call last):
        ...
        mpochain.errors.RecipeError: the inputs: 2 problems
          model: there is no folder or .gguf file './nowhere'
          --text: cannot read the text none.txt: there is no such file
    """
    problem_of = {role: source_problem(source) for role, source in models.items()}
    problem_of |= {name: text_problem(text) for name, text in (texts or {}).items()}
    wrong = [f"{name}: {problem}" for name, problem in problem_of.items() if problem is not None]
    wrong += problems
    packages = sorted({package for package in map(missing_package, models.values()) if package is not None})
    if not wrong and packages:
        raise MissingDependencyError(packages[0])
    wrong += packages
    if wrong:
        raise RecipeError(wrong[0] if len(wrong) == 1 else listed("the inputs", wrong))


def _use_problems(recipe: Recipe, sections: Sequence[str], texts: set[Path]) -> list[str]:
    """Uses of evaluation texts, if all texts can be read."""
    if "evaluation" not in sections or any(text_problem(text) is not None for text in texts):
        return []
    return seen_texts(recipe)


def _model_problems(recipe: Recipe, sections: Sequence[str], model: Path | None) -> Iterator[str]:
    """Problems that the architecture of a model shows, without its weights."""
    if model is not None:
        if source_problem(model) is None and not is_checkpoint(model):
            yield f"{model} holds no compressed model; compress it first"
        return
    if is_checkpoint(Path(recipe.model)):
        yield f"{recipe.model} is already compressed; start from the dense model, or convert it first"
        return
    dense = sketch(recipe.model)
    if dense is None:
        return
    for name in sections:
        section = getattr(recipe, name)
        if section is not None:
            yield from _problem(f"{name}: ", require_window, dense, section.window)
    yield from _layer_problems(recipe, dense)


def _layer_problems(recipe: Recipe, dense: nn.Module) -> Iterator[str]:
    """Patterns that match nothing."""
    method = recipe.chosen_method()
    kinds = {"embeddings": method.embeddings, "linear": method.linear}
    for pattern in recipe.targets or ():
        yield from _problem("", select, dense, [pattern], **kinds)
    for pattern in recipe.ignore:
        yield from _problem("", select, dense, [], [pattern])
    for stage in recipe.stages:
        for pattern in (pattern for group in stage.groups for pattern in group.targets):
            yield from _problem(f"stage {stage.name}: ", select, dense, [pattern], embeddings=True)


def _problem(prefix: str, check: Callable[..., object], *arguments: Any, **options: Any) -> Iterator[str]:
    try:
        check(*arguments, **options)
    except MPOError as error:
        yield f"{prefix}{error}"
