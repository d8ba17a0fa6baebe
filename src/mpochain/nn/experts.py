"""Experts of a mixture as one linear layer per expert and matrix, in place of parameters with three axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.architectures import FusedExperts
from mpochain.errors import ArgumentError

__all__ = ["Expert", "SeparateExperts"]


class Expert(nn.Module):
    """One expert of a mixture: a linear layer, a function of its outputs, and a second linear layer.

    Attributes:
        positions: during a call, which rows of the mixture's input the expert reads, as indices; None otherwise.
        tokens: during a call, the number of rows of the mixture's input.
    """

    positions: Tensor | None = None
    tokens: int = 0

    def __init__(self, names: tuple[str, str], up: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self._names = names
        self.add_module(names[0], up)
        self.add_module(names[1], down)

    def forward(self, rows: Tensor, between: Callable[[Tensor], Tensor]) -> Tensor:
        """Output ``(n, hidden)`` for input rows ``(n, hidden)``; ``between`` acts between the layers."""
        up, down = (self._modules[name] for name in self._names)
        assert up is not None
        assert down is not None
        output: Tensor = down(between(up(rows)))
        return output


class SeparateExperts(nn.Module):
    """Experts of a mixture with a ``torch.nn.Linear`` per expert and matrix, so that each can be compressed.

    It takes the parameters of a module of transformers that holds those of all experts together, and computes the same
    function. The layers are named by the number of the expert and the name of the parameter, such as
    ``"3.down_proj"``. Their weights are views of the fused parameters, so that nothing is copied. See
    :func:`mpochain.surgery.separate_experts`.

    Args:
        fused: module of transformers; it loses its parameters to this one, and gets them back by :meth:`fused`.
        layout: how it holds them, see :func:`mpochain.architectures.fused_experts`.

    Attributes:
        layout: as given.
    """

    def __init__(self, fused: nn.Module, layout: FusedExperts) -> None:
        super().__init__()
        self.layout = layout
        self._shell = (fused,)  # within a tuple, since it is no part of this module
        for name, child in fused.named_children():
            self.add_module(name, child)
        names = (layout.up, layout.down)
        matrices = [
            (fused.get_parameter(name), fused._parameters.get(f"{name}_bias"))  # None without biases
            for name in names
        ]
        self._count = len(matrices[0][0])
        for number in range(self._count):
            self.add_module(
                str(number),
                Expert(names, *(_linear(weight, bias, number, layout.transposed) for weight, bias in matrices)),
            )
        for name in fused._parameters:
            fused._parameters[name] = None
        self.train(fused.training)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Expert]:
        return (self[number] for number in range(self._count))

    def __getitem__(self, number: int) -> Expert:
        expert = self._modules[str(number)]
        assert isinstance(expert, Expert)
        return expert

    @property
    def fused_class(self) -> type[nn.Module]:
        """Class of the module whose parameters these were."""
        return type(self._shell[0])

    @property
    def linears(self) -> dict[str, nn.Module]:
        """The layers of all experts, by name."""
        return {
            f"{number}.{name}": layer for number, expert in enumerate(self) for name, layer in expert.named_children()
        }

    def tokens_of(self, hidden_states: Tensor) -> int:
        """The number of tokens in the hidden states of a call."""
        return len(hidden_states) // self._count if self.layout.tiled else len(hidden_states)

    def forward(self, hidden_states: Tensor, *routing: Tensor) -> Tensor:
        """The output of all experts, as the fused module computes it.

        Args:
            hidden_states: ``(tokens, hidden)``; for a tiled layout ``(experts * tokens, hidden)``.
            routing: the experts of each token, ``(tokens, k)``, where numbers beyond the last expert stand for none,
                and their weights, ``(tokens, k)``; nothing for a tiled layout.
        """
        if self.layout.tiled:
            return self._tiled(hidden_states)
        if len(routing) != 2:
            raise ArgumentError(
                f"experts are called with hidden states, numbers of experts and weights, got {1 + len(routing)} "
                "arguments"
            )
        index, weights = routing
        if torch.compiler.is_exporting():
            return self._over_all(hidden_states, index, weights)
        return self._over_chosen(hidden_states, index, weights)

    def _over_chosen(self, hidden_states: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Run each expert on the tokens that chose it."""
        tokens, k = index.shape
        chosen, order = index.reshape(-1).sort(stable=True)
        counts = torch.bincount(chosen.clamp(max=self._count), minlength=self._count).tolist()[: self._count]
        positions = order // k
        parts, end = [], 0
        for number, count in enumerate(counts):
            begin, end = end, end + count
            if count:
                parts.append(self._run(number, hidden_states, positions[begin:end]))
        if not parts:
            return torch.zeros_like(hidden_states)
        results = torch.cat(parts)
        results = results * weights.reshape(-1)[order[:end], None]
        # Summed over the experts of a token in a fixed order, and in the wider of the two types.
        every = results.new_zeros(tokens * k, results.shape[1]).index_copy(0, order[:end], results)
        return every.view(tokens, k, -1).sum(1).to(hidden_states.dtype)

    def _over_all(self, hidden_states: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Run every expert on all tokens, for graphs whose shapes may not depend on the router."""
        total: Tensor | float = 0.0
        for number, expert in enumerate(self):
            share = torch.where(index == number, weights, 0).sum(1, keepdim=True)
            total = total + self._after(expert(hidden_states, self._between)) * share
        assert isinstance(total, Tensor)
        return total.to(hidden_states.dtype)

    def _tiled(self, hidden_states: Tensor) -> Tensor:
        tiles = hidden_states.reshape(self._count, -1, hidden_states.shape[-1])
        if torch.compiler.is_exporting():
            parts = [
                self._after(expert(rows, self._between)) for expert, rows in zip(self, tiles.unbind(0), strict=True)
            ]
            return torch.stack(parts).flatten(0, 1)
        output = torch.zeros_like(tiles)
        parts = []
        for number, rows in enumerate(tiles.unbind(0)):
            # The experts have no bias, so that rows of zeros give zeros.
            positions = rows.detach().any(1).nonzero().squeeze(1)
            part = self._run(number, rows, positions) if len(positions) else rows[:0]
            parts.append(output[number].index_copy(0, positions, part))
        return torch.stack(parts).flatten(0, 1)

    def _run(self, number: int, hidden_states: Tensor, positions: Tensor) -> Tensor:
        expert = self[number]
        expert.positions, expert.tokens = positions, len(hidden_states)
        try:
            return self._after(expert(hidden_states[positions], self._between))
        finally:
            expert.positions = None

    def _between(self, features: Tensor) -> Tensor:
        """The function between the two layers of an expert."""
        shell: Any = self._shell[0]
        if self.layout.up != "gate_up_proj":
            return shell.act_fn(features)
        if hasattr(shell, "_apply_gate"):
            return shell._apply_gate(features)
        gate, up = features.chunk(2, dim=-1)
        return shell.act_fn(gate) * up

    def _after(self, outputs: Tensor) -> Tensor:
        """The norm after each expert, which few families have."""
        norm = self._modules.get("post_expert_norm")
        return outputs if norm is None else norm(outputs)

    def fused(self, parameters: Mapping[str, nn.Parameter | None] | None = None) -> nn.Module:
        """The fused module again; call this one no more.

        Args:
            parameters: those that it had, if they still hold the weights; by default they are made from the layers,
                which must all be ``nn.Linear``.
        """
        fused = self._shell[0]
        for name, value in (self._stacked() if parameters is None else parameters).items():
            fused._parameters[name] = value
        for name in fused._modules:
            fused._modules[name] = self._modules[name]  # where it may have been replaced
        fused.training = self.training
        return fused

    def _stacked(self) -> dict[str, nn.Parameter]:
        stacked = {}
        for name in (self.layout.up, self.layout.down):
            layers: list[Any] = [expert._modules[name] for expert in self]
            weights = torch.stack(
                [layer.weight.detach().T if self.layout.transposed else layer.weight.detach() for layer in layers]
            )
            stacked[name] = nn.Parameter(weights, any(layer.weight.requires_grad for layer in layers))
            if layers[0].bias is not None:
                biases = torch.stack([layer.bias.detach() for layer in layers])
                stacked[f"{name}_bias"] = nn.Parameter(biases, any(layer.bias.requires_grad for layer in layers))
        return stacked


def _linear(weight: nn.Parameter, bias: nn.Parameter | None, number: int, transposed: bool) -> nn.Linear:
    """The layer of one expert, whose weight is a view of the fused parameter."""
    matrix = weight.detach()[number]
    matrix = matrix.T if transposed else matrix
    with torch.device("meta"):
        linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    linear.weight = nn.Parameter(matrix, weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach()[number], bias.requires_grad)
    return linear
