"""Record of one layer before and after compression."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mpochain.wording import counted

__all__ = ["NONE_CORRECTED", "LayerRecord", "correction_note"]

# What is said of a sequential compression that found nothing to correct.
NONE_CORRECTED = "no layer writes the hidden states of its block by an addition alone, so none was corrected"


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
        mixing: share of the correction of the hidden states that the layer took on (``sequential=True``); 0 if it was
            left as it was, because none lowered the held-out error; None for a layer that is not corrected. The output
            error and the loss of a corrected layer are those with respect to its corrected weight.
        ridge: ridge of the correction, as a multiple of the mean power of the layer's inputs; None without one.
        block_error_uncorrected: held-out error of the outputs of the layer's block with the layer left as it was, in
            the measure of :class:`mpochain.compression.RefinedBlock`; None for a layer that is not corrected.
        block_error: the same with the layer as it is now.
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
    mixing: float | None = None
    ridge: float | None = None
    block_error_uncorrected: float | None = None
    block_error: float | None = None

    @property
    def bits_per_weight(self) -> float:
        """Bits that the replacement stores per entry of the dense weight, indices, scales and zeros included."""
        return 8 * self.bytes_after / self.parameters_before

    @property
    def correction(self) -> str | None:
        """The correction in a few characters: its share, and the ridge; None for a layer that is not corrected."""
        if self.mixing is None:
            return None
        return f"{self.mixing:g}, ridge {self.ridge:g}" if self.ridge is not None else "none"

    def costs_at_most(self, other: LayerRecord) -> bool:
        """Whether the replacement takes no more bytes and multiply-adds than another one."""
        return self.bytes_after <= other.bytes_after and self.macs_after <= other.macs_after

    @property
    def rows_per_input(self) -> float | None:
        """Calibration rows per input feature; None without data."""
        return None if self.rows is None else self.rows / self.shape[1]


def correction_note(layers: Iterable[LayerRecord]) -> str:
    """What a sequential compression corrected, in one line.

    Args:
        layers: records of all layers.
    """
    tried = [layer for layer in layers if layer.mixing is not None]
    if not tried:
        return NONE_CORRECTED
    before, after = (
        sum(getattr(layer, name) or 0.0 for layer in tried) / len(tried)
        for name in ("block_error_uncorrected", "block_error")
    )
    return (
        f"corrected {sum(bool(layer.mixing) for layer in tried)} of {counted(len(tried), 'layer')} that write the "
        f"hidden states; squared error of their blocks on rows set aside, mean over layers: {before:.4g} without each "
        f"correction, {after:.4g} with it"
    )
