"""Segmentation of words into shared units (sememes, morphemes, subwords), and the unit index of a vocabulary.

Does not import torch.
"""

from mpochain.units.index import Segmenter, Units
from mpochain.units.listing import Listing
from mpochain.units.morphemes import Morphemes
from mpochain.units.pieces import Pieces
from mpochain.units.wordnet import WordNet

__all__ = ["Listing", "Morphemes", "Pieces", "Segmenter", "Units", "WordNet"]
