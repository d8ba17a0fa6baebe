"""Segmentation of words into subwords by byte-pair encoding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from mpochain.errors import CorpusError, MissingDependencyError

__all__ = ["Pieces"]


class Pieces:
    """Segmenter based on a tokenizer of the ``tokenizers`` package, without pre-tokenisation.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``.

    Example:
        >>> pieces = Pieces.train(["low", "lower", "lowest", "newer", "wider"], size=14)
        >>> pieces("lower"), pieces("語")
        (('low', 'er'), ())
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, words: Iterable[str], size: int) -> Self:
        """Train byte-pair encoding (Sennrich et al., arXiv 1508.07909) up to a number of pieces.

        The same words give the same pieces in every process.

        Args:
            words: a vocabulary, or the words of a text if frequent words should count more.
            size: number of pieces, including single characters. All characters are kept, even if there are more.

        Raises:
            CorpusError: no words.
            MissingDependencyError: tokenizers is not installed.
        """
        try:
            from tokenizers import Tokenizer, models, trainers
        except ImportError as error:
            raise MissingDependencyError(
                "pieces need tokenizers; install it with: pip install 'mpochain[units]'"
            ) from error
        vocabulary = [word for word in words if word]
        if not vocabulary:
            raise CorpusError("no words to train pieces on; give at least one")
        # Pieces inside a word have no prefix: with a prefix, tokenizers numbers characters in the random order of a
        # hash map, and these numbers break ties between equal counts.
        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, special_tokens=[])
        tokenizer.train_from_iterator(vocabulary, trainer)
        return cls(tokenizer)

    def __call__(self, word: str) -> tuple[str, ...]:
        """The pieces of a word, from left to right; characters unknown from training are dropped."""
        return tuple(self._tokenizer.encode(word).tokens)
