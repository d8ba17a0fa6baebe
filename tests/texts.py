"""Text for tests: sentences of a small vocabulary, so that a model can learn something from little."""

from __future__ import annotations

import random

WORDS = [
    "the",
    "a",
    "king",
    "queen",
    "fool",
    "speaks",
    "loves",
    "sees",
    "of",
    "and",
    "night",
    "day",
    "sword",
    "crown",
    "in",
    "to",
    "my",
    "thy",
    "heart",
    "lord",
]


def prose(length, seed=0):
    rng = random.Random(seed)
    text = ""
    while len(text) < length:
        text += " ".join(rng.choices(WORDS, k=rng.randint(3, 9))).capitalize() + ".\n"
    return text[:length]
