"""What is to be done to a model, as a file that its reader can check at a glance and a program before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mpochain.compression.budget import require_budget
from mpochain.errors import ArgumentError, RecipeError
from mpochain.train import FinetuneConfig

__all__ = [
    "Calibration",
    "Comparison",
    "Evaluation",
    "Group",
    "Healing",
    "Recipe",
    "Stage",
    "UnitsOfTokens",
    "at_once",
    "built_in_recipes",
]

Count = Annotated[int, Field(ge=1, strict=True)]
Window = Annotated[int, Field(ge=2, strict=True)]


def _budget(value: Any) -> Any:
    try:
        require_budget(value)
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    return value


# Whole as it was given: YAML reads `yes` as a number that is 1.
Budget = Annotated[Any, BeforeValidator(_budget)]


def _no_number(value: object) -> object:
    # YAML reads `model: 7` as a number, and a path is never meant by one.
    if not isinstance(value, str | Path):
        raise ValueError("give a path")  # pydantic takes no TypeError
    return value


File = Annotated[Path, BeforeValidator(_no_number)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Calibration(_Strict):
    """Text that shows what the layers see.

    Attributes:
        text: UTF-8 file.
        window: tokens of a window.
        windows: how many, evenly spread over the text.
    """

    text: File
    window: Window = 512
    windows: Count = 24


class Evaluation(_Strict):
    """Text that tells how good a model is; never one it is calibrated or healed on.

    Attributes:
        text: UTF-8 file.
        window: tokens of a window.
        windows: how many, evenly spread over the text; all of it if not given.
        stride: tokens from one window to the next; a window if not given.
    """

    text: File
    window: Window = 512
    windows: Count | None = None
    stride: Count | None = None


class Healing(_Strict):
    """What a compressed model learns from.

    Attributes:
        text: UTF-8 file.
        window: tokens of a window.
        windows: how many, evenly spread over the text; all of it if not given.
        teacher: model it is to become like; the one that was compressed if not given. Not read if none of the losses
            of ``training`` compares with it.
        training: see :class:`mpochain.train.FinetuneConfig`.
    """

    text: File
    window: Window = 512
    windows: Count | None = None
    teacher: str | None = None
    training: FinetuneConfig = FinetuneConfig()


class Comparison(_Strict):
    """Several ways to make a model smaller, at several sizes.

    Attributes:
        methods: by their names, with ``+sequential`` after those that are to correct the errors of earlier layers.
        budgets: of each.
        heal: methods whose results are healed too.
    """

    methods: Annotated[tuple[str, ...], Field(min_length=1)] = ("interpolative", "svd_llm", "svd", "tt_svd")
    budgets: Annotated[tuple[Budget, ...], Field(min_length=1)] = (0.9, 0.8, 0.6)
    heal: tuple[str, ...] = ()


class UnitsOfTokens(_Strict):
    """What the tokens of a vocabulary are made of, see :class:`mpochain.units.Units`; asked in this order.

    Attributes:
        listing: file of ``token<TAB>unit unit ...``.
        wordnet: folder of WordNet's database, for tokens that are words.
        pieces: how many pieces to learn from the vocabulary.
        places: units of each token.
        least: tokens that a unit must be shared by.
    """

    listing: File | None = None
    wordnet: File | None = None
    pieces: Count | None = None
    places: Annotated[int, Field(ge=2, le=16, strict=True)] = 2
    least: Count = 1

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.listing is None and self.wordnet is None and self.pieces is None:
            raise ValueError("nothing says what the units are; give listing, wordnet or pieces")
        return self


class Group(_Strict):
    """Layers that are made smaller together, in one way.

    Attributes:
        targets: by name, ``re:`` pattern or class; embeddings too, whose tied heads stay tied.
        method: see :func:`mpochain.compress`, with ``budget``; not beside ``factors`` or ``units``.
        budget: see :class:`Recipe`.
        units: of embeddings that become :class:`mpochain.EntangledEmbedding`, with ``budget``.
        coefficients: whether each token then has a number for each rank, as SEE has it.
        factors: ``(out, in)`` of each Kronecker factor that is split off, see
            :class:`mpochain.compression.Kronecker`.
        terms: of the sum of Kronecker products.
        permuted: whether rows and columns are put into a better order first.
        calibrated: whether the sum is fitted to the calibration data.
        seconds: for the search of the order of one layer.
    """

    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    method: str | None = None
    budget: Budget | None = None
    units: UnitsOfTokens | None = None
    coefficients: bool = False
    factors: Annotated[tuple[tuple[Count, Count], ...], Field(min_length=1)] | None = None
    terms: Count = 1
    permuted: bool = True
    calibrated: bool = False
    seconds: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 60.0

    @model_validator(mode="after")
    def _fit(self) -> Self:
        ways = [name for name in ("factors", "method", "units") if getattr(self, name) is not None]
        if len(ways) != 1:
            raise ValueError("give one of factors of Kronecker products, a method with its budget, or units with one")
        if (self.factors is None) != (self.budget is not None):
            raise ValueError("a budget goes with a method or units, and with nothing else")
        others = {"factors": {"terms", "permuted", "calibrated", "seconds"}, "units": {"coefficients"}}
        for way, names in others.items():
            unused = sorted(self.model_fields_set & names)
            if way not in ways and unused:
                raise ValueError(f"{unused[0]} goes with {way}, which this group does not have")
        return self


class Stage(_Strict):
    """One step of distillation in several: some layers are made smaller, then the whole learns.

    Attributes:
        name: of its folder and in reports.
        groups: what is made smaller; nothing if empty, for a stage of training alone.
        training: what differs from the training of the healing section.
    """

    name: Annotated[str, Field(pattern=r"^[\w-]+$")]
    groups: tuple[Group, ...] = ()
    training: dict[str, Any] = Field(default_factory=dict)


class Recipe(_Strict):
    """Everything that decides what comes out.

    Attributes:
        model: folder, ``.gguf`` file, or name on the Hugging Face hub.
        dtype: element type to work in; ``"auto"`` for what is stored.
        budget: share of the layers' parameters that may be left, such as 0.6 or "60%", or bytes, as "200MB".
        method: how layers are made smaller.
        sequential: whether later layers correct the errors of earlier ones.
        targets: layers by name, ``re:`` pattern or class; all linear layers if not given.
        ignore: layers to leave out.
        seed: of what is drawn.
        calibration: see :class:`Calibration`.
        evaluation: see :class:`Evaluation`; nothing is evaluated without it.
        healing: see :class:`Healing`.
        comparison: see :class:`Comparison`.
        stages: see :class:`Stage`; for :func:`mpochain.workflows.distill_by`.
    """

    model: Annotated[str, Field(min_length=1)]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    budget: Budget | None = None
    method: str = "interpolative"
    sequential: bool = False
    targets: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    seed: Annotated[int, Field(ge=0, lt=1 << 63, strict=True)] = 0
    calibration: Calibration | None = None
    evaluation: Evaluation | None = None
    healing: Healing | None = None
    comparison: Comparison | None = None
    stages: tuple[Stage, ...] = ()

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
                where = ".".join(["stages", stage.name, "training", *(str(each) for each in first["loc"])])
                raise ValueError(f"{where}: {first['msg']}") from error
        return self

    def training_of(self, stage: Stage) -> FinetuneConfig:
        """How the model learns in a stage: as the healing section says, but for what the stage does.

        Raises:
            pydantic.ValidationError: values that do not fit each other.
        """
        common = self.healing.training.model_dump(exclude_unset=True) if self.healing is not None else {}
        return FinetuneConfig.model_validate({**common, **stage.training})


def built_in_recipes() -> dict[str, Path]:
    """Files of the recipes that come with the library, by their names.

    Example:
        >>> sorted(built_in_recipes())
        ['kngpt2', 'tqcompressor-gpt2-small']
    """
    return {file.stem: file for file in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


def at_once(recipe: Recipe) -> Recipe:
    """The same layers made smaller in one stage, with as many steps as all stages have together: what to compare with.

    Training is that of the healing section; what single stages change of it, other than the steps, is left out.

    Raises:
        RecipeError: no stages.

    Example:
        >>> stages = [{"name": name, "training": {"steps": 10}} for name in ("a", "b")]
        >>> recipe = Recipe(model="gpt2", healing=Healing(text=Path("a.txt")), stages=stages)
        >>> [(stage.name, stage.training) for stage in at_once(recipe).stages]
        [('at-once', {'steps': 20})]
    """
    if not recipe.stages:
        raise RecipeError("no stages are given; each says which layers are made smaller before the model learns")
    steps = sum(recipe.training_of(stage).steps for stage in recipe.stages)
    groups = tuple(group for stage in recipe.stages for group in stage.groups)
    return recipe.model_copy(update={"stages": (Stage(name="at-once", groups=groups, training={"steps": steps}),)})
