"""Articles and plurals in messages, by one rule each."""

from __future__ import annotations

import re

__all__ = ["article", "counted", "kind_of"]

# Letters whose names begin with a vowel, as in "an MPOLinear".
_SPELT = "AEFHILMNORSX"
# A u or eu at the beginning that sounds like you.
_CONSONANT = re.compile(r"(uni|use|uti|eu|one\b)", re.IGNORECASE)


def article(name: str) -> str:
    """A name with its indefinite article.

    Example:
        >>> article("Linear"), article("Embedding"), article("MPOLinear"), article("UnitTable"), article("8x4 matrix")
        ('a Linear', 'an Embedding', 'an MPOLinear', 'a UnitTable', 'an 8x4 matrix')
    """
    if name[:2].isupper() and name[:2].isalpha():
        vowel = name[0] in _SPELT
    elif name[:1].isdigit():
        vowel = name[0] == "8" or re.match(r"1[18](\D|$)", name) is not None
    else:
        vowel = name[:1].lower() in "aeiou" and _CONSONANT.match(name) is None
    return f"{'an' if vowel else 'a'} {name}"


def kind_of(value: object) -> str:
    """Name of a value's type with its article.

    Example:
        >>> kind_of(5), kind_of("text")
        ('an int', 'a str')
    """
    return article(type(value).__name__)


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun, in the plural unless the number is 1.

    Example:
        >>> counted(1, "layer"), counted(1200, "layer"), counted(2, "entry", "entries")
        ('1 layer', '1,200 layers', '2 entries')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
