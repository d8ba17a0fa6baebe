"""What the tokens of a language model are made of."""

from __future__ import annotations

from typing import Any

from mpochain.jobs.recipe import UnitsOfTokens
from mpochain.units import Listing, Pieces, Segmenter, Units, WordNet

__all__ = ["token_units"]


def token_units(tokenizer: Any, count: int, settings: UnitsOfTokens) -> Units:
    """The units of the first ``count`` tokens of a tokenizer.

    A lexicon is asked of the text of a token without its blanks, whatever sign the tokenizer has for them. Rows that
    the tokenizer has no token for are units of their own.

    Args:
        tokenizer: of transformers.
        count: rows of the embedding.
        settings: what the units are.

    Raises:
        CorpusError: a listing or database that cannot be read.
        MissingDependencyError: pieces without the package they need.
    """
    tokens = [
        f"<row {number}>" if token is None else token
        for number, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(count))))
    ]
    ways: list[Segmenter] = []
    if settings.listing is not None:
        ways.append(Listing(settings.listing))
    if settings.wordnet is not None:
        lexicon = WordNet(settings.wordnet)
        ways.append(lambda token: lexicon(tokenizer.convert_tokens_to_string([token]).strip()))
    if settings.pieces is not None:
        ways.append(Pieces.train(tokens, settings.pieces))
    return Units.of(tokens, ways, settings.places, least=settings.least)
