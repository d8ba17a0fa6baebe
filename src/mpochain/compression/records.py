"""Records of a compression: one for each layer, and a report of the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mpochain.report import Column, text

__all__ = ["COLUMNS", "CompressionReport", "LayerRecord"]

COLUMNS = (
    Column("name", "layer"),
    Column("size", "shape"),
    Column("form", "becomes"),
    Column("parameters_before", "parameters", ","),
    Column("parameters_after", "after", ","),
    Column("share", "share", ".2f"),
    Column("macs_before", "MACs/row", ","),
    Column("macs_after", "after", ","),
    Column("weight_error", "weight error", ".3f"),
    Column("output_error", "output error", ".3f"),
    Column("loss_increase", "loss +", ".4f"),
)


@dataclass(frozen=True)
class LayerRecord:
    """Sizes and errors of one layer before and after.

    Attributes:
        name: name in the model.
        shape: ``(out_features, in_features)``.
        form: form of the compressed layer, as text; ``"dense"`` for a layer that was not changed.
        parameters_before: of the weight.
        parameters_after: floating-point numbers that replace the weight.
        bytes_before: of the weight.
        bytes_after: of what replaces the weight, integer indices included.
        macs_before: multiply-adds of one input row; 0 for an embedding, whose rows are looked up.
        macs_after: multiply-adds of one input row of the compressed layer, without folding.
        weight_error: relative Frobenius error of the weight.
        output_error: relative error of the outputs on the calibration data; None without data.
        loss_increase: predicted increase of the loss by this layer alone, nats per token, to second order; None without
            gradients.
        padding: norm of an embedding's row of padding if it was zero and no longer is; None otherwise.
    """

    name: str
    shape: tuple[int, int]
    form: str
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    macs_before: int
    macs_after: int
    weight_error: float
    output_error: float | None
    loss_increase: float | None
    padding: float | None = None


@dataclass(frozen=True)
class CompressionReport:
    """All layers of a compressed model, and how their sizes were chosen.

    Attributes:
        layers: one record for each layer that was considered.
        method: name of the method.
        budget: as the caller gave it; None for a method without one.
        allowed: what the layers may store together, in elements of their weights.
        model_parameters: parameters of the model before.
        untouched: large modules that were not considered, with their parameters, largest first.
        frontier: for other budgets, the share of the parameters that would be left and the predicted increase of the
            loss by all layers together, nats per token, to second order; empty for methods that cannot predict it.
        seconds: duration.
        provenance: versions, machine and threads; no commit, for which git would have to run. Whoever publishes a
            report replaces it by ``mpochain.report.provenance(threads=..., commit=True)``.
        largest_error: if the budget is an error, the largest relative error of any layer in the measure of the method;
            None otherwise.
    """

    layers: tuple[LayerRecord, ...]
    method: str
    budget: float | str | None
    allowed: int
    model_parameters: int
    untouched: tuple[tuple[str, int], ...]
    frontier: tuple[tuple[float, float], ...]
    seconds: float
    provenance: dict[str, Any]
    largest_error: float | None = None

    @property
    def parameters_before(self) -> int:
        """Parameters of the weights of all layers."""
        return sum(layer.parameters_before for layer in self.layers)

    @property
    def parameters_after(self) -> int:
        """Parameters of all layers after compression."""
        return sum(layer.parameters_after for layer in self.layers)

    @property
    def coverage(self) -> float:
        """Share of the model's parameters that these layers hold."""
        return self.parameters_before / self.model_parameters

    def rows(self) -> list[dict[str, Any]]:
        """One row for each layer, with the fields of :data:`COLUMNS`."""
        return [
            {
                **asdict(layer),
                "size": f"{layer.shape[0]}x{layer.shape[1]}",
                "share": layer.parameters_after / layer.parameters_before,
            }
            for layer in self.layers
        ]

    def table(self) -> str:
        """The report as text: one line for each layer, then the totals."""
        before, after = self.parameters_before, self.parameters_after
        lines = [
            text(COLUMNS, self.rows()),
            "",
            f"{len(self.layers)} layers, {self.coverage:.1%} of {self.model_parameters:,} parameters: "
            f"{before:,} before, {after:,} after ({after / before:.1%}), allowed {self.allowed:,}",
        ]
        if self.largest_error is not None:
            bound = f"at most {self.largest_error:.4f}"
            lines.append(f"error of each layer in the measure of {self.method}, which the budget bounds: {bound}")
        lines += [
            f"padding of {layer.name}: its row was zero and has norm {layer.padding:.3g} now; mask it, or use svd, "
            "word2ket or token_train, which keep it zero"
            for layer in self.layers
            if layer.padding is not None
        ]
        slower = [layer.name for layer in self.layers if layer.macs_after > layer.macs_before]
        if slower:
            lines.append(f"more multiply-adds than dense: {len(slower)} layers, {slower[0]} among them")
        lines += [f"not considered: {name}, {count:,} parameters" for name, count in self.untouched]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The report as data for JSON."""
        return asdict(self) | {
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "coverage": self.coverage,
        }
