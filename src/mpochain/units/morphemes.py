"""Words as morphemes, by Morfessor trained on a corpus."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Self

from mpochain.errors import CorpusError, MissingDependencyError

__all__ = ["Morphemes"]


class Morphemes:
    """Segments words with a model of Morfessor Baseline (Creutz and Lagus 2005; Virpioja et al. 2013).

    Args:
        model: ``morfessor.BaselineModel``, trained.

    Example:
        >>> counts = {"walk": 9, "walked": 5, "walking": 5, "talk": 9, "talked": 5, "talking": 5, "jumping": 2}
        >>> Morphemes.train(counts)("talking")
        ('talk', 'ing')
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def train(cls, counts: Mapping[str, int], *, weight: float = 1.0, seed: int = 0) -> Self:
        """Train on the words of a corpus, each counted once however often it occurs, as is best for morphemes.

        Args:
            counts: how often each word occurs; words of count 0 are left out.
            weight: of the corpus in its cost; above 1 there are more and longer morphemes.
            seed: of the order in which words are gone through.

        Raises:
            CorpusError: no words.
            MissingDependencyError: morfessor is not installed.
        """
        try:
            import morfessor
        except ImportError as error:
            raise MissingDependencyError("morphemes need morfessor; install mpochain[units]") from error
        words = [word for word, count in counts.items() if count > 0 and word]
        if not words:
            raise CorpusError("there are no words to learn morphemes from")
        morfessor.utils.show_progress_bar = False
        model = morfessor.BaselineModel(corpusweight=weight)
        model.load_data([(1, word) for word in words])
        # It shuffles by the generator of the interpreter.
        state = random.getstate()
        random.seed(seed)
        try:
            model.train_batch()
        finally:
            random.setstate(state)
        return cls(model)

    def __call__(self, word: str) -> tuple[str, ...]:
        """The morphemes of a word, seen or not, from left to right."""
        return tuple(self._model.viterbi_segment(word)[0])
