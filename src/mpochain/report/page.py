"""Report pages with text, tables and figures, rendered as Markdown or as one self-contained HTML file."""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpochain.report.table import Column, markdown

__all__ = ["Block", "Figure", "Heading", "Page", "Table", "Text", "html_table"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; color: #111; }
h1, h2, h3 { line-height: 1.2; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.76rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.35rem; border-bottom: 1px solid #ccc; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 8rem; }
th { border-bottom: 2px solid #444; vertical-align: bottom; white-space: normal; }
figure { margin: 1.5rem 0; } img { max-width: 100%; } figcaption { color: #444; font-size: 0.9rem; }
"""


@dataclass(frozen=True)
class Heading:
    """Title of a section."""

    title: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph, or a bullet list if there are several lines."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table of records."""

    columns: Sequence[Column]
    records: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Figure:
    """A PNG file with its caption."""

    path: Path
    caption: str


Block = Heading | Text | Table | Figure


@dataclass
class Page:
    """A page: a title, and blocks below it.

    Example:
        >>> page = Page("Sizes", [Text(("One model.",))])
        >>> print(page.markdown(Path()))
        # Sizes
        <BLANKLINE>
        One model.
        <BLANKLINE>
    """

    title: str
    blocks: list[Block] = field(default_factory=list)

    def markdown(self, folder: Path) -> str:
        """The page as Markdown, for a file in ``folder``; paths of figures are relative to it."""
        parts = [f"# {self.title}"]
        for block in self.blocks:
            match block:
                case Heading(title, level):
                    parts.append(f"{'#' * level} {title}")
                case Text((line,)):
                    parts.append(line)
                case Text(lines):
                    parts.append("\n".join(f"- {line}" for line in lines))
                case Table(columns, records):
                    parts.append(markdown(columns, records))
                case Figure(path, caption):
                    parts.append(f"![{caption}]({Path(os.path.relpath(path, folder)).as_posix()})")
        return "\n\n".join(parts) + "\n"

    def html(self) -> str:
        """The page as one HTML file with embedded figures."""
        parts = [f"<h1>{html.escape(self.title)}</h1>"]
        for block in self.blocks:
            match block:
                case Heading(title, level):
                    parts.append(f"<h{level}>{_inline(title)}</h{level}>")
                case Text((line,)):
                    parts.append(f"<p>{_inline(line)}</p>")
                case Text(lines):
                    parts.append("<ul>" + "".join(f"<li>{_inline(line)}</li>" for line in lines) + "</ul>")
                case Table(columns, records):
                    parts.append(html_table(columns, records))
                case Figure(path, caption):
                    data = base64.b64encode(path.read_bytes()).decode()
                    name = html.escape(caption)
                    parts.append(
                        f'<figure><img alt="{name}" src="data:image/png;base64,{data}">'
                        f"<figcaption>{name}</figcaption></figure>"
                    )
        head = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        )
        return head + "<body>" + "\n".join(parts) + "</body></html>\n"


def _inline(text: str) -> str:
    """HTML of a line of Markdown, of which only code between backticks is known."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def html_table(columns: Sequence[Column], records: Sequence[Mapping[str, Any]]) -> str:
    """The table as HTML, with all text escaped."""
    titles = "".join(f"<th>{html.escape(column.title)}</th>" for column in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_inline(column.cell(record))}</td>" for column in columns) + "</tr>"
        for record in records
    )
    return f'<div class="table"><table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table></div>'
