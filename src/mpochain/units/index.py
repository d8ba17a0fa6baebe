"""The units of every word of a vocabulary, as an index with as many places for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from mpochain.errors import SpecError
from mpochain.system.files import write_bytes

__all__ = ["Segmenter", "Units"]

# Stands where a word has fewer units than places.
_NOTHING = ""

# What a unit begins with that is a whole word, and one that only tells words apart.
_WHOLE, _APART = "=", "#"


class Segmenter(Protocol):
    """Takes a word apart."""

    def __call__(self, word: str) -> tuple[str, ...]:
        """The units of a word, those to be kept first; none for a word that is not known."""
        ...


@dataclass(frozen=True, eq=False)
class Units:
    """Which units each word is made of.

    Attributes:
        words: of the vocabulary, in its order.
        names: of the units, in the order of their first word.
        index: ``(words, order)`` numbers of units, int32.
        whole: how many words no segmenter knew, or of which only rare units were known: each is a unit of its own.
        cut: how many words had more units than places.
        padded: how many words have fewer; an empty unit stands in the places that are left.
        apart: how many words have a number in their last place because their units were those of another word.
    """

    words: tuple[str, ...]
    names: tuple[str, ...]
    index: NDArray[np.int32]
    whole: int
    cut: int
    padded: int
    apart: int

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
        """The index of a vocabulary.

        A word is taken apart by the first segmenter that knows it. Of more units than places the first are kept; with
        fewer, an empty unit fills the rest. A word that nobody knows is a unit of its own, named ``"=word"``.

        Args:
            words: each once; their order is that of the rows.
            segmenters: one or several, the best first.
            order: places, 2 or more.
            least: words that a unit must be shared by. Rarer ones are left out, before units are counted off: of
                hypernyms the more general ones then move up, and a word of rare units alone is asked of the next
                segmenter.
            distinct: whether words that would have the same units get a number in their last place, ``"#1"`` and on, so
                that no two have all units in common; the unit there is given up if the word has as many as places.

        Raises:
            SpecError: no words, one given twice, an empty one, or an order below 2.

        Example:
            >>> parts = {"undo": ("un", "do"), "redo": ("re", "do"), "untie": ("un", "tie")}
            >>> units = Units.of(["undo", "redo", "untie", "xylophone"], lambda word: parts.get(word, ()), order=2)
            >>> [units.units_of(word) for word in units.words]
            [('un', 'do'), ('re', 'do'), ('un', 'tie'), ('=xylophone', '')]
            >>> units.index.shape, units.whole, units.padded
            ((4, 2), 1, 1)
        """
        listed = tuple(words)
        _require_words(listed)
        if order < 2:
            raise SpecError(f"words have two places or more, got order {order}")
        asked = [segmenters] if callable(segmenters) else list(segmenters)
        parts: dict[str, tuple[str, ...]] = {}
        for segmenter in asked:
            left = {word: tuple(filter(None, segmenter(word))) for word in listed if word not in parts}
            shared = Counter(unit for units in left.values() for unit in set(units))
            kept = {word: tuple(unit for unit in units if shared[unit] >= least) for word, units in left.items()}
            parts |= {word: units for word, units in kept.items() if units}
        whole = len(listed) - len(parts)
        known = {unit for units in parts.values() for unit in units}
        rows = [parts[word] if word in parts else (_alone(word, known),) for word in listed]
        cut, padded = sum(len(row) > order for row in rows), sum(len(row) < order for row in rows)
        rows = [(*row[:order], *[_NOTHING] * (order - len(row))) for row in rows]
        apart = 0
        if distinct:
            rows, apart = _told_apart(rows)
        numbers: dict[str, int] = {}
        index = np.array([[numbers.setdefault(unit, len(numbers)) for unit in row] for row in rows], dtype=np.int32)
        return cls(listed, tuple(numbers), index, whole, cut, padded, apart)

    @property
    def order(self) -> int:
        """Places of each word."""
        return int(self.index.shape[1])

    @property
    def count(self) -> int:
        """Of units."""
        return len(self.names)

    def units_of(self, word: str) -> tuple[str, ...]:
        """The units of a word of the vocabulary by their names.

        Raises:
            SpecError: it is not in the vocabulary.
        """
        if word not in self.words:
            raise SpecError(f"{word!r} is not among the {len(self.words)} words")
        return tuple(self.names[unit] for unit in self.index[self.words.index(word)])

    def write(self, file: Path | str) -> Path:
        """Write ``word<TAB>unit unit ...``, one line each, which :class:`Listing` reads; empty units are left out.

        Raises:
            SpecError: a word or unit with a blank in it, which the file could not tell from two.
            OutputError: it cannot be written.
        """
        lines = []
        for word, row in zip(self.words, self.index, strict=True):
            units = [self.names[unit] for unit in row if self.names[unit] != _NOTHING]
            odd = [unit for unit in units if len(unit.split()) != 1]
            odd += [word] if word.strip() != word or {"\t", "\n"} & set(word) else []
            if odd:
                raise SpecError(f"{odd[0]!r} has a blank in it, which the file cannot hold")
            lines.append(f"{word}\t{' '.join(units)}\n")
        path = Path(file)
        write_bytes(path, "".join(lines).encode())
        return path


def _require_words(words: tuple[str, ...]) -> None:
    if not words:
        raise SpecError("there are no words")
    twice = [word for word, count in Counter(words).items() if count > 1]
    if twice:
        raise SpecError(f"{len(twice)} words are given twice, {twice[0]!r} among them; each row is one word")
    if "" in words:
        raise SpecError(f"word {words.index('')} is empty")


def _alone(word: str, known: set[str]) -> str:
    """The name of a unit that is a whole word, and that no segmenter has given to another."""
    name = f"{_WHOLE}{word}"
    while name in known:
        name = f"{_WHOLE}{name}"
    return name


def _told_apart(rows: list[tuple[str, ...]]) -> tuple[list[tuple[str, ...]], int]:
    """Numbers in the last place of all but the first word of the same units, and how many that were."""
    seen: set[tuple[str, ...]] = set()
    numbers: Counter[tuple[str, ...]] = Counter()
    found, apart = [], 0
    for row in rows:
        if row in seen:
            apart += 1
            filled = next((place for place, unit in enumerate(row) if unit == _NOTHING), len(row) - 1)
            # By what stands before the number: words whose last units differ may have that in common.
            head, tail = row[:filled], row[filled + 1 :]
            while row in seen:  # a segmenter may have given such a unit itself
                numbers[head] += 1
                row = (*head, f"{_APART}{numbers[head]}", *tail)
        seen.add(row)
        found.append(row)
    return found, apart
