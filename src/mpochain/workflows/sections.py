"""Sections of a recipe: texts for calibration, evaluation and finetuning, and a comparison of methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from mpochain.compression import method_named
from mpochain.train import FinetuneConfig
from mpochain.workflows.fields import Budget, Count, File, RecipeSection, Source, Window

__all__ = ["OPTIONS", "Calibration", "Comparison", "Evaluation", "Finetuning", "method_and_options"]

# What may follow the name of a compared method after a plus sign.
OPTIONS = ("sequential", "stages", "refined")


class Calibration(RecipeSection):
    """Calibration text, typical of the model's use.

    Attributes:
        text: UTF-8 file.
        window: tokens per window.
        windows: number of windows, spread evenly over the text. By default 24 or more, until the widest layer has 16
            tokens per input, as far as the text goes.
    """

    text: File
    window: Window = 512
    windows: Count | None = None


class Evaluation(RecipeSection):
    """Text to measure perplexity on; it must not be used for calibration or finetuning.

    Attributes:
        text: UTF-8 file.
        window: tokens per window.
        windows: number of windows, spread evenly over the text; ``"all"`` for all that fit. By default at most
            :data:`mpochain.language.text.ENOUGH_WINDOWS`.
        stride: tokens from the start of one window to the start of the next; at most, and by default, ``window``.
        also: further texts, of other kinds, to measure perplexity on in the same way; a model that is calibrated on
            one kind of text may have lost more on others.
    """

    text: File
    window: Window = 512
    windows: Count | Literal["all"] | None = None
    stride: Count | None = None
    also: tuple[File, ...] = ()

    @model_validator(mode="after")
    def _no_gaps(self) -> Self:
        if self.stride is not None and self.stride > self.window:
            raise ValueError(f"stride={self.stride} exceeds window={self.window} and would skip tokens; lower it")
        return self

    @model_validator(mode="after")
    def _texts_are_told_apart(self) -> Self:
        names = [text.name for text in self.texts()]
        if len(set(names)) < len(names):
            raise ValueError(f"two texts have the same file name, got {', '.join(names)}; rename one")
        return self

    def texts(self) -> tuple[Path, ...]:
        """All texts, the main one first; no two have the same file name.

        Example:
            >>> [text.name for text in Evaluation(text=Path("a/wiki.txt"), also=(Path("b/plays.txt"),)).texts()]
            ['wiki.txt', 'plays.txt']
        """
        return (self.text, *self.also)


class Finetuning(RecipeSection):
    """Text, teacher and training settings for finetuning a compressed model.

    Attributes:
        text: UTF-8 file.
        window: tokens per window.
        windows: number of windows, spread evenly over the text; by default as many as fit.
        teacher: model to learn from; by default the recipe's dense model. It is read only if a loss in ``training``
            uses it.
        shard: whether the processes of torchrun hold a part of the parameters each (FSDP2), the teacher's among them,
            rather than all of them.
        training: see :class:`mpochain.train.FinetuneConfig`.
    """

    text: File
    window: Window = 512
    windows: Count | None = None
    teacher: Source | None = None
    shard: bool = False
    training: FinetuneConfig = FinetuneConfig()


def method_and_options(compared: str) -> tuple[str, frozenset[str]]:
    """Split the name of a compared method from its options.

    Raises:
        ValueError: an option is unknown or given twice.

    Example:
        >>> method_and_options("interpolative+refined")
        ('interpolative', frozenset({'refined'}))
    """
    method, *options = compared.split("+")
    unknown = [option for option in options if option not in OPTIONS]
    if unknown or len(set(options)) < len(options):
        what = f"{unknown[0]!r} is unknown" if unknown else "an option is given twice"
        raise ValueError(f"{compared}: {what}; after the method may come +{', +'.join(OPTIONS)}, each once")
    return method, frozenset(options)


def _compared(name: str) -> str:
    method_named(method_and_options(name)[0])  # its error is a ValueError
    return name


_ComparedMethod = Annotated[str, AfterValidator(_compared)]


class Comparison(RecipeSection):
    """Comparison of several compression methods at several budgets.

    Attributes:
        methods: names of the methods; options may follow, as in ``interpolative+refined``: ``+sequential``, ``+stages``
            with the recipe's ``stage_budgets``, and ``+refined`` with its ``refine``, or the defaults of it.
        budgets: budgets at which every method runs.
        finetune: methods whose results are also finetuned.
    """

    methods: Annotated[tuple[_ComparedMethod, ...], Field(min_length=1)] = ("interpolative", "svd_llm", "svd", "tt_svd")
    budgets: Annotated[tuple[Budget, ...], Field(min_length=1)] = (0.9, 0.8, 0.6)
    finetune: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _finetunes_its_methods(self) -> Self:
        unknown = [method for method in self.finetune if method not in self.methods]
        if unknown:
            raise ValueError(f"finetune: {', '.join(unknown)}: not among methods, which are {', '.join(self.methods)}")
        return self
