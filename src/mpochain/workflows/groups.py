"""Groups of layers in the stages of a recipe: how each is made smaller, and what would not be possible."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from mpochain.compression import Entangled, Kronecker, Method, Target, compress, method_named, select
from mpochain.errors import MPOError, RecipeError
from mpochain.language import LanguageModel
from mpochain.nn.dense import weight_and_bias
from mpochain.surgery.tying import tied_linears
from mpochain.workflows.compressing import Log
from mpochain.workflows.recipe import Group, Recipe, Stage
from mpochain.workflows.token_units import token_units

__all__ = ["make_smaller", "require_groups"]


def make_smaller(
    stage: Stage,
    model: nn.Module,
    *,
    tokenizer: Any = None,
    calibration: Iterable[Any] | None = None,
    seed: int = 0,
    log: Log = lambda _: None,  # noqa: ARG001  # compress logs
) -> list[dict[str, Any]]:
    """Make the layers of a stage smaller, in place, without any training.

    Args:
        stage: of a recipe.
        model: is changed.
        tokenizer: of transformers, for groups with units.
        calibration: see :func:`mpochain.compress`.
        seed: of what is drawn.
        log: told what is done.

    Returns:
        What became of each layer, ready for JSON.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        >>> stage = Stage(name="first", groups=(Group(targets=("0",), budget=0.5, method="svd"),))
        >>> [(layer["name"], layer["parameters_after"]) for layer in make_smaller(stage, model)]
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
    """Refuse what would fail in a later stage, before the first.

    Raises:
        RecipeError: layers the model has not or that are named twice, a method that is not known or that wants
            calibration data which is not given, factors that do not divide a layer, or a budget that units do not fit.
    """
    model = language.model
    taken: dict[nn.Module, str] = {}
    for stage in recipe.stages:
        for group in stage.groups:
            try:
                method = _method(group, model, language.tokenizer, recipe.seed)
            except MPOError as error:
                raise RecipeError(f"stage {stage.name}: {error}") from error
            if method.needs != "nothing" and recipe.calibration is None:
                raise RecipeError(f"stage {stage.name} needs calibration data; give the section calibration")
            try:
                layers = select(model, group.targets, embeddings=method.embeddings, linear=method.linear)
                method.check({name: Target.open(name, layer) for name, layer in layers.items()}, group.budget)
            except MPOError as error:
                raise RecipeError(f"stage {stage.name}: {error}") from error
            if not layers:
                raise RecipeError(
                    f"stage {stage.name}: {', '.join(group.targets)} name no layer that can be made smaller"
                )
            for name, layer in layers.items():
                if layer in taken:
                    raise RecipeError(f"{name} is made smaller in the stages {taken[layer]} and {stage.name}")
            # A head that is tied to one of them is made smaller with it.
            taken |= dict.fromkeys([*layers.values(), *tied_linears(model, layers.values())], stage.name)


def _method(group: Group, model: nn.Module, tokenizer: Any, seed: int) -> Method:
    if group.units is not None:
        embeddings = select(model, group.targets, embeddings=True, linear=False)
        sizes = {int(weight_and_bias(layer)[0].shape[0]) for layer in embeddings.values()}
        if len(sizes) != 1:
            raise RecipeError(f"units are of one vocabulary, got {len(sizes)} for {', '.join(group.targets)}")
        index = token_units(tokenizer, sizes.pop(), group.units).index
        return Entangled(units=index, coefficients=group.coefficients, seed=seed)
    if group.factors is None:
        assert group.method is not None
        return method_named(group.method)
    return Kronecker(
        permuted=group.permuted,
        calibrated=group.calibrated,
        factors=group.factors,
        terms=group.terms,
        seconds=group.seconds,
        seed=seed,
    )
