"""Units of vocabularies: a fixed number per word, distinct words, and the segmenters."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpochain.errors import ArgumentError, CorpusError, MPOError
from mpochain.units import Listing, Morphemes, Pieces, Units, WordNet

NOUNS = """  1 This stands for the licence, which is indented.
00000001 03 n 01 entity 0 000 | what is
00000010 03 n 02 animal 0 beast 0 001 @ 00000001 n 0000 | lives
00000020 05 n 01 dog 0 002 @ 00000010 n 0000 ~ 00000030 n 0000 | barks
00000030 05 n 01 Fido 0 001 @i 00000020 n 0000 | one of them
00000040 05 n 01 goose 0 001 @ 00000010 n 0000 | honks
00000050 07 n 01 speed 0 000 | how fast
"""
VERBS = """00000001 38 v 01 run 0 001 @ 00000002 v 0000 01 + 01 00 | fast
00000002 38 v 01 move 0 001 @ 00000001 v 0000 01 + 01 00 | these two are above each other
"""
ADJECTIVES = """00000001 00 a 01 fast 0 002 = 00000050 n 0000 & 00000002 a 0000 | a head
00000002 00 s 01 quick(a) 0 001 & 00000001 a 0000 | like it
"""
ADVERBS = "00000001 02 r 01 quickly 0 001 \\ 00000002 a 0101 | from the adjective\n"


@pytest.fixture
def folder(tmp_path):
    """A small database of the form of the real one."""
    files = {
        "data.noun": NOUNS,
        "index.noun": "  1 licence\nanimal n 1 1 @ 1 1 00000010\nbeast n 1 1 @ 1 0 00000010\n"
        "dog n 1 2 @ ~ 1 1 00000020\nfido n 1 1 @i 1 0 00000030\ngoose n 1 1 @ 1 0 00000040\nrun n 1 0 1 0 00000050\n",
        "data.verb": VERBS,
        "index.verb": "dog v 1 1 @ 1 0 00000002\nmove v 1 1 @ 1 1 00000002\nrun v 2 1 @ 2 2 00000001 00000002\n",
        "data.adj": ADJECTIVES,
        "index.adj": "fast a 1 1 = 1 1 00000001\nquick a 1 1 & 1 1 00000002\n",
        "data.adv": ADVERBS,
        "index.adv": "quickly r 1 1 \\ 1 1 00000001\n",
        "noun.exc": "geese goose\n",
        "verb.exc": "ran run\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("word", "units"),
    [
        ("dog", ("dog.n.20", "animal.n.10", "entity.n.1")),
        ("Dogs", ("dog.n.20", "animal.n.10", "entity.n.1")),
        ("beast", ("animal.n.10", "entity.n.1")),  # another word of the same meaning
        ("Fido", ("fido.n.30", "dog.n.20", "animal.n.10", "entity.n.1")),
        ("geese", ("goose.n.40", "animal.n.10", "entity.n.1")),  # irregular
        ("ran", ("run.v.1", "move.v.2")),  # a cycle; more often a verb
        ("quick", ("quick.a.2", "fast.a.1", "speed.n.50")),
        ("quickly", ("quickly.r.1", "quick.a.2", "fast.a.1", "speed.n.50")),
        ("cat", ()),
        ("", ()),
    ],
)
def test_sememes_are_the_meanings_above_the_first_sense(folder, word, units):
    assert WordNet(folder)(word) == units


def test_meanings_of_several_senses_alternate(folder):
    assert WordNet(folder, senses=2)("dog") == ("dog.n.20", "move.v.2", "animal.n.10", "run.v.1", "entity.n.1")
    (folder / "noun.exc").unlink()
    assert WordNet(folder)("geese") == ()
    with pytest.raises(ArgumentError, match="senses must be at least 1, got 0"):
        WordNet(folder, senses=0)


def test_database_in_an_npm_package(folder):
    within = folder / "package" / "dict"
    within.mkdir(parents=True)
    for file in [path for path in folder.iterdir() if path.is_file()]:
        file.rename(within / file.name)
    assert WordNet(within.parent)("beast") == ("animal.n.10", "entity.n.1")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("data.noun", "00000001 03 n zz entity 0 000 | no\n", "data.noun:1: not a line of a WordNet data file"),
        ("data.verb", "00000001 03 v 01 run 0 003 @ 0001\n", "data.verb:1: not a line"),
        ("index.adj", "fast a 1 1 = 1 1\n", "index.adj:1: not a line of a WordNet index"),
        ("index.adv", "word\n", "index.adv:1: not a line"),
        ("index.noun", None, "index.noun cannot be read"),
        ("data.adj", b"\xff\xfe", "data.adj:1: byte 0xff is not UTF-8"),
    ],
)
def test_damaged_database_is_refused_with_its_line(folder, file, text, message):
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CorpusError, match=message):
        WordNet(folder)


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=6), st.lists(st.text("xyz", min_size=1), max_size=5), min_size=1
    ),
    st.integers(2, 4),
    st.integers(1, 3),
)
def test_words_fill_their_places_and_are_distinct(parts, order, least):
    units = Units.of(parts, lambda word: tuple(parts[word]), order, least=least)
    assert units.index.shape == (len(parts), order)
    assert units.index.dtype == np.int32
    assert len({tuple(row) for row in units.index.tolist()}) == len(parts)
    assert set(units.index.ravel().tolist()) == set(range(units.count))
    assert len(set(units.names)) == units.count
    plain = Units.of(parts, lambda word: tuple(parts[word]), order, least=least, distinct=False)
    assert plain.numbered == 0
    for word in parts:
        kept = [unit for unit in parts[word] if sum(unit in other for other in parts.values()) >= least][:order]
        assert [unit for unit in plain.units_of(word) if unit] == (kept or [f"={word}"])


def test_next_segmenter_splits_words_unknown_to_the_first():
    first, second = {"undo": ("un", "do")}, {"undo": ("not this",), "walk": ("wa", "lk")}
    segmenters = [lambda word: first.get(word, ()), lambda word: second.get(word, ())]
    units = Units.of(["undo", "walk", "xyz"], segmenters, 2)
    assert [units.units_of(word) for word in units.words] == [("un", "do"), ("wa", "lk"), ("=xyz", "")]
    assert (units.unsplit, units.truncated, units.padded, units.numbered) == (1, 0, 1, 0)


def test_numbers_replace_the_last_units_of_repeated_rows():
    parts = dict.fromkeys("abc", ("x", "y", "z")) | {"d": ("x", "z"), "e": ("x",)}
    units = Units.of(parts, parts.get, 2)
    assert [units.units_of(word) for word in units.words] == [
        ("x", "y"),
        ("x", "#1"),
        ("x", "#2"),
        ("x", "z"),
        ("x", ""),
    ]
    assert (units.truncated, units.padded, units.numbered) == (3, 1, 2)


def test_units_that_look_like_numbers_or_words_stay_distinct():
    parts = {"a": ("x", "#1"), "b": ("x",), "c": ("x", ""), "d": ("x", "#2"), "e": ("=y", "z"), "y": ()}
    units = Units.of(parts, parts.get, 2)
    assert len({tuple(row) for row in units.index.tolist()}) == len(parts)
    assert units.units_of("b") == ("x", "")
    assert units.units_of("y") == ("==y", "")


@pytest.mark.parametrize(
    ("words", "order", "message"),
    [
        ([], 2, "the vocabulary is empty"),
        (["a", "b", "a"], 2, r"words are given more than once \(1 of them\), such as 'a'"),
        (["a", ""], 2, "word 1 is empty"),
        (["a"], 1, "order must be at least 2, got 1"),
    ],
)
def test_invalid_vocabularies_are_refused(words, order, message):
    with pytest.raises(ArgumentError, match=message):
        Units.of(words, lambda word: (word,), order)
    with pytest.raises(ArgumentError, match="'z' is not among the 1 word of the vocabulary"):
        Units.of(["a"], lambda word: (word,), 2).units_of("z")


def test_written_units_are_read_back(tmp_path):
    parts = {"undo": ("un", "do", "it"), "été": ("ét", "é"), "redo": ("re",)}
    units = Units.of(parts, parts.get, 2)
    listing = Listing(units.write(tmp_path / "units.tsv"))
    assert len(listing) == 3
    again = Units.of(parts, listing, 2)
    np.testing.assert_array_equal(again.index, units.index)
    assert again.names == units.names
    with pytest.raises(ArgumentError, match="'a b' contains white space"):
        Units.of(["word"], lambda word: ("a b",), 2).write(tmp_path / "other.tsv")
    with pytest.raises(ArgumentError, match=r"'two\\twords' contains white space"):
        Units.of(["two\twords"], lambda word: ("a",), 2).write(tmp_path / "other.tsv")


def test_listing_ignores_empty_lines_and_accepts_crlf(tmp_path):
    file = tmp_path / "units.tsv"
    file.write_bytes("\ufeffundo\tun do\r\n\r\n  \nice cream\tice cream\nundo\tun  do\n".encode())
    listing = Listing(file)
    assert (listing("undo"), listing("ice cream"), listing("redo"), len(listing)) == (
        ("un", "do"),
        ("ice", "cream"),
        (),
        2,
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("undo un do\n", "units.tsv:1: expected word<TAB>unit unit ..., got 'undo un do'"),
        ("a\tb\nundo\t \n", "units.tsv:2: expected"),
        ("\tun do\n", "units.tsv:1: expected"),
        ("undo\tun do\n\nundo\tund o\n", "units.tsv:3: 'undo' has different units in an earlier line, 'un do'"),
        ("a\tb\nété\té\n".encode("latin-1"), "units.tsv:2: byte 0xe9 is not UTF-8; convert the file"),
        ("a\tb\n".encode("utf-16"), "units.tsv:1: byte 0xff is not UTF-8"),
    ],
)
def test_malformed_listing_is_refused_with_its_line(tmp_path, data, message):
    file = tmp_path / "units.tsv"
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(CorpusError, match=message):
        Listing(file)
    with pytest.raises(CorpusError, match="cannot be read: No such file"):
        Listing(tmp_path / "none.tsv")


WORDS = [stem + end for stem in ("walk", "talk", "jump", "play", "look") for end in ("", "s", "ed", "ing", "er")]


def test_morphemes_of_the_corpus_are_deterministic():
    pytest.importorskip("morfessor")
    morphemes = Morphemes.train(dict.fromkeys(WORDS, 3) | {"never": 0})
    assert morphemes("walking") == ("walk", "ing")
    assert "".join(morphemes("unseen")) == "unseen"
    assert [Morphemes.train(dict.fromkeys(WORDS, 3))(word) for word in WORDS] == [morphemes(word) for word in WORDS]
    units = Units.of(WORDS, morphemes, 2)
    assert units.count < len(WORDS) / 2
    with pytest.raises(CorpusError, match="no words to train morphemes on"):
        Morphemes.train({"word": 0})


def test_pieces_concatenate_to_the_word():
    pytest.importorskip("tokenizers")
    pieces = Pieces.train(WORDS, size=40)
    for word in [*WORDS, "swing"]:
        assert "".join(pieces(word)) == word
    assert pieces("語") == ()
    assert pieces("語ing") == pieces("ing")
    assert len(pieces("walking")) < len("walking")
    assert issubclass(CorpusError, MPOError)
    with pytest.raises(CorpusError, match="no words to train pieces on"):
        Pieces.train(["", ""], size=30)


def test_pieces_are_the_same_in_every_process():
    pytest.importorskip("tokenizers")
    code = (
        "import sys; from mpochain.units import Pieces; words = sys.argv[1:]; pieces = Pieces.train(words, 30); "
        "print([pieces(word) for word in words])"
    )
    runs = {subprocess.check_output([sys.executable, "-c", code, *WORDS], text=True) for _ in range(4)}
    assert len(runs) == 1
