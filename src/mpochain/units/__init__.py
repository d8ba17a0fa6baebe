"""What words are made of: adapters that take a word apart, and the index that embeddings are looked up by. No torch."""

from mpochain.units.index import Segmenter, Units
from mpochain.units.listing import Listing
from mpochain.units.morphemes import Morphemes
from mpochain.units.pieces import Pieces
from mpochain.units.wordnet import WordNet

__all__ = ["Listing", "Morphemes", "Pieces", "Segmenter", "Units", "WordNet"]
