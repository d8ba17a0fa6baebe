"""Tables of records as text for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Column", "markdown", "text"]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: key of the value in a record.
        title: heading, with the unit.
        format: format specification of the values; ``None`` is shown as a dash.
    """

    key: str
    title: str
    format: str = ""

    def cell(self, record: Mapping[str, Any]) -> str:
        """The value of a record in this column, as text."""
        value = record[self.key]
        return "-" if value is None else format(value, self.format)


def _cells(columns: Sequence[Column], records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [[column.title for column in columns], *([column.cell(r) for column in columns] for r in records)]


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def text(columns: Sequence[Column], records: Sequence[Mapping[str, Any]]) -> str:
    """The table as plain text: the first column left-aligned, the others right-aligned.

    Example:
        >>> print(text([Column("name", "model"), Column("n", "count", ",")], [{"name": "dense", "n": 1234}]))
        model  count
        -----  -----
        dense  1,234
    """
    rows = _cells(columns, records)
    widths = _widths(rows)
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def markdown(columns: Sequence[Column], records: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown; characters that would end a cell or start an HTML tag are escaped.

    Example:
        >>> print(markdown([Column("name", "model"), Column("n", "count", ",")], [{"name": "dense", "n": 1234}]))
        | model | count |
        |:------|------:|
        | dense | 1,234 |
    """
    rows = [[cell.replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in _cells(columns, records)]
    widths = _widths(rows)
    body = [
        "| "
        + " | ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in rows
    ]
    rule = "|" + "|".join(
        (":" if k == 0 else "") + "-" * (w + 1) + ("" if k == 0 else ":") for k, w in enumerate(widths)
    )
    return "\n".join([body[0], rule + "|", *body[1:]])
