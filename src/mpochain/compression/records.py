"""What became of each layer, and of the model."""

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
    """One layer.

    Attributes:
        name: in the model.
        shape: ``(out_features, in_features)``.
        form: what it became, as text; ``"dense"`` for a layer that was left as it is.
        parameters_before: of the weight.
        parameters_after: of what stands for it.
        bytes_before: of the weight.
        bytes_after: of what stands for it, indices too.
        macs_before: multiply-adds of one input row.
        macs_after: the same of what stands for it, without folding.
        weight_error: relative Frobenius error of the weight.
        output_error: relative error of the outputs on the calibration data; None without data.
        loss_increase: by how much the layer alone should raise the loss, nats per token, to second order; None without
            gradients.
        padding: norm of the row of padding of an embedding where it was zero and is so no more; None otherwise.
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
    """All layers, and how they were chosen.

    Attributes:
        layers: one record for each layer that was looked at.
        method: by its name.
        budget: as it was given; None for a method that takes none.
        allowed: parameters that the layers may have together.
        model_parameters: of the whole model, before.
        untouched: large layers that were not looked at, with their parameters, largest first.
        frontier: for other budgets, the share of the parameters that would be left and by how much all layers together
            should raise the loss, nats per token, to second order; empty for methods that do not know.
        seconds: the time it took.
        provenance: versions, machine and threads.
        largest_error: where the budget is an error, the most of any layer that was left out, as the method weighs it;
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
        """Of all layers that were looked at."""
        return sum(layer.parameters_before for layer in self.layers)

    @property
    def parameters_after(self) -> int:
        """Of what stands for them."""
        return sum(layer.parameters_after for layer in self.layers)

    @property
    def coverage(self) -> float:
        """Share of the model's parameters that is in these layers."""
        return self.parameters_before / self.model_parameters

    def rows(self) -> list[dict[str, Any]]:
        """One record for each layer, with a value for each column of the table."""
        return [
            {
                **asdict(layer),
                "size": f"{layer.shape[0]}x{layer.shape[1]}",
                "share": layer.parameters_after / layer.parameters_before,
            }
            for layer in self.layers
        ]

    def table(self) -> str:
        """One line for each layer, then the totals, as text."""
        before, after = self.parameters_before, self.parameters_after
        lines = [
            text(COLUMNS, self.rows()),
            "",
            f"{len(self.layers)} layers, {self.coverage:.1%} of {self.model_parameters:,} parameters: "
            f"{before:,} before, {after:,} after ({after / before:.1%}), allowed {self.allowed:,}",
        ]
        if self.largest_error is not None:
            bound = f"at most {self.largest_error:.4f}"
            lines.append(f"error of each layer as {self.method} weighs it, which the budget bounds: {bound}")
        lines += [
            f"padding of {layer.name}: its row was zero and has norm {layer.padding:.3g} now; mask it, or take svd, "
            "word2ket or token_train, which keep it"
            for layer in self.layers
            if layer.padding is not None
        ]
        slower = [layer.name for layer in self.layers if layer.macs_after > layer.macs_before]
        if slower:
            lines.append(f"more multiply-adds than dense: {len(slower)} layers, {slower[0]} among them")
        lines += [f"not looked at: {name}, {count:,} parameters" for name, count in self.untouched]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "coverage": self.coverage,
        }
