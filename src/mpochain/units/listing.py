"""Segmentation of words from a file that lists their units."""

from __future__ import annotations

from pathlib import Path

from mpochain.errors import CorpusError
from mpochain.system.reading import read_bytes

__all__ = ["Listing"]

_LONGEST = 1 << 30  # WordNet's largest file has 16 MB


class Listing:
    r"""Units from a file of lines ``word<TAB>unit unit ...``, in UTF-8; empty lines are ignored.

    Args:
        file: the file to read.

    Raises:
        CorpusError: the file is missing or not UTF-8, a line has no tab or no units, or a word has different units in
            two lines. The message names the line.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "units.tsv"
        ...     _ = file.write_text("undo\tun do\n", encoding="utf-8")
        ...     listing = Listing(file)
        >>> listing("undo"), listing("redo")
        (('un', 'do'), ())
    """

    def __init__(self, file: Path | str) -> None:
        self._units: dict[str, tuple[str, ...]] = {}
        for number, line in lines_of(Path(file)):
            if not line.strip():
                continue
            word, tab, rest = line.partition("\t")
            units = tuple(rest.split())
            if not tab or not word or not units:
                raise CorpusError(f"{file}:{number}: expected word<TAB>unit unit ..., got {line!r}")
            if self._units.setdefault(word, units) != units:
                raise CorpusError(
                    f"{file}:{number}: {word!r} has different units in an earlier line, {' '.join(self._units[word])!r}"
                )

    def __call__(self, word: str) -> tuple[str, ...]:
        """The units of a word; an empty tuple if it is not listed."""
        return self._units.get(word, ())

    def __len__(self) -> int:
        return len(self._units)


def lines_of(file: Path) -> list[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, from 1, without line ends.

    Raises:
        CorpusError: the file cannot be read, or has another encoding.
    """
    try:
        data = read_bytes(file, _LONGEST)
    except OSError as error:
        raise CorpusError(f"{file} cannot be read: {error.strerror or error}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CorpusError(f"{file}:{line}: byte {data[error.start]:#04x} is not UTF-8; convert the file") from error
    return [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1)]
