"""Words as pieces of byte-pair encoding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from mpochain.errors import CorpusError, MissingDependencyError

__all__ = ["Pieces"]


class Pieces:
    """Takes words apart by a tokenizer of ``tokenizers`` that takes a word as a whole.

    Args:
        tokenizer: ``tokenizers.Tokenizer``.

    Example:
        >>> pieces = Pieces.train(["low", "lower", "lowest", "newer", "wider"], size=14)
        >>> pieces("lower"), pieces("語")
        (('low', 'er'), ())
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, words: Iterable[str], size: int) -> Self:
        """Merge the most frequent neighbours (Sennrich et al., arXiv 1508.07909) until there are so many pieces.

        The same words give the same pieces in every process.

        Args:
            words: a vocabulary, or a text word by word if frequent words are to count more.
            size: number of pieces, characters among them; all characters are kept, even if these are more.

        Raises:
            CorpusError: no words.
            MissingDependencyError: tokenizers is not installed.
        """
        try:
            from tokenizers import Tokenizer, models, trainers
        except ImportError as error:
            raise MissingDependencyError("pieces need tokenizers; install mpochain[units]") from error
        listed = [word for word in words if word]
        if not listed:
            raise CorpusError("there are no words to learn pieces from")
        # With a prefix for pieces within a word, characters are numbered as they are met in a map of random order, by
        # which equal counts are decided.
        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, special_tokens=[])
        tokenizer.train_from_iterator(listed, trainer)
        return cls(tokenizer)

    def __call__(self, word: str) -> tuple[str, ...]:
        """The pieces of a word, from left to right; a character that was never seen there is left out."""
        return tuple(self._tokenizer.encode(word).tokens)
