"""Segmentation of words into shared units (sememes, morphemes, subwords), and the index of units of a vocabulary.

No torch.
"""

from mpochain.units.index import Segmenter, Units
from mpochain.units.listing import Listing
from mpochain.units.morphemes import Morphemes
from mpochain.units.pieces import Pieces
from mpochain.units.wordnet import WordNet

__all__ = ["Listing", "Morphemes", "Pieces", "Segmenter", "Units", "WordNet"]
