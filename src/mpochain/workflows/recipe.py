"""Recipes: the model, texts, method and training of a workflow, validated before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from mpochain.compression import Method, Refinement, method_named
from mpochain.compression.methods import default_method
from mpochain.errors import RecipeError
from mpochain.train import FinetuneConfig
from mpochain.validation import parsed, problems, shortened
from mpochain.workflows.fields import (
    Budget,
    MethodName,
    Pattern,
    RecipeSection,
    Source,
    SpeedShare,
    seeded,
)
from mpochain.workflows.sections import Calibration, Comparison, Evaluation, Finetuning
from mpochain.workflows.stage import Group, Stage, UnitsOfTokens

__all__ = [
    "Group",
    "Recipe",
    "Stage",
    "UnitsOfTokens",
    "at_once",
    "built_in_recipes",
    "example_recipes",
]


# Default of a recipe's method, told from a name by identity.
_BY_BUDGET = "the default of the budget"


class Recipe(RecipeSection):
    """Recipe of a workflow: everything that determines its result.

    Attributes:
        model: folder, ``.gguf`` file, or name on the Hugging Face hub.
        dtype: dtype to work in; ``"auto"`` for the stored dtype.
        device: where the model is put and all work on it is done: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, or
            ``"auto"`` for the accelerator of the machine if it has one.
        budget: share of the layers' storage to keep, such as 0.6 or "60%"; or bytes, such as "200MB"; or bits per
            weight of the layers, such as "3 bits"; or the limit of each layer's relative error, such as "5% error".
        speed: second budget, the share of the layers' multiply-adds to keep, such as 0.7 or "70%".
        method: a name in :data:`mpochain.compression.METHODS`, or ``package.module:ClassName`` of a method from another
            package, which is imported. By default "auto" for a budget in bytes or bits, and "interpolative" for others.
        settings: settings of the method, see its ``Settings``; ``mpochain methods`` lists them.
        sequential: whether layers that write the hidden states make up for their drift from the dense model's.
        stage_budgets: budgets of earlier stages, each larger than the next, such as [0.9]: each stage collects its
            statistics in the model of the stage before. See ``stages`` of :func:`mpochain.compress`.
        refine: whether blocks are trained on the dense blocks' outputs after the compression; or the fields of
            :class:`mpochain.compression.Refinement`.
        stream: whether one block of the model at a time is in memory, for a model larger than memory, see ``stream`` of
            :func:`mpochain.compress`.
        targets: layers to compress, by name, ``re:`` pattern or class; by default all linear layers.
        ignore: layers to leave out.
        seed: seed of random numbers.
        calibration: see :class:`Calibration`.
        prompts: texts that the dense and the compressed model continue; chat models answer them instead.
        evaluation: see :class:`Evaluation`; nothing is evaluated without it.
        finetune: see :class:`Finetuning`.
        comparison: see :class:`Comparison`.
        stages: see :class:`Stage`; for :func:`mpochain.workflows.distill_by`.
    """

    model: Source
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Annotated[str, Field(pattern=r"^[a-z]+(:\d+)?$")] = "cpu"
    budget: Budget | None = None
    speed: SpeedShare | None = None
    method: MethodName = Field(_BY_BUDGET, validate_default=True)
    settings: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    sequential: bool = False
    stage_budgets: tuple[Budget, ...] = ()
    refine: bool | Refinement = False
    stream: bool = False
    targets: tuple[Pattern, ...] | None = None
    ignore: tuple[Pattern, ...] = ()
    seed: Annotated[int, Field(ge=0, lt=1 << 63, strict=True)] = 0
    calibration: Calibration | None = None
    evaluation: Evaluation | None = None
    prompts: tuple[str, ...] = ()
    finetune: Finetuning | None = None
    comparison: Comparison | None = None
    stages: tuple[Stage, ...] = ()

    @field_validator("method", mode="before")
    @classmethod
    def _method_of_the_budget(cls, method: Any, info: ValidationInfo) -> Any:
        return default_method(info.data.get("budget")) if method is _BY_BUDGET else method

    @field_validator("refine", mode="wrap")
    @classmethod
    def _refine_fits(cls, refine: Any, _: Any) -> bool | Refinement:
        if isinstance(refine, bool | Refinement):
            return refine
        if not isinstance(refine, dict):
            raise ValueError(f"give true, false or fields such as {{epochs: 6}}, got {refine!r}")
        return Refinement.model_validate(refine)  # its error is a ValueError

    @field_validator("stages", mode="before")
    @classmethod
    def _stages_are_named(cls, stages: Any) -> Any:
        if isinstance(stages, list | tuple) and any(isinstance(stage, int | float | str) for stage in stages):
            raise ValueError(
                "these are the named stages of a distillation; give budgets of earlier stages of a compression as "
                "stage_budgets"
            )
        return stages

    @field_validator("settings")
    @classmethod
    def _settings_fit(cls, settings: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "method" in info.data:
            method_named(info.data["method"], settings)  # its error is a ValueError
        return settings

    @model_validator(mode="after")
    def _stream_fits(self) -> Self:
        if not self.stream:
            return self
        wanted = {"dtype": "auto", "device": "cpu"}
        others = [f"{name} {value!r}" for name, wish in wanted.items() if (value := getattr(self, name)) != wish]
        others += [name for name in ("sequential", "refine", "stage_budgets") if getattr(self, name)]
        others += ["a .gguf file"] if self.model.endswith(".gguf") else []
        if others:
            raise ValueError(
                "stream leaves the weights in their files and reads one block at a time, so it cannot be combined with "
                f"{', '.join(others)}; leave out one of them"
            )
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        names = [stage.name for stage in self.stages]
        wrong = []
        if len(set(names)) < len(names):
            wrong.append(f"stages: two have the name {max(names, key=names.count)!r}")
        for stage in self.stages:
            try:
                parsed(FinetuneConfig, self._training_fields(stage))
            except ValidationError as error:
                wrong += [f"stages.{stage.name}.training.{line}" for line in problems(error, FinetuneConfig)]
        if wrong:
            raise ValueError("; ".join(shortened(wrong)))
        return self

    def chosen_method(self) -> Method:
        """Return the method with its settings and, if it has a seed, the recipe's seed.

        Example:
            >>> Recipe(model="gpt2", method="kronecker", settings={"terms": 2}).chosen_method()
            Kronecker(terms=2, seed=0)
        """
        return seeded(method_named(self.method, self.settings), self.seed)

    def training_of(self, stage: Stage) -> FinetuneConfig:
        """Return the training of a stage: the section ``finetune`` with the stage's changes applied.

        Raises:
            ArgumentError: the values contradict each other.
        """
        return FinetuneConfig.model_validate(self._training_fields(stage))

    def _training_fields(self, stage: Stage) -> dict[str, Any]:
        common = self.finetune.training.model_dump(exclude_unset=True) if self.finetune is not None else {}
        return {**common, **stage.training}


def built_in_recipes() -> dict[str, Path]:
    """Return the files of the recipes that come with the library, by name.

    Example:
        >>> sorted(built_in_recipes())
        ['kngpt2', 'tqcompressor-gpt2-small']
    """
    return _recipes_in("recipes")


def example_recipes() -> dict[str, Path]:
    """Return the files of the example recipes, by the command that they are for.

    They name a model ``model`` and texts ``valid.txt`` and ``test.txt`` beside the recipe.

    Example:
        >>> sorted(example_recipes())
        ['compare', 'compress', 'distill', 'finetune']
    """
    return _recipes_in("examples")


def _recipes_in(folder: str) -> dict[str, Path]:
    return {file.stem: file for file in sorted((Path(__file__).parent / folder).glob("*.yaml"))}


def at_once(recipe: Recipe) -> Recipe:
    """Merge all stages of a recipe into one with the sum of their steps, as a baseline for staged distillation.

    Training follows the section ``finetune``; changes by single stages are dropped, except their steps.

    Raises:
        RecipeError: the recipe has no stages.

    Example:
        >>> stages = [{"name": name, "training": {"steps": 10}} for name in ("a", "b")]
        >>> recipe = Recipe(model="gpt2", finetune=Finetuning(text=Path("a.txt")), stages=stages)
        >>> [(stage.name, stage.training) for stage in at_once(recipe).stages]
        [('at-once', {'steps': 20})]
    """
    if not recipe.stages:
        raise RecipeError("stages are missing; each names the layers to compress before the model is finetuned")
    steps = sum(recipe.training_of(stage).steps for stage in recipe.stages)
    groups = tuple(group for stage in recipe.stages for group in stage.groups)
    return recipe.model_copy(update={"stages": (Stage(name="at-once", groups=groups, training={"steps": steps}),)})
