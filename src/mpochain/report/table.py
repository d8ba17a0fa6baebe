"""Tables of records as text for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpochain.errors import printable

__all__ = ["Column", "markdown", "text", "text_within"]


# Fewest characters that a text is shortened to.
_SHORTEST = 8


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
        """The value of a record in this column, as text on one line that cannot control a terminal."""
        value = record[self.key]
        return "-" if value is None else printable(format(value, self.format)).replace("\n", "\\n")


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


def text_within(
    columns: Sequence[Column], records: Sequence[Mapping[str, Any]], width: int, least_important: Sequence[str] = ()
) -> str:
    """The table as plain text with lines of at most ``width`` characters.

    If it is too wide, columns are left out, and then the texts of the first column are shortened.

    Args:
        columns: columns of the table.
        records: one per row.
        width: characters per line.
        least_important: keys of the columns that may be left out, the least important first.

    Example:
        >>> columns = [Column("name", "model"), Column("n", "count", ","), Column("error", "error")]
        >>> print(text_within(columns, [{"name": "model.layers.0", "n": 12, "error": 1}], 16, ["error"]))
        model      count
        ---------  -----
        …layers.0     12
    """
    columns = list(columns)

    def spare() -> int:
        return width - sum(_widths(_cells(columns, records))) - 2 * (len(columns) - 1)

    for key in least_important:
        if spare() < 0:
            columns = [column for column in columns if column.key != key]
    if spare() < 0:
        first = columns[0]
        room = max(max(map(len, (first.cell(record) for record in records))) + spare(), _SHORTEST)
        records = [{**record, first.key: _shortened(first.cell(record), room)} for record in records]
        columns[0] = Column(first.key, first.title)
    return text(columns, records)


def _shortened(cell: str, width: int) -> str:
    """The end of a text, which tells most in the name of a layer."""
    return cell if len(cell) <= width else f"…{cell[len(cell) - width + 1 :]}"


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
