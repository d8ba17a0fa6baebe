"""Methods by which vLLM creates, loads and runs compressed linear layers, output heads and embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.model_executor.layers.linear import LinearMethodBase
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

from mpochain.errors import ArgumentError
from mpochain.integrations.vllm.folder import REMEDY
from mpochain.integrations.vllm.products import products_of
from mpochain.integrations.vllm.shards import Shards, layer_for

__all__ = ["CompressedLinearMethod", "CompressedTableMethod"]


# Where vLLM is not installed its classes have no types, where it is they have: hence both codes.
class CompressedLinearMethod(LinearMethodBase):  # type: ignore[misc,unused-ignore]
    """One or more layers that vLLM runs as one linear layer, at least one of them compressed.

    Args:
        names: names of the layers in the model, in the order of their outputs.
        entries: entries of the compressed ones, by name.
        shared: see :class:`mpochain.integrations.vllm.shards.Shards`.
        tied: see there.
    """

    def __init__(
        self, names: Sequence[str], entries: Mapping[str, Any], shared: dict[str, nn.Module], tied: Mapping[str, str]
    ) -> None:
        self._names, self._entries, self._shared, self._tied = names, entries, shared, tied

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,  # noqa: ARG002  # the signature of vLLM
        output_size: int,  # noqa: ARG002
        params_dtype: torch.dtype,
        **attributes: Any,  # noqa: ARG002
    ) -> None:
        """Put layers without values in place; vLLM loads them by ``load_weights``."""
        if layer.skip_bias_add:
            raise ArgumentError(f"vLLM adds the bias of {self._names[0]} elsewhere; {REMEDY}")
        sizes = [sum(output_partition_sizes)] if len(self._names) == 1 else output_partition_sizes
        if len(sizes) != len(self._names):
            raise ArgumentError(
                f"vLLM makes {len(sizes)} matrices of {', '.join(self._names)}, expected one of each; {REMEDY}"
            )
        device = torch.empty(0).device
        layers = {
            name: layer_for(
                self._entries.get(name),
                name,
                (size, input_size_per_partition),
                params_dtype,
                device,
                bias=layer.has_bias,
            )
            for name, size in zip(self._names, sizes, strict=True)
        }
        layer.shards = Shards(layers, self._shared, self._tied)
        layer.load_weights = layer.shards.load

    def process_weights_after_loading(self, layer: Any) -> None:
        """Check what was loaded, and bring it into the form that runs."""
        layer.shards.finish()
        layer.parts = products_of(layer.shards.layers)
        layer.bias = None  # the parts add theirs
        del layer.shards, layer.load_weights

    # The parts add their biases.
    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """``(..., in)`` to ``(..., out)`` of all parts, biases included."""
        output: Tensor = layer.parts(x)
        return output


class CompressedTableMethod(QuantizeMethodBase):  # type: ignore[misc,unused-ignore]
    """A compressed embedding, or a compressed output head.

    Args:
        name: name of the layer in the model.
        entry: its entry.
        shared: see :class:`mpochain.integrations.vllm.shards.Shards`.
        tied: see there.
    """

    def __init__(self, name: str, entry: Any, shared: dict[str, nn.Module], tied: Mapping[str, str]) -> None:
        self._name, self._entry, self._shared, self._tied = name, entry, shared, tied

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],  # noqa: ARG002  # the signature of vLLM
        input_size: int,  # noqa: ARG002
        output_size: int,  # noqa: ARG002
        params_dtype: torch.dtype,
        **attributes: Any,  # noqa: ARG002
    ) -> None:
        """Put a layer without values in place, without the rows that vLLM pads vocabularies with."""
        shape = layer.org_vocab_size, input_size_per_partition
        table = layer_for(self._entry, self._name, shape, params_dtype, torch.empty(0).device)
        layer.shards = Shards({self._name: table}, self._shared, self._tied)
        layer.load_weights = layer.shards.load

    def process_weights_after_loading(self, layer: Any) -> None:
        """Check what was loaded."""
        layer.shards.finish()
        (table,) = layer.shards.layers
        layer.table = table
        del layer.shards, layer.load_weights

    def embedding(self, layer: Any, input_: Tensor) -> Tensor:
        """Rows of the tokens."""
        rows: Tensor = layer.table(input_)
        return rows

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Logits, padded with zeros as vLLM expects."""
        logits: Tensor = layer.table(x)
        logits = F.pad(logits, (0, layer.num_embeddings_padded - logits.shape[-1]))
        return logits if bias is None else logits + bias

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:  # noqa: ARG002  # the signature of vLLM
        """Return the head itself, which takes the tensors that the folder states to be tied."""
        return layer
