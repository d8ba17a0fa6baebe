"""Line and bar charts as PNG files, readable in greyscale: series differ in marker and dash, not only in colour."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mpochain.errors import MissingDependencyError
from mpochain.system.files import write_bytes

__all__ = ["Series", "bars", "draw", "require_matplotlib"]

_STYLES = (
    ("o", "-"),
    ("s", "--"),
    ("^", "-."),
    ("D", ":"),
    ("v", (0, (5, 1))),
    ("P", (0, (1, 1))),
    ("X", (0, (8, 3))),
    ("*", (0, (3, 1, 1, 1, 1, 1))),
)
_FILLS = ("#dddddd", "#0072B2", "#000000")
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
# With more series than this, the legend is placed beside the axes.
_MOST_WITHIN = 5
# Quotient of the limits of a logarithmic axis below which labels within decades are placed by this module.
_FEW_DECADES = 100.0
# Labels within a decade, from few to many: the first of these that gives three labels is taken.
_STEPS = ((1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0), tuple(1.0 + k / 10 for k in range(90)))


@dataclass(frozen=True)
class Series:
    """One series of a line chart.

    Attributes:
        label: label in the legend.
        x: positions; strings for a categorical axis.
        y: values.
        line: whether the points are joined.
        markers: whether the points are marked.
        ends: smallest and largest value at each point, drawn as a vertical bar; None for no bars.
        names: a short name for each point, written beside it; None for no names.
    """

    label: str
    x: Sequence[Any]
    y: Sequence[float]
    line: bool = True
    markers: bool = True
    ends: Sequence[tuple[float, float]] | None = None
    names: Sequence[str] | None = None


def require_matplotlib() -> None:
    """Raise MissingDependencyError if matplotlib is not installed; call it before any long work."""
    if find_spec("matplotlib") is None:
        raise MissingDependencyError("figures need matplotlib; install it with: pip install 'mpochain[plot]'")


def draw(
    path: Path,
    series: Sequence[Series],
    *,
    title: str,
    x: str,
    y: str,
    axes: Mapping[str, Any] | None = None,
    level: float | None = None,
    note: str = "",
) -> None:
    """Draw series as a line chart into a PNG file. Logarithmic axes are labelled with plain numbers.

    Args:
        path: the file.
        series: the series, in the order of the legend.
        title: above the figure.
        x: label of the horizontal axis, with its unit.
        y: label of the vertical axis, with its unit.
        axes: further properties of matplotlib's axes, such as ``xscale="log"``.
        level: a value of the vertical axis to mark by a horizontal line, such as 1 for a ratio.
        note: small print below the figure, such as the source of the numbers.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure, plot = _empty()
    categories = any(isinstance(value, str) for line in series for value in line.x)
    for k, line in enumerate(series):
        marker, dash = _STYLES[k % len(_STYLES)]
        plot.plot(
            line.x,
            line.y,
            label=line.label,
            color=_COLOURS[k % len(_COLOURS)],
            marker=marker if line.markers else None,
            linestyle=dash if line.line else "none",
            markersize=5,
            linewidth=1.4,
        )
        if line.ends is not None:
            plot.vlines(line.x, *zip(*line.ends, strict=True), color=_COLOURS[k % len(_COLOURS)], linewidth=2.2)
        if line.names is not None:
            for *point, name in zip(line.x, line.y, line.names, strict=True):
                plot.annotate(name, point, xytext=(4, -2.5), textcoords="offset points", fontsize=7)
    if level is not None:
        plot.axhline(level, color="#000000", linewidth=1.0)
    if categories:
        plot.tick_params(axis="x", labelrotation=90, labelsize=7)
    plot.set(title=title, xlabel=x, ylabel=y, **(axes or {}))
    for axis in (plot.xaxis, plot.yaxis):
        if axis.get_scale() == "log":
            _label_plainly(axis)
    _finish(figure, plot, path, note, beside=len(series) > _MOST_WITHIN)


def bars(
    path: Path,
    labels: Sequence[str],
    values: Mapping[str, Sequence[float]],
    *,
    title: str,
    x: str,
    y: str,
    note: str = "",
) -> None:
    """Draw bars into a PNG file, each series in front of the one before it, such as "after" in front of "before".

    Args:
        path: the file.
        labels: one for each bar position.
        values: for each series, one value per bar position.
        title: above the figure.
        x: label of the horizontal axis.
        y: label of the vertical axis, with its unit.
        note: small print below the figure.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure, plot = _empty()
    positions = range(len(labels))
    for k, (label, heights) in enumerate(values.items()):
        plot.bar(
            positions,
            heights,
            label=label,
            width=0.8 - 0.25 * k,
            color=_FILLS[k % len(_FILLS)],
            edgecolor="#000000",
            linewidth=0.5,
        )
    # More than 40 labels would overlap.
    step = max(1, len(labels) // 40)
    plot.set_xticks(list(positions)[::step], list(labels)[::step], rotation=90 if max(map(len, labels)) > 2 else 0)
    plot.tick_params(axis="x", labelsize=7)
    plot.set(title=title, xlabel=x, ylabel=y)
    _finish(figure, plot, path, note, beside=True)


def _label_plainly(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers such as 20, 50 and 0.1, in place of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if high < _FEW_DECADES * low:
        steps = next(
            (
                steps
                for steps in _STEPS
                if sum(low <= step * 10.0**k <= high for step in steps for k in range(-30, 31)) > 2
            ),
            _STEPS[-1],
        )
        axis.set_minor_locator(LogLocator(subs=tuple(range(1, 10)), numticks=50))
        axis.set_major_locator(LogLocator(subs=steps, numticks=50))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter("{x:,g}")


def _empty() -> tuple[Any, Any]:
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    return figure, figure.subplots()


def _finish(figure: Any, plot: Any, path: Path, note: str, *, beside: bool) -> None:
    plot.grid(visible=True, linewidth=0.4, alpha=0.6)
    plot.set_axisbelow(True)
    plot.legend(frameon=False, **({"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if beside else {}))
    if note:
        figure.supxlabel(note, fontsize=6, color="#555555")
    content = io.BytesIO()
    figure.savefig(content, dpi=150)
    write_bytes(path, content.getvalue())
