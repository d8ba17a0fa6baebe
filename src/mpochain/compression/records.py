"""Compression report of a model, with one record per layer."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass
from typing import Any

from mpochain.compression.blocks.refined_blocks import RefinedBlock, refinement_note
from mpochain.compression.layer_record import LayerRecord, correction_note
from mpochain.compression.sufficiency import HeldOut, too_few_rows
from mpochain.compression.summary import summary
from mpochain.errors import MissingDependencyError
from mpochain.report import Column, text
from mpochain.report.page import html_table
from mpochain.report.table import text_within
from mpochain.wording import counted

__all__ = ["COLUMNS", "CompressionReport", "LayerRecord"]

COLUMNS = (
    Column("name", "layer"),
    Column("size", "shape"),
    Column("form", "becomes"),
    Column("parameters_before", "parameters", ","),
    Column("parameters_after", "after", ","),
    Column("share", "share", ".2f"),
    Column("bytes_after", "bytes", ","),
    Column("bits_per_weight", "bits", ".2f"),
    Column("macs_before", "MACs/row", ","),
    Column("macs_after", "after", ","),
    Column("weight_error", "weight error", ".3f"),
    Column("output_error", "output error", ".3f"),
    Column("loss_increase", "loss +", ".4f"),
)
# Shown after a sequential compression alone.
_CORRECTION = Column("correction", "corrected by")

# Columns that are left out first where there is no room.
_LEAST_IMPORTANT = (
    *("macs_before", "macs_after", "weight_error", "parameters_before", "bytes_after", "size", "loss_increase"),
    *("parameters_after", "bits_per_weight"),
)
# Layers with one reason to stay dense that the report names; the records have them all.
_NAMED = 4


@dataclass(frozen=True, repr=False)
class CompressionReport:
    """Result of compressing a model: a record of each layer, the budget and the predicted trade-off.

    Attributes:
        layers: one record per target layer.
        method: name of the method.
        budget: budget as the user gave it; None for a method that takes none.
        allowed_bytes: storage limit of all target layers together, in bytes.
        model_parameters: parameters of the uncompressed model.
        untouched: names and parameters of large modules that were not targets, largest first.
        frontier: predicted trade-off for other budgets: pairs of the share of parameters kept and the total increase of
            the loss, in nats per token, to second order; empty if the method does not predict it.
        seconds: duration of the compression.
        provenance: versions, machine and threads, without the commit, because that would start git. Before publishing,
            replace it by ``mpochain.report.provenance(threads=..., commit=True)``.
        largest_error: largest relative error of any layer, in the measure of the method, if the budget is an error;
            None otherwise.
        model_bytes: bytes of the parameters and buffers of the uncompressed model.
        loss: the loss whose gradients weighted the outputs, as text; None if the method takes no gradients.
        shared: names of further layers that stay dense because they share a parameter with another module, or because
            their forward, weight or state was altered, with the reason; they are not among ``layers``.
        held_out: how well the result holds on data that were set aside; None without such data.
        refined: one record per refined block; empty without refinement.
        speed: second budget, of multiply-adds, as the user gave it; None without one.
        sequential: whether layers were corrected for the drift of the hidden states; their records say how.
        stages: budgets of the earlier stages; empty without any.
    """

    layers: tuple[LayerRecord, ...]
    method: str
    budget: float | str | None
    allowed_bytes: int
    model_parameters: int
    untouched: tuple[tuple[str, int], ...]
    frontier: tuple[tuple[float, float], ...]
    seconds: float
    provenance: dict[str, Any]
    largest_error: float | None = None
    model_bytes: int = 0
    loss: str | None = None
    shared: tuple[tuple[str, str], ...] = ()
    held_out: HeldOut | None = None
    refined: tuple[RefinedBlock, ...] = ()
    speed: float | str | None = None
    sequential: bool = False
    stages: tuple[float | str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({counted(len(self.layers), 'layer')}, {self.parameters_before:,} -> "
            f"{self.parameters_after:,} parameters, method={self.method!r}, budget={self.budget!r})"
        )

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        """The report in a notebook: the totals, and one row per layer."""
        totals, _, _ = self.summary().partition("\n\n")
        lines = "<br>".join(map(html.escape, totals.splitlines()))
        return f"<p>{lines}</p>{html_table(COLUMNS, self.rows())}"

    @property
    def parameters_before(self) -> int:
        """Parameters of all target layers before compression."""
        return sum(layer.parameters_before for layer in self.layers)

    @property
    def parameters_after(self) -> int:
        """Parameters of all target layers after compression."""
        return sum(layer.parameters_after for layer in self.layers)

    @property
    def allowed(self) -> int:
        """The limit in elements of the dense weights, :attr:`allowed_bytes` over the mean size of an element."""
        return self.allowed_bytes * self.parameters_before // self.bytes_before

    @property
    def bytes_before(self) -> int:
        """Bytes of the weights of all target layers before compression."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """Bytes of what all target layers store instead of their weights, indices, scales and zeros included."""
        return sum(layer.bytes_after for layer in self.layers)

    @property
    def macs_before(self) -> int:
        """Multiply-adds per input row of all target layers before compression."""
        return sum(layer.macs_before for layer in self.layers)

    @property
    def macs_after(self) -> int:
        """Multiply-adds per input row of all target layers after compression."""
        return sum(layer.macs_after for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Bits that all target layers store per entry of their dense weights."""
        return 8 * self.bytes_after / self.parameters_before

    @property
    def model_bytes_after(self) -> int:
        """Bytes of the parameters and buffers of the compressed model."""
        return self.model_bytes - self.bytes_before + self.bytes_after

    @property
    def coverage(self) -> float:
        """Share of the model's parameters that the target layers hold."""
        return self.parameters_before / self.model_parameters

    def rows(self) -> list[dict[str, Any]]:
        """Rows of the table, one per layer, with a value for each column."""
        return [
            {
                **asdict(layer),
                "size": f"{layer.shape[0]}x{layer.shape[1]}",
                "share": layer.parameters_after / layer.parameters_before,
                "bits_per_weight": layer.bits_per_weight,
                "correction": layer.correction,
            }
            for layer in self.layers
        ]

    def summary(self, width: int = 100) -> str:
        """Report as text: sizes and errors of the model, then one line for all layers of a kind; ``print`` shows it.

        Args:
            width: characters per line; the least important columns are left out if they do not fit.
        """
        return summary(self, width)

    def table(self, width: int | None = None) -> str:
        """Report as text: one line per layer, then the totals.

        Args:
            width: characters per line; None for as many as the columns take.
        """
        before, after = self.parameters_before, self.parameters_after
        rows = self.rows()
        columns = (*COLUMNS, _CORRECTION) if self.sequential else COLUMNS
        return "\n".join(
            [
                text(columns, rows) if width is None else text_within(columns, rows, width, _LEAST_IMPORTANT),
                "",
                f"{counted(len(self.layers), 'layer')}, {self.coverage:.1%} of {self.model_parameters:,} parameters: "
                f"{before:,} before, {after:,} after ({after / before:.1%})",
                f"bytes: {self.bytes_before:,} before, {self.bytes_after:,} after ({self.bits_per_weight:.2f} bits per "
                f"weight), allowed {self.allowed_bytes:,}",
                *self.notes(),
            ]
        )

    def to_pandas(self) -> Any:
        """The records of the layers as a ``pandas.DataFrame``, one row per layer.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        try:
            import pandas  # type: ignore[import-untyped]
        except ImportError as error:
            raise MissingDependencyError("to_pandas() needs pandas; install it with: pip install pandas") from error
        return pandas.DataFrame(self.rows()).drop(columns="size").set_index("name")

    def notes(self) -> list[str]:
        """What else a reader should know, one line each, such as padding, slower layers and other large modules."""
        lines = []
        if self.budget is not None and self.largest_error is None and self.allowed_bytes >= self.bytes_before:
            lines.append(f"budget {self.budget} does not bind: it allows all layers as they are; give less")
        if self.largest_error is not None:
            bound = f"at most {self.largest_error:.4f}"
            lines.append(f"error of each layer, in the measure of {self.method} that the budget bounds: {bound}")
        lines += [
            f"padding of {layer.name}: its row was zero and now has norm {layer.padding:.3g}; mask it, or choose svd, "
            "word2ket or token_train, which keep it zero"
            for layer in self.layers
            if layer.padding is not None
        ]
        lines += self._calibration()
        slower = [layer.name for layer in self.layers if layer.macs_after > layer.macs_before]
        if slower:
            lines.append(f"more multiply-adds than dense: {counted(len(slower), 'layer')}, including {slower[0]}")
        return lines + [f"not considered: {name}, {count:,} parameters" for name, count in self.untouched]

    def _calibration(self) -> list[str]:
        """Lines on the data: the loss, layers that stay dense and why, whether the data were enough."""
        lines = [] if self.loss is None else [f"loss that weights the outputs: {self.loss}"]
        dense: dict[str, list[str]] = {}
        for name, reason in [*((layer.name, layer.reason) for layer in self.layers if layer.reason), *self.shared]:
            dense.setdefault(reason, []).append(name)
        for reason, names in dense.items():
            more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
            lines.append(f"stays dense: {', '.join(names[:_NAMED])}{more}: {reason}")
        shortage = too_few_rows(self.layers)
        if shortage is not None:
            lines.append(f"warning: {shortage}")
        if self.held_out is not None:
            lines.append(str(self.held_out))
        if self.stages:
            last = f"the model compressed to {self.stages[-1]}"
            before = f", after {', '.join(map(str, self.stages[:-1]))}" if self.stages[1:] else ""
            lines.append(f"statistics of the last stage: from {last}{before}")
        if self.sequential:
            lines.append(correction_note(self.layers))
        if self.refined:
            lines.append(refinement_note(self.refined))
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Report as a dictionary that JSON can store."""
        return asdict(self) | {
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "allowed": self.allowed,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "bits_per_weight": self.bits_per_weight,
            "macs_before": self.macs_before,
            "macs_after": self.macs_after,
            "coverage": self.coverage,
            "model_bytes_after": self.model_bytes_after,
        }
