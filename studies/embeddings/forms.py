"""Embeddings of every form at a share of the dense table's parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from torch import nn
from word_model import COLUMNS, WORDS, Text

from mpochain import ChainSpec, EntangledEmbedding, MPOEmbedding, shapes
from mpochain.nn import RowEmbedding
from mpochain.units import Morphemes, Pieces, Units, WordNet

DENSE = "dense"

# Pieces for words that the lexicon does not know, and how many words have to share a unit.
_PIECES, _SHARED = 1000, 5


class Forms:
    """Makes embeddings for the words of a text.

    Args:
        text: its vocabulary is that of all tables.
        wordnet: folder of the database.
    """

    def __init__(self, text: Text, wordnet: Path) -> None:
        self._text, self._wordnet = text, wordnet
        self.makers: dict[str, Callable[[int], RowEmbedding | None]] = {
            "low rank": self._low_rank,
            "MPO": self._chain,
            "word2ketXS": self._digits,
            "MorphTE": self._morphemes,
            "SEE": self._sememes,
        }

    def make(self, form: str, shrink: int) -> nn.Module | None:
        """One that is at least so many times smaller than the dense table; None where there is none."""
        if form == DENSE:
            return nn.Embedding(WORDS, COLUMNS)
        return self.makers[form](WORDS * COLUMNS // shrink)

    @cached_property
    def morphemes(self) -> Units:
        """Three of each word."""
        return Units.of(self._text.vocabulary, Morphemes.train(self._text.counts), 3)

    @cached_property
    def sememes(self) -> Units:
        """Two of each word: meanings of its first sense, or pieces."""
        ways = [WordNet(self._wordnet), Pieces.train(self._text.vocabulary, _PIECES)]
        return Units.of(self._text.vocabulary, ways, 2, least=_SHARED)

    def _low_rank(self, budget: int) -> RowEmbedding | None:
        rank = budget // (WORDS + COLUMNS)
        return MPOEmbedding(WORDS, COLUMNS, spec=shapes.low_rank(WORDS, COLUMNS, rank)) if rank else None

    def _chain(self, budget: int) -> RowEmbedding | None:
        dims = shapes.default_dims(WORDS, 3), shapes.default_dims(COLUMNS, 3)
        found = None
        for bond in range(1, COLUMNS):
            spec = ChainSpec(*dims, bond, out_features=WORDS, in_features=COLUMNS)
            if spec.parameters > budget:
                break
            found = spec
        return MPOEmbedding(WORDS, COLUMNS, spec=found) if found is not None else None

    def _digits(self, budget: int) -> RowEmbedding | None:
        return _largest(budget, lambda ranks: EntangledEmbedding(WORDS, COLUMNS, order=2, ranks=ranks))

    def _morphemes(self, budget: int) -> RowEmbedding | None:
        index = self.morphemes.index
        return _largest(budget, lambda ranks: EntangledEmbedding(WORDS, COLUMNS, units=index, ranks=ranks, norm=True))

    def _sememes(self, budget: int) -> RowEmbedding | None:
        index = self.sememes.index
        return _largest(
            budget, lambda ranks: EntangledEmbedding(WORDS, COLUMNS, units=index, ranks=ranks, coefficients=True)
        )


def parameters_of(embedding: nn.Module) -> int:
    """Numbers that are learned."""
    return sum(each.numel() for each in embedding.parameters())


def _largest(budget: int, make: Callable[[int], RowEmbedding]) -> RowEmbedding | None:
    """The one of most ranks within the budget."""
    one, two = parameters_of(make(1)), parameters_of(make(2))
    ranks = (budget - one) // (two - one) + 1
    return make(ranks) if ranks >= 1 else None
