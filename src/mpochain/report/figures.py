"""Figures, readable in grey: series differ in marker and dash before they differ in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mpochain.errors import MissingDependencyError

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
# More lines than this leave no room for their names among them.
_MOST_WITHIN = 5
# Axes of logarithms from one end to the other, up to which parts of a decade are labelled.
_FEW_DECADES = 100.0


@dataclass(frozen=True)
class Series:
    """One line of a figure.

    Attributes:
        label: in the legend.
        x: positions; text for a categorical axis.
        y: values.
        line: whether the points are joined.
        markers: whether the points are marked.
        ends: the least and greatest value at each point, drawn as a bar through it; None for no bars.
    """

    label: str
    x: Sequence[Any]
    y: Sequence[float]
    line: bool = True
    markers: bool = True
    ends: Sequence[tuple[float, float]] | None = None


def require_matplotlib() -> None:
    """Raise MissingDependencyError, before any work, unless figures can be drawn."""
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
    note: str = "",
) -> None:
    """Draw series into a PNG file.

    Args:
        path: the file.
        series: what to draw, in order.
        title: above the figure.
        x: label of the horizontal axis, with its unit.
        y: label of the vertical axis, with its unit.
        axes: further settings of matplotlib's axes, such as ``xscale="log"``.
        note: small print below, such as where the numbers came from.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure, plot = _empty()
    from matplotlib.ticker import LogLocator

    categories = any(isinstance(value, str) for one in series for value in one.x)
    for k, one in enumerate(series):
        marker, dash = _STYLES[k % len(_STYLES)]
        plot.plot(
            one.x,
            one.y,
            label=one.label,
            color=_COLOURS[k % len(_COLOURS)],
            marker=marker if one.markers else None,
            linestyle=dash if one.line else "none",
            markersize=5,
            linewidth=1.4,
        )
        if one.ends is not None:
            plot.vlines(one.x, *zip(*one.ends, strict=True), color=_COLOURS[k % len(_COLOURS)], linewidth=2.2)
    if categories:
        plot.tick_params(axis="x", labelrotation=90, labelsize=7)
    plot.set(title=title, xlabel=x, ylabel=y, **(axes or {}))
    low, high = plot.get_xlim()
    if plot.get_xscale() == "log" and high < _FEW_DECADES * low:
        # Matplotlib labels every step of so few decades, and they run into each other.
        plot.set_xticks([], minor=True)
        plot.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        plot.xaxis.set_major_formatter("{x:,g}")
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
    """Draw bars into a PNG file, each series in front of the one before it: what is left in front of what there was.

    Args:
        path: the file.
        labels: one for each place.
        values: of each series, one for each place.
        title: above the figure.
        x: label of the horizontal axis.
        y: label of the vertical axis, with its unit.
        note: small print below.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure, plot = _empty()
    places = range(len(labels))
    for k, (label, heights) in enumerate(values.items()):
        plot.bar(
            places,
            heights,
            label=label,
            width=0.8 - 0.25 * k,
            color=_FILLS[k % len(_FILLS)],
            edgecolor="#000000",
            linewidth=0.5,
        )
    # Many labels would stand upon each other.
    every = max(1, len(labels) // 40)
    plot.set_xticks(list(places)[::every], list(labels)[::every], rotation=90 if max(map(len, labels)) > 2 else 0)
    plot.tick_params(axis="x", labelsize=7)
    plot.set(title=title, xlabel=x, ylabel=y)
    _finish(figure, plot, path, note, beside=True)


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
    figure.savefig(path, dpi=150)
