"""Units of the tokens of a language model's vocabulary."""

from __future__ import annotations

from typing import Any

from mpochain.units import Listing, Pieces, Segmenter, Units, WordNet
from mpochain.workflows.stage import UnitsOfTokens

__all__ = ["token_units"]


def token_units(tokenizer: Any, count: int, settings: UnitsOfTokens) -> Units:
    """The units of the first ``count`` tokens of a tokenizer.

    WordNet is asked for the text of a token without its blanks, whatever sign the tokenizer has for them. A row that
    has no token is a unit of its own.

    Args:
        tokenizer: of transformers.
        count: rows of the embedding.
        settings: the sources of the units.

    Raises:
        CorpusError: a listing or database that cannot be read.
        MissingDependencyError: pieces without the package that learns them.
        ArgumentError: a tokenizer with two tokens of one name, or one without any.
    """
    tokens: list[str | None] = tokenizer.convert_ids_to_tokens(list(range(count)))
    names = [token if token is not None else f"<row {row}>" for row, token in enumerate(tokens)]
    missing = {name for name, token in zip(names, tokens, strict=True) if token is None}

    def of_tokens(segmenter: Segmenter) -> Segmenter:
        return lambda token: () if token in missing else segmenter(token)

    segmenters: list[Segmenter] = []
    if settings.listing is not None:
        segmenters.append(Listing(settings.listing))
    if settings.wordnet is not None:
        lexicon = WordNet(settings.wordnet)
        segmenters.append(lambda token: lexicon(tokenizer.convert_tokens_to_string([token]).strip()))
    if settings.pieces is not None:
        segmenters.append(Pieces.train([token for token in tokens if token is not None], settings.pieces))
    return Units.of(names, [of_tokens(segmenter) for segmenter in segmenters], settings.places, least=settings.least)
