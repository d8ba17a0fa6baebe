"""Stages of distillation in a recipe: groups of layers, the method of each group, and training."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from mpochain.compression import Method, method_named
from mpochain.workflows.fields import Budget, Count, File, MethodName, Strict

__all__ = ["Group", "Stage", "UnitsOfTokens"]


# Fields of a group that go with another one.
_FIELDS = {
    "factors": {"terms", "permuted", "calibrated", "seconds"},
    "method": {"settings"},
    "units": {"coefficients"},
}


class UnitsOfTokens(Strict):
    """Units that the tokens of a vocabulary consist of, see :class:`mpochain.units.Units`.

    A token has the units of the first source that knows it: the listing, WordNet, then pieces.

    Attributes:
        listing: file with lines of ``token<TAB>unit unit ...``.
        wordnet: folder of WordNet's database, for tokens that are words.
        pieces: number of pieces to learn from the vocabulary.
        places: units of each token.
        least: number of tokens that must share a unit.
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


class Group(Strict):
    """Layers that are compressed together, by one method.

    Attributes:
        targets: layers by name, ``re:`` pattern or class; embeddings too, whose tied heads stay tied.
        method: see :class:`mpochain.workflows.Recipe`; not beside ``factors`` or ``units``.
        settings: of the method.
        budget: see :class:`mpochain.workflows.Recipe`; none where the settings leave no choice.
        units: of embeddings that become :class:`mpochain.EntangledEmbedding`, with ``budget``.
        coefficients: whether each token then has a coefficient for each rank, as in SEE.
        factors: ``(out, in)`` of each Kronecker factor that is split off, see
            :class:`mpochain.compression.Kronecker`.
        terms: of the sum of Kronecker products.
        permuted: whether rows and columns are put into a better order first.
        calibrated: whether the sum is fitted to the calibration data.
        seconds: for the search of the order of one layer.
    """

    targets: Annotated[tuple[str, ...], Field(min_length=1)]
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
                raise ValueError(f"{unused[0]} goes with {kind}, which this group does not have")
        method = self.named_method()  # its error is a ValueError
        settled = method is not None and method.settled
        if settled and self.budget is not None:
            raise ValueError("factors and settings that leave no choice take no budget; leave it out")
        if not settled and self.budget is None:
            raise ValueError("a budget is missing, such as 0.6; factors and settled methods alone have none")
        return self

    def named_method(self) -> Method | None:
        """The method with its settings, as fields of this group name them; None for units, which need a tokenizer.

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


class Stage(Strict):
    """One stage of distillation: some layers are compressed, then the model learns.

    Attributes:
        name: of its folder and in reports.
        groups: layers to compress; empty for a stage of training alone.
        training: fields that differ from the training of the section ``finetune``.
    """

    name: Annotated[str, Field(pattern=r"^[\w-]+$")]
    groups: tuple[Group, ...] = ()
    training: dict[str, Any] = Field(default_factory=dict)
