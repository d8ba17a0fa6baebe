"""Compression of a stage's groups of layers, and checks of all stages before the first one starts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from mpochain.compression import Entangled, Method, Target, compress, select
from mpochain.compression.limit import Limit
from mpochain.errors import MPOError, RecipeError
from mpochain.language import LanguageModel
from mpochain.nn.dense import weight_and_bias
from mpochain.surgery.experts import separated_experts
from mpochain.surgery.tying import tied_linears
from mpochain.workflows.fields import seeded
from mpochain.workflows.recipe import Recipe
from mpochain.workflows.stage import Group, Stage
from mpochain.workflows.token_units import token_units

__all__ = ["compress_stage", "require_groups"]


def compress_stage(
    stage: Stage,
    model: nn.Module,
    *,
    tokenizer: Any = None,
    calibration: Iterable[Any] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Compress the layers of a stage in place, without any training.

    Args:
        stage: stage of a recipe.
        model: changed in place.
        tokenizer: transformers tokenizer, for groups with units.
        calibration: see :func:`mpochain.compress`.
        seed: seed of random numbers.

    Returns:
        The record of each layer, ready for JSON.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        >>> stage = Stage(name="first", groups=(Group(targets=("0",), budget=0.5, method="svd"),))
        >>> [(layer["name"], layer["parameters_after"]) for layer in compress_stage(stage, model)]
        [('0', 32)]
    """
    records = []
    for group in stage.groups:
        report = compress(
            model,
            group.budget,
            calibration=calibration,
            targets=group.targets,
            method=_method(group, model, tokenizer, seed),
            seed=seed,
        )
        records += report.as_dict()["layers"]
    return records


def require_groups(recipe: Recipe, language: LanguageModel) -> None:
    """Check the groups of all stages before the first stage starts.

    Raises:
        RecipeError: the model lacks a layer, a layer is named twice, calibration data are missing, or the method cannot
            compress the layers or meet the budget.
    """
    with separated_experts(language.model):
        _require_groups(recipe, language)


def _require_groups(recipe: Recipe, language: LanguageModel) -> None:
    stage_of: dict[nn.Module, str] = {}
    for stage in recipe.stages:
        for group in stage.groups:
            try:
                layers = _require_group(group, recipe, language)
            except MPOError as error:
                raise RecipeError(f"stage {stage.name}: {error}") from error
            for name, layer in layers.items():
                if layer in stage_of:
                    raise RecipeError(
                        f"{name} is compressed in the stages {stage_of[layer]} and {stage.name}; name it in one of them"
                    )
            # A head that is tied to an embedding is compressed with it.
            stage_of |= dict.fromkeys([*layers.values(), *tied_linears(language.model, layers.values())], stage.name)


def _require_group(group: Group, recipe: Recipe, language: LanguageModel) -> dict[str, nn.Module]:
    """Return the layers of a group after checking that its method can compress them."""
    method = _method(group, language.model, language.tokenizer, recipe.seed)
    if method.needs != "nothing" and recipe.calibration is None:
        raise RecipeError(f"method {method.name} needs calibration data; give the section calibration")
    layers = select(language.model, group.targets, embeddings=method.embeddings, linear=method.linear)
    if not layers:
        raise RecipeError(f"{', '.join(group.targets)}: no layer here can be compressed by method {method.name}")
    targets = {name: Target.open(name, layer) for name, layer in layers.items()}
    limit = Limit.of(group.budget, language.model, method, targets)
    method.check(targets, limit.of_layers)
    limit.check()
    return layers


def _method(group: Group, model: nn.Module, tokenizer: Any, seed: int) -> Method:
    """Method of a group, with its vocabulary's units or the recipe's seed applied."""
    method = group.named_method()
    if method is not None:
        return seeded(method, seed)
    assert group.units is not None
    embeddings = select(model, group.targets, embeddings=True, linear=False)
    sizes = {int(weight_and_bias(layer)[0].shape[0]) for layer in embeddings.values()}
    if len(sizes) != 1:
        raise RecipeError(f"units need embeddings of one vocabulary, got {len(sizes)} for {', '.join(group.targets)}")
    index = token_units(tokenizer, sizes.pop(), group.units).index
    return Entangled(units=index, coefficients=group.coefficients, seed=seed)
