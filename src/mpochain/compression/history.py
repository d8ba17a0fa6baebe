"""How a model was compressed, as Markdown for its model card."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from mpochain.checkpoint.card import Origin, origin_of, remember_origin
from mpochain.compression.summary import GROUP_COLUMNS, grouped
from mpochain.report.table import markdown
from mpochain.surgery.tying import state_ties

if TYPE_CHECKING:
    from mpochain.compression.records import CompressionReport

__all__ = ["history", "leave_marks"]

_SHOWN = ("kind", "count", "forms", "share", "bits", "weight_error", "output_error")


def history(report: CompressionReport, further: Iterable[str] = ()) -> str:
    """The call that made a compressed model, its sizes, and the errors of its layers by kind.

    Args:
        report: of the compression.
        further: paragraphs after the first one, such as the command and the perplexities.

    Example:
        >>> import mpochain as mpo
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> print(history(mpo.compress(model, 0.5, method="svd")).splitlines()[0])
        Compressed by `mpochain.compress(model, 0.5, method='svd')`: 2 of its layers ...
    """
    settings: dict[str, Any] = {"method": report.method}
    settings |= {} if report.speed is None else {"speed": report.speed}
    settings |= {"sequential": True} if report.sequential else {}
    settings |= {"stages": list(report.stages)} if report.stages else {}
    settings |= {"refine": True} if report.refined else {}
    arguments = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    share = report.bytes_after / report.bytes_before
    first = (
        f"Compressed by `mpochain.compress(model, {report.budget!r}, {arguments})`: {len(report.layers):,} of its "
        f"layers keep {share:.1%} of their storage, {report.bits_per_weight:.2f} bits per weight."
    )
    rows = grouped(report.layers)
    columns = [column for column in GROUP_COLUMNS if column.key in _SHOWN and any(row[column.key] for row in rows)]
    return "\n\n".join([first, *further, markdown(columns, rows)])


def leave_marks(model: nn.Module, report: CompressionReport) -> None:
    """Leave on a compressed model what those who save it must know: how it was compressed, and what is tied.

    Args:
        model: the compressed model; attributes are added.
        report: of its compression, which is added to those before.
    """
    before = origin_of(model)
    remember_origin(model, Origin(before.base, "\n\n".join(filter(None, (before.text, history(report))))))
    state_ties(model)
