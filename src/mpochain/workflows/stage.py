"""Stages of distillation in a recipe: groups of layers with a method each, and training."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from mpochain.compression import Method, method_named
from mpochain.workflows.fields import Budget, Count, File, MethodName, Pattern, RecipeSection

__all__ = ["Group", "Stage", "UnitsOfTokens"]


# Fields of a group that require another field.
_FIELDS = {
    "factors": {"terms", "permuted", "calibrated", "seconds"},
    "method": {"settings"},
    "units": {"coefficients"},
}


class UnitsOfTokens(RecipeSection):
    """Sources of the units that tokens consist of, see :class:`mpochain.units.Units`.

    A token's units come from the first source that knows it: the listing, WordNet, then pieces.

    Attributes:
        listing: file with lines of ``token<TAB>unit unit ...``.
        wordnet: folder of WordNet's database, for tokens that are words.
        pieces: number of pieces to learn from the vocabulary.
        places: number of units per token.
        least: minimum number of tokens that must share a unit.
    """

    listing: File | None = None
    wordnet: File | None = None
    pieces: Count | None = None
    places: Annotated[int, Field(ge=2, le=16, strict=True)] = 2
    least: Count = 1

    @model_validator(mode="after")
    def _have_a_source(self) -> Self:
        if self.listing is None and self.wordnet is None and self.pieces is None:
            raise ValueError("the units have no source; give listing, wordnet or pieces")
        return self


class Group(RecipeSection):
    """Group of layers that are compressed together by one method.

    Attributes:
        targets: layers by name, ``re:`` pattern or class; also embeddings, whose tied heads stay tied.
        method: see :class:`mpochain.workflows.Recipe`; excludes ``factors`` and ``units``.
        settings: settings of the method.
        budget: see :class:`mpochain.workflows.Recipe`; none if the settings leave no choice.
        units: units of embeddings that become :class:`mpochain.EntangledEmbedding`; requires ``budget``.
        coefficients: give each token one coefficient per rank, as in SEE; requires ``units``.
        factors: ``(out, in)`` of each Kronecker factor to split off, see
            :class:`mpochain.compression.Kronecker`.
        terms: number of terms in the sum of Kronecker products.
        permuted: first search for a better order of rows and columns.
        calibrated: fit the sum to the calibration data.
        seconds: time limit of the search for one layer's order.
    """

    targets: Annotated[tuple[Pattern, ...], Field(min_length=1)]
    method: MethodName | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
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
        kinds = [name for name in ("factors", "method", "units") if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError("give one of method, factors of Kronecker products, or units of embeddings")
        for kind, names in _FIELDS.items():
            unused = sorted(self.model_fields_set & names)
            if kind not in kinds and unused:
                raise ValueError(
                    f"{' and '.join(unused)} {'need' if len(unused) > 1 else 'needs'} {kind}, which this group does "
                    "not have"
                )
        method = self.named_method()  # its error is a ValueError
        settled = method is not None and method.settled
        if settled and self.budget is not None:
            raise ValueError("factors, or settings that leave no choice, take no budget; leave it out")
        if not settled and self.budget is None:
            raise ValueError("the budget is missing; give one, such as 0.6")
        return self

    def named_method(self) -> Method | None:
        """Return the method of this group with its settings; None for units, which need a tokenizer.

        Example:
            >>> Group(targets=("Linear",), factors=((2, 2),)).named_method()
            Kronecker(permuted=True, factors=((2, 2),), terms=1, seconds=60.0)
        """
        if self.units is not None:
            return None
        if self.factors is None:
            return method_named(self.method or "", self.settings)
        name = "calibrated_" * self.calibrated + "permuted_" * self.permuted + "kronecker"
        return method_named(name, {"factors": self.factors, "terms": self.terms, "seconds": self.seconds})


class Stage(RecipeSection):
    """Stage of distillation: compress some layers, then finetune the model.

    Attributes:
        name: name of the stage's folder, also used in reports.
        groups: layers to compress; empty for a stage that only trains.
        training: training fields that differ from the section ``finetune``.
    """

    name: Annotated[str, Field(pattern=r"^[\w-]+$")]
    groups: tuple[Group, ...] = ()
    training: dict[str, Any] = Field(default_factory=dict)
