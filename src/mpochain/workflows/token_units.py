"""What the tokens of a language model are made of."""

from __future__ import annotations

from typing import Any

from mpochain.units import Listing, Pieces, Segmenter, Units, WordNet
from mpochain.workflows.recipe import UnitsOfTokens

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
        ArgumentError: a tokenizer with two tokens of one name, or one without any.
    """
    known: list[str | None] = tokenizer.convert_ids_to_tokens(list(range(count)))
    names = [token if token is not None else f"<row {number}>" for number, token in enumerate(known)]
    missing = {name for name, token in zip(names, known, strict=True) if token is None}

    def of_tokens(segmenter: Segmenter) -> Segmenter:
        return lambda token: () if token in missing else segmenter(token)

    ways: list[Segmenter] = []
    if settings.listing is not None:
        ways.append(Listing(settings.listing))
    if settings.wordnet is not None:
        lexicon = WordNet(settings.wordnet)
        ways.append(lambda token: lexicon(tokenizer.convert_tokens_to_string([token]).strip()))
    if settings.pieces is not None:
        ways.append(Pieces.train([token for token in known if token is not None], settings.pieces))
    return Units.of(names, [of_tokens(way) for way in ways], settings.places, least=settings.least)
