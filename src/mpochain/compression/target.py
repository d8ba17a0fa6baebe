"""Dense layer of a model with its weight and bias, opened for compression."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from mpochain.arrays import norm, promoted
from mpochain.errors import NonFiniteError
from mpochain.nn.attachments import require_nothing_attached
from mpochain.nn.dense import weight_and_bias
from mpochain.nn.embeddings import MPOEmbedding
from mpochain.spec import ChainSpec

__all__ = ["Target"]

# Smallest norm of a weight whose square, and products of it with other squares, float64 holds.
_LEAST_NORM = 1e-100


@dataclass(frozen=True, eq=False)
class Target:
    """A dense layer or embedding of a model, with its weight and bias.

    Attributes:
        name: name of the module in the model.
        module: the dense module, which is not changed.
        weight: ``W (out, in)`` of a linear layer or the table ``(num_embeddings, embedding_dim)`` of an embedding,
            detached and not copied; a view for a Hugging Face ``Conv1D``.
        bias: ``(out,)``, detached and not copied; None for a layer without bias.
        trainable: whether the weight required gradients when the layer was opened.
        bias_trainable: whether the bias did.
        training: whether the module was in training mode then.
    """

    name: str
    module: nn.Module
    weight: Tensor
    bias: Tensor | None
    trainable: bool = True
    bias_trainable: bool = True
    training: bool = True

    @classmethod
    def open(cls, name: str, module: nn.Module) -> Target:
        """Read the weight and bias of a dense module.

        Args:
            name: name of the module, for records and errors.
            module: a ``torch.nn.Linear``, a Hugging Face ``Conv1D`` or a ``torch.nn.Embedding``.

        Raises:
            DTypeError: the module has another type or its own ``forward``, or its weight is on the meta device.

        Example:
            >>> target = Target.open("up", nn.Linear(3, 2))
            >>> target.name, target.shape, target.is_embedding
            ('up', (2, 3), False)
        """
        weight, bias = weight_and_bias(module, name)
        return cls(
            name,
            module,
            weight.detach(),
            None if bias is None else bias.detach(),
            weight.requires_grad,
            bias is not None and bias.requires_grad,
            module.training,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)`` of the weight."""
        out, in_ = self.weight.shape
        return int(out), int(in_)

    @property
    def parameters(self) -> int:
        """Number of entries of the weight."""
        return self.weight.numel()

    @property
    def element_size(self) -> int:
        """Bytes of one entry of the weight."""
        return self.weight.element_size()

    @property
    def bytes(self) -> int:
        """Bytes of the weight."""
        return self.parameters * self.element_size

    @property
    def is_embedding(self) -> bool:
        """Whether rows of the weight are looked up instead of multiplied."""
        return isinstance(self.module, nn.Embedding)

    @property
    def macs(self) -> int:
        """Multiply-adds per input row: ``out * in``, or 0 for an embedding, whose rows are looked up."""
        return 0 if self.is_embedding else self.parameters

    def chain_macs(self, spec: ChainSpec) -> int:
        """Multiply-adds per row if a chain replaces this layer and is contracted site by site.

        Example:
            >>> spec = ChainSpec((8, 8), (8, 8), max_bond=2)
            >>> Target.open("up", nn.Linear(64, 64)).chain_macs(spec)
            2048
            >>> Target.open("words", nn.Embedding(64, 64)).chain_macs(spec)  # one row of the table
            128
        """
        if not self.is_embedding:
            return spec.macs()
        out, in_ = self.shape
        return MPOEmbedding(out, in_, spec=spec, device="meta").macs()

    def require_replaceable(self) -> None:
        """Refuse a module whose hooks or extra state a replacement would lose, or whose weight is not finite.

        Raises:
            ArgumentError: the module has hooks or the like.
            NonFiniteError: the weight has NaN or infinite entries, or a norm whose square exceeds float64.
        """
        require_nothing_attached(self.module, self.name)
        if not self.weight.isfinite().all():
            raise NonFiniteError(f"{self.name}: the weight has NaN or infinite entries; nothing can be fitted to it")
        size = norm(promoted(self.weight, self.name))
        if size and not _LEAST_NORM < size < 1 / _LEAST_NORM:
            raise NonFiniteError(
                f"{self.name}: the weight has norm {size:.0e}, whose square exceeds float64, so its errors cannot be "
                "compared with those of other layers; scale the weight, or leave the layer out with ignore="
            )
