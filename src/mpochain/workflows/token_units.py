"""Units of the tokens in a language model's vocabulary."""

from __future__ import annotations

from typing import Any

from mpochain.units import Listing, Pieces, Segmenter, Units, WordNet
from mpochain.workflows.stage import UnitsOfTokens

__all__ = ["token_units"]


def token_units(tokenizer: Any, count: int, settings: UnitsOfTokens) -> Units:
    """Build the units of the first ``count`` tokens of a tokenizer.

    WordNet looks up the text of a token without surrounding blanks. A row without a token is its own unit.

    Args:
        tokenizer: transformers tokenizer.
        count: number of rows of the embedding.
        settings: sources of the units.

    Raises:
        CorpusError: a listing or database cannot be read.
        MissingDependencyError: the package that learns pieces is not installed.
        ArgumentError: two tokens have the same name, or a token's name is empty.
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
