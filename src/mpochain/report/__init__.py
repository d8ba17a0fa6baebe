"""Tables, figures, pages and provenance of results. Does not import torch."""

from mpochain.report.provenance import provenance
from mpochain.report.table import Column, markdown, text

__all__ = ["Column", "markdown", "provenance", "text"]
