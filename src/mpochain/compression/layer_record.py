"""Record of one layer before and after compression."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LayerRecord"]


@dataclass(frozen=True)
class LayerRecord:
    """Sizes and errors of one layer before and after compression.

    Attributes:
        name: name of the layer in the model.
        shape: ``(out_features, in_features)``.
        form: form of the replacement, as text; ``"dense"`` for a layer that stayed dense.
        parameters_before: parameters of the dense weight.
        parameters_after: parameters of its replacement.
        bytes_before: bytes of the dense weight.
        bytes_after: bytes of its replacement, indices included.
        macs_before: multiply-adds per input row of the dense layer; 0 for an embedding, whose rows are looked up.
        macs_after: multiply-adds per input row of its replacement, without folding.
        weight_error: relative Frobenius error of the weight.
        output_error: relative error of the outputs on the calibration data; None without data.
        loss_increase: predicted increase of the loss if only this layer is replaced, in nats per token, to second
            order; None without gradients.
        padding: norm of an embedding's padding row if the row was zero and no longer is; None otherwise.
        rows: number of input rows (tokens) of the calibration data that reached the layer, without masked ones; None
            without data.
        reason: why the layer stayed dense, if not because of the budget; None otherwise.
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
    rows: int | None = None
    reason: str | None = None

    @property
    def bits_per_weight(self) -> float:
        """Bits that the replacement stores per entry of the dense weight, indices, scales and zeros included."""
        return 8 * self.bytes_after / self.parameters_before

    @property
    def rows_per_input(self) -> float | None:
        """Calibration rows per input feature; None without data."""
        return None if self.rows is None else self.rows / self.shape[1]
