"""Unit index of a vocabulary: a fixed number of units for every word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from mpochain.errors import ArgumentError
from mpochain.system.files import write_bytes
from mpochain.wording import counted

__all__ = ["Segmenter", "Units"]

# Name of the unit that fills the places of a word with fewer units.
_EMPTY = ""

# First character of a unit that is a complete word, and of a unit that only distinguishes words.
_WORD, _NUMBER = "=", "#"


class Segmenter(Protocol):
    """A function that splits a word into units."""

    def __call__(self, word: str) -> tuple[str, ...]:
        """The units of a word, the most important first; an empty tuple for an unknown word."""
        ...


@dataclass(frozen=True, eq=False)
class Units:
    """The units of every word of a vocabulary.

    Attributes:
        words: the vocabulary, in its order.
        names: names of the units, in the order of their first use.
        index: unit numbers ``(words, order)``, int32.
        unsplit: number of words without units, since no segmenter knew them or their units were too rare; each is its
            own unit.
        truncated: number of words that had more units than places.
        padded: number of words with fewer units than places; an empty unit fills the rest.
        numbered: number of words that got a number in their last place because another word had the same units.
    """

    words: tuple[str, ...]
    names: tuple[str, ...]
    index: NDArray[np.int32]
    unsplit: int
    truncated: int
    padded: int
    numbered: int

    @classmethod
    def of(
        cls,
        words: Iterable[str],
        segmenters: Segmenter | Sequence[Segmenter],
        order: int,
        *,
        least: int = 1,
        distinct: bool = True,
    ) -> Self:
        """Build the unit index of a vocabulary.

        The first segmenter that knows a word splits it. Of a word with more units than places, the first units are
        kept; in a word with fewer, an empty unit fills the rest. A word that no segmenter knows is its own unit, named
        ``"=word"``.

        Args:
            words: distinct words, in the order of the rows of the index.
            segmenters: one or several segmenters, the preferred one first.
            order: number of places per word, at least 2.
            least: smallest number of words that must share a unit. Rarer units are removed first, so that later units,
                such as more general hypernyms, take their places; a word with only rare units is passed to the next
                segmenter.
            distinct: whether a word with the same units as an earlier word gets a number, ``"#1"`` and so on, in its
                first free place, or else instead of its last unit, so that no two words have all units in common.

        Raises:
            ArgumentError: no words, a repeated or empty word, or an order below 2.

        Example:
            >>> parts = {"undo": ("un", "do"), "redo": ("re", "do"), "untie": ("un", "tie")}
            >>> units = Units.of(["undo", "redo", "untie", "xylophone"], lambda word: parts.get(word, ()), order=2)
            >>> [units.units_of(word) for word in units.words]
            [('un', 'do'), ('re', 'do'), ('un', 'tie'), ('=xylophone', '')]
            >>> units.index.shape, units.unsplit, units.padded
            ((4, 2), 1, 1)
        """
        vocabulary = tuple(words)
        _require_words(vocabulary)
        if order < 2:
            raise ArgumentError(f"order must be at least 2, got {order}")
        parts: dict[str, tuple[str, ...]] = {}
        for segmenter in [segmenters] if callable(segmenters) else segmenters:
            segmented = {word: tuple(filter(None, segmenter(word))) for word in vocabulary if word not in parts}
            shared = Counter(unit for units in segmented.values() for unit in set(units))
            kept = {word: tuple(unit for unit in units if shared[unit] >= least) for word, units in segmented.items()}
            parts |= {word: units for word, units in kept.items() if units}
        unsplit = len(vocabulary) - len(parts)
        known = {unit for units in parts.values() for unit in units}
        rows = [parts[word] if word in parts else (_word_unit(word, known),) for word in vocabulary]
        truncated, padded = sum(len(row) > order for row in rows), sum(len(row) < order for row in rows)
        rows = [(*row[:order], *[_EMPTY] * (order - len(row))) for row in rows]
        numbered = 0
        if distinct:
            rows, numbered = _numbered(rows)
        numbers: dict[str, int] = {}
        index = np.array([[numbers.setdefault(unit, len(numbers)) for unit in row] for row in rows], dtype=np.int32)
        return cls(vocabulary, tuple(numbers), index, unsplit, truncated, padded, numbered)

    @property
    def order(self) -> int:
        """Number of places per word."""
        return int(self.index.shape[1])

    @property
    def count(self) -> int:
        """Number of units."""
        return len(self.names)

    def units_of(self, word: str) -> tuple[str, ...]:
        """Names of the units of a word of the vocabulary.

        Raises:
            ArgumentError: the word is not in the vocabulary.
        """
        if word not in self.words:
            raise ArgumentError(f"{word!r} is not among the {counted(len(self.words), 'word')} of the vocabulary")
        return tuple(self.names[unit] for unit in self.index[self.words.index(word)])

    def write(self, file: Path | str) -> Path:
        """Write one line ``word<TAB>unit unit ...`` per word, the format of :class:`Listing`, without empty units.

        Raises:
            ArgumentError: a word or unit contains white space, which the format cannot represent.
            OutputError: the file cannot be written.
        """
        lines = []
        for word, row in zip(self.words, self.index, strict=True):
            units = [self.names[unit] for unit in row if self.names[unit] != _EMPTY]
            invalid = [unit for unit in units if len(unit.split()) != 1]
            invalid += [word] if word.strip() != word or {"\t", "\n"} & set(word) else []
            if invalid:
                raise ArgumentError(f"{invalid[0]!r} contains white space, which the file format cannot represent")
            lines.append(f"{word}\t{' '.join(units)}\n")
        path = Path(file)
        write_bytes(path, "".join(lines).encode())
        return path


def _require_words(words: tuple[str, ...]) -> None:
    if not words:
        raise ArgumentError("the vocabulary is empty; give at least one word")
    repeated = [word for word, count in Counter(words).items() if count > 1]
    if repeated:
        raise ArgumentError(
            f"words are given more than once ({len(repeated):,} of them), such as {repeated[0]!r}; give every word once"
        )
    if "" in words:
        raise ArgumentError(f"word {words.index('')} is empty")


def _word_unit(word: str, known: set[str]) -> str:
    """Name of the unit of an unsplit word, distinct from all units of the segmenters."""
    name = f"{_WORD}{word}"
    while name in known:
        name = f"{_WORD}{name}"
    return name


def _numbered(rows: list[tuple[str, ...]]) -> tuple[list[tuple[str, ...]], int]:
    """Make rows distinct by a number in the last place of repeated ones, and count the repeated rows."""
    seen: set[tuple[str, ...]] = set()
    numbers: Counter[tuple[str, ...]] = Counter()
    distinct, repeated = [], 0
    for row in rows:
        if row in seen:
            repeated += 1
            filled = next((place for place, unit in enumerate(row) if unit == _EMPTY), len(row) - 1)
            # Count by the units before the number: words whose last units differ may have the same units before it.
            head, tail = row[:filled], row[filled + 1 :]
            while row in seen:  # a segmenter may have returned such a unit itself
                numbers[head] += 1
                row = (*head, f"{_NUMBER}{numbers[head]}", *tail)
        seen.add(row)
        distinct.append(row)
    return distinct, repeated
