"""Segmentation of words into morphemes by a Morfessor model trained on a corpus."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Self

from mpochain.errors import CorpusError, MissingDependencyError

__all__ = ["Morphemes"]


class Morphemes:
    """Segmenter based on a Morfessor Baseline model (Creutz and Lagus 2005; Virpioja et al. 2013).

    Args:
        model: a trained ``morfessor.BaselineModel``.

    Example:
        >>> counts = {"walk": 9, "walked": 5, "walking": 5, "talk": 9, "talked": 5, "talking": 5, "jumping": 2}
        >>> Morphemes.train(counts)("talking")
        ('talk', 'ing')
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def train(cls, counts: Mapping[str, int], *, weight: float = 1.0, seed: int = 0) -> Self:
        """Train on the distinct words of a corpus, which gives better morphemes than weighting words by their counts.

        Args:
            counts: number of occurrences of each word; words with a count of 0 are skipped.
            weight: weight of the corpus in the cost of the model; above 1 the model has more and longer morphemes.
            seed: seed of the order in which training visits the words.

        Raises:
            CorpusError: no words.
            MissingDependencyError: morfessor is not installed.
        """
        try:
            import morfessor
        except ImportError as error:
            raise MissingDependencyError(
                "morphemes need morfessor; install it with: pip install 'mpochain[units]'"
            ) from error
        words = [word for word, count in counts.items() if count > 0 and word]
        if not words:
            raise CorpusError("no words to train morphemes on; give a corpus with at least one word")
        morfessor.utils.show_progress_bar = False
        model = morfessor.BaselineModel(corpusweight=weight)
        model.load_data([(1, word) for word in words])
        # Morfessor shuffles with the global generator of the random module.
        state = random.getstate()
        random.seed(seed)
        try:
            model.train_batch()
        finally:
            random.setstate(state)
        return cls(model)

    def __call__(self, word: str) -> tuple[str, ...]:
        """The morphemes of any word, from left to right."""
        return tuple(self._model.viterbi_segment(word)[0])
