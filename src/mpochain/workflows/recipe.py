"""Recipes: models, texts, methods and training of a workflow, as data that is checked before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from mpochain.compression import Method, method_named
from mpochain.errors import RecipeError
from mpochain.train import FinetuneConfig
from mpochain.workflows.fields import Budget, Count, File, MethodName, Strict, Window, seeded
from mpochain.workflows.stage import Group, Stage, UnitsOfTokens

__all__ = [
    "Calibration",
    "Comparison",
    "Evaluation",
    "Finetuning",
    "Group",
    "Recipe",
    "Stage",
    "UnitsOfTokens",
    "at_once",
    "built_in_recipes",
]


class Calibration(Strict):
    """Text typical of the model's use, from which a method learns what the layers see.

    Attributes:
        text: UTF-8 file.
        window: tokens of a window.
        windows: number of windows, evenly spread over the text.
    """

    text: File
    window: Window = 512
    windows: Count = 24


class Evaluation(Strict):
    """Text to measure perplexity on; never one that the model is calibrated or finetuned on.

    Attributes:
        text: UTF-8 file.
        window: tokens of a window.
        windows: number of windows, evenly spread over the text; as many as fit if not given.
        stride: tokens from the start of one window to the next, at most a window, which is the default.
    """

    text: File
    window: Window = 512
    windows: Count | None = None
    stride: Count | None = None

    @model_validator(mode="after")
    def _no_gaps(self) -> Self:
        if self.stride is not None and self.stride > self.window:
            raise ValueError(f"stride={self.stride} is over window={self.window} and would skip tokens; lower it")
        return self


class Finetuning(Strict):
    """Text and teacher that a compressed model learns from.

    Attributes:
        text: UTF-8 file.
        window: tokens of a window.
        windows: number of windows, evenly spread over the text; as many as fit if not given.
        teacher: model to learn from; the recipe's dense model if not given. Not read if no loss of ``training``
            compares with it.
        training: see :class:`mpochain.train.FinetuneConfig`.
    """

    text: File
    window: Window = 512
    windows: Count | None = None
    teacher: str | None = None
    training: FinetuneConfig = FinetuneConfig()


class Comparison(Strict):
    """Several compression methods at several budgets.

    Attributes:
        methods: by their names; ``+sequential`` after a name corrects the errors of earlier layers.
        budgets: of every method.
        finetune: methods whose results are finetuned too.
    """

    methods: Annotated[tuple[str, ...], Field(min_length=1)] = ("interpolative", "svd_llm", "svd", "tt_svd")
    budgets: Annotated[tuple[Budget, ...], Field(min_length=1)] = (0.9, 0.8, 0.6)
    finetune: tuple[str, ...] = ()


class Recipe(Strict):
    """Everything that decides the result of a workflow.

    Attributes:
        model: folder, ``.gguf`` file, or name on the Hugging Face hub.
        dtype: element type to work in; ``"auto"`` for what is stored.
        budget: share of the layers' parameters that may be left, such as 0.6 or "60%", or bytes, as "200MB".
        method: a name of :data:`mpochain.compression.METHODS`, or ``package.module:ClassName`` of a method of another
            package, which is imported.
        settings: of the method, see its ``Settings``; ``mpochain methods`` lists them.
        sequential: whether later layers correct the errors of earlier ones.
        targets: layers by name, ``re:`` pattern or class; all linear layers if not given.
        ignore: layers to leave out.
        seed: of random numbers.
        calibration: see :class:`Calibration`.
        prompts: texts that the dense and the compressed model continue, or answer if they are made for chats.
        evaluation: see :class:`Evaluation`; nothing is evaluated without it.
        finetune: see :class:`Finetuning`.
        comparison: see :class:`Comparison`.
        stages: see :class:`Stage`; for :func:`mpochain.workflows.distill_by`.
    """

    model: Annotated[str, Field(min_length=1)]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    budget: Budget | None = None
    method: MethodName = "interpolative"
    settings: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    sequential: bool = False
    targets: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    seed: Annotated[int, Field(ge=0, lt=1 << 63, strict=True)] = 0
    calibration: Calibration | None = None
    evaluation: Evaluation | None = None
    prompts: tuple[str, ...] = ()
    finetune: Finetuning | None = None
    comparison: Comparison | None = None
    stages: tuple[Stage, ...] = ()

    @field_validator("settings")
    @classmethod
    def _settings_fit(cls, settings: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "method" in info.data:
            method_named(info.data["method"], settings)  # its error is a ValueError
        return settings

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages: two have the name {max(names, key=names.count)!r}")
        for stage in self.stages:
            try:
                self.training_of(stage)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(["stages", stage.name, "training", *map(str, first["loc"])])
                raise ValueError(f"{where}: {first['msg']}") from error
        return self

    def chosen_method(self) -> Method:
        """The method with its settings and, if it draws random numbers, the seed of the recipe.

        Example:
            >>> Recipe(model="gpt2", method="kronecker", settings={"terms": 2}).chosen_method()
            Kronecker(terms=2, seed=0)
        """
        return seeded(method_named(self.method, self.settings), self.seed)

    def training_of(self, stage: Stage) -> FinetuneConfig:
        """The training of a stage: that of the section ``finetune``, with the fields that the stage changes.

        Raises:
            pydantic.ValidationError: values that do not fit each other.
        """
        common = self.finetune.training.model_dump(exclude_unset=True) if self.finetune is not None else {}
        return FinetuneConfig.model_validate({**common, **stage.training})


def built_in_recipes() -> dict[str, Path]:
    """The files of the recipes that are part of the library, by their names.

    Example:
        >>> sorted(built_in_recipes())
        ['kngpt2', 'tqcompressor-gpt2-small']
    """
    return {file.stem: file for file in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


def at_once(recipe: Recipe) -> Recipe:
    """The same recipe with all layers compressed in one stage, which has the steps of all: a baseline for stages.

    Training is that of the section ``finetune``; changes of single stages to it are left out, except their steps.

    Raises:
        RecipeError: no stages.

    Example:
        >>> stages = [{"name": name, "training": {"steps": 10}} for name in ("a", "b")]
        >>> recipe = Recipe(model="gpt2", finetune=Finetuning(text=Path("a.txt")), stages=stages)
        >>> [(stage.name, stage.training) for stage in at_once(recipe).stages]
        [('at-once', {'steps': 20})]
    """
    if not recipe.stages:
        raise RecipeError("no stages are given; each names the layers that are compressed before the model learns")
    steps = sum(recipe.training_of(stage).steps for stage in recipe.stages)
    groups = tuple(group for stage in recipe.stages for group in stage.groups)
    return recipe.model_copy(update={"stages": (Stage(name="at-once", groups=groups, training={"steps": steps}),)})
