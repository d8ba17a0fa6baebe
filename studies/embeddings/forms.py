"""Embeddings of every form at a share of the dense table's parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from word_model import COLUMNS, WORDS, Text

from mpochain import ChainSpec, EntangledEmbedding, MPOEmbedding, shapes
from mpochain.nn import RowEmbedding
from mpochain.units import Morphemes, Pieces, Units, WordNet

DENSE = "dense"

# Of words that are made of units.
_PLACES = 3

# Pieces for words that the lexicon does not know, and how many words have to share a unit; of a variation, more.
_PIECES, _SHARED, _BROAD = 1000, 5, 20


@dataclass(frozen=True)
class Made:
    """An embedding, and what its words are made of if that was given."""

    embedding: nn.Embedding | RowEmbedding
    units: Units | None = None

    @property
    def parameters(self) -> int:
        """Of the embedding."""
        return parameters_of(self.embedding)


class Forms:
    """Makes embeddings for the words of a text.

    Args:
        text: its vocabulary is that of all tables.
        wordnet: folder of the database.
    """

    def __init__(self, text: Text, wordnet: Path) -> None:
        self._text, self._wordnet = text, wordnet
        self.makers: dict[str, Callable[[int], Made | None]] = {
            "low rank": self._factors,
            "MPO": self._mpo,
            "word2ketXS": self._word2ketxs,
            "MorphTE": self._morphte,
            "pieces": self._spelt,
            "SEE": self._see,
        }
        # What one choice in a form is worth, by making another.
        self.variations: dict[str, Callable[[int], Made | None]] = {
            "word2ketXS, words shuffled": self._shuffled,
            "word2ketXS, words by meaning": self._by_meaning,
            "SEE, no coefficients": lambda budget: _of_units(budget, self._meanings(_PLACES, _SHARED)),
            "SEE, no coefficients, broad": lambda budget: _of_units(budget, self._meanings(_PLACES, _BROAD)),
            "SEE, no coefficients, broad, two places": lambda budget: _of_units(budget, self._meanings(2, _BROAD)),
        }

    def make(self, form: str, shrink: int, start: float) -> Made | None:
        """One that has at least so many times fewer parameters than the dense table; None where there is none.

        Args:
            form: one of ``makers`` or ``variations``, or dense.
            shrink: at least 1.
            start: deviation of the entries of its table at first.
        """
        if form == DENSE:
            made = Made(nn.Embedding(WORDS, COLUMNS))
            nn.init.normal_(made.embedding.weight, std=start)
            return made
        found = (self.makers | self.variations)[form](WORDS * COLUMNS // shrink)
        if found is not None:
            found.embedding.reset_parameters(start)
        return found

    @cached_property
    def _morphemes(self) -> Units:
        return Units.of(self._text.vocabulary, Morphemes.train(self._text.counts), _PLACES)

    def _meanings(self, places: int, least: int) -> Units:
        """Meanings of the first sense of each word, or pieces."""
        ways = [WordNet(self._wordnet), Pieces.train(self._text.vocabulary, _PIECES)]
        return Units.of(self._text.vocabulary, ways, places, least=least)

    @cached_property
    def _pieces(self) -> Units:
        """The same without meanings."""
        pieces = Pieces.train(self._text.vocabulary, _PIECES)
        return Units.of(self._text.vocabulary, pieces, _PLACES, least=_SHARED)

    def _factors(self, budget: int) -> Made | None:
        rank = budget // (WORDS + COLUMNS)
        return Made(MPOEmbedding(WORDS, COLUMNS, spec=shapes.low_rank(WORDS, COLUMNS, rank))) if rank else None

    def _mpo(self, budget: int) -> Made | None:
        dims = shapes.default_dims(WORDS, 3), shapes.default_dims(COLUMNS, 3)
        found = None
        for bond in range(1, COLUMNS):
            spec = ChainSpec(*dims, bond, out_features=WORDS, in_features=COLUMNS)
            if spec.parameters > budget:
                break
            found = spec
        return Made(MPOEmbedding(WORDS, COLUMNS, spec=found)) if found is not None else None

    def _word2ketxs(self, budget: int) -> Made | None:
        return _largest(budget, lambda ranks: Made(EntangledEmbedding(WORDS, COLUMNS, order=2, ranks=ranks)))

    def _morphte(self, budget: int) -> Made | None:
        return _of_units(budget, self._morphemes, norm=True)

    def _spelt(self, budget: int) -> Made | None:
        return _of_units(budget, self._pieces, coefficients=True)

    def _see(self, budget: int) -> Made | None:
        return _of_units(budget, self._meanings(_PLACES, _SHARED), coefficients=True)

    def _shuffled(self, budget: int) -> Made | None:
        """Words in no order, where those of the vocabulary begin with the most frequent."""
        return _of_digits(budget, torch.randperm(WORDS, generator=torch.Generator().manual_seed(0)))

    def _by_meaning(self, budget: int) -> Made | None:
        """Words of one meaning beside each other, so that most have their first digit in common."""
        wordnet = WordNet(self._wordnet)
        # From the most general meaning on; words that are not known after all others, by their letters.
        paths = [(not (chain := wordnet(word)), chain[::-1], word) for word in self._text.vocabulary]
        return _of_digits(budget, torch.tensor(sorted(range(WORDS), key=lambda word: paths[word])).argsort())


def parameters_of(embedding: nn.Module) -> int:
    """Numbers that are learned."""
    return sum(each.numel() for each in embedding.parameters())


def _largest(budget: int, make: Callable[[int], Made]) -> Made | None:
    """The one of most ranks within the budget."""
    one, two = make(1).parameters, make(2).parameters
    ranks = (budget - one) // (two - one) + 1
    return make(ranks) if ranks >= 1 else None


def _of_units(budget: int, units: Units, *, norm: bool = False, coefficients: bool = False) -> Made | None:
    def make(ranks: int) -> Made:
        embedding = EntangledEmbedding(
            WORDS, COLUMNS, units=units.index, ranks=ranks, norm=norm, coefficients=coefficients
        )
        return Made(embedding, units)

    return _largest(budget, make)


def _of_digits(budget: int, numbers: Tensor) -> Made | None:
    """word2ketXS with other numbers for the words."""
    base = math.isqrt(WORDS - 1) + 1
    digits = torch.stack([numbers // base, numbers % base], dim=1)
    return _largest(
        budget, lambda ranks: Made(EntangledEmbedding(WORDS, COLUMNS, units=digits, ranks=ranks, shared=False))
    )
