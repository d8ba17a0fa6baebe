"""Correction of the blocks of one stack, with their inputs in the dense and in the compressed model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.blocks.calls import BlockCall, block_calls
from mpochain.compression.blocks.correction import Drift, moments_after
from mpochain.compression.blocks.hidden_states import HiddenStates
from mpochain.compression.blocks.output_metrics import metric_factors
from mpochain.compression.blocks.stacks import Stack, largest_stack
from mpochain.compression.blocks.training import BlockExample, held_out_error
from mpochain.compression.blocks.writers import Writer, states_after, writers_of
from mpochain.compression.building import Builder
from mpochain.compression.layer_record import LayerRecord
from mpochain.compression.statistics.default_loss import DefaultLoss
from mpochain.compression.statistics.sums import input_argument
from mpochain.compression.target import Target
from mpochain.errors import ArgumentError
from mpochain.nn.dense import weight_and_bias
from mpochain.nn.experts import Expert
from mpochain.surgery.replacement import replace_layers

__all__ = ["OPTION", "StackCorrection"]

_logger = logging.getLogger(__name__)

# Option of compress, for messages.
OPTION = "sequential=True"

# What is added to the diagonal of the inputs' moments, as a multiple of its mean, and the share of the correction that
# is applied.
_RIDGES = (0.1, 1.0, 10.0)
_MIXINGS = (0.5, 1.0)


class StackCorrection:
    """The blocks of a stack, compressed one after the other in the order of their calls.

    Memory holds the inputs of the next block in both models for all batches, and the states within a block that its
    layers are fitted to.

    Args:
        model: the dense model, in evaluation mode, without gradients.
        targets: dense layers by name.
        batches: batches to fit to and held-out ones.
        builder: builder of the layers.
        standing: receives what stands in the model for each dense layer.
        loss: see :func:`mpochain.compression.blocks.sequential.build_in_sequence`.
        room: likewise.

    Attributes:
        stack: the stack.
        writers_found: whether a layer was found that writes the hidden states.

    Raises:
        ArgumentError: a block is called twice, out of order, or on something else than the output of the block before.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Mapping[str, Target],
        batches: tuple[Sequence[Any], Sequence[Any]],
        builder: Builder,
        standing: dict[nn.Module, nn.Module],
        loss: Callable[[Any], Tensor] | DefaultLoss | None,
        room: int,
    ) -> None:
        self._model, self._builder, self._room = model, builder, room // 4
        self._standing = standing
        self._names = {target.module: name for name, target in targets.items()}
        self.stack: Stack = largest_stack(model, self._names, OPTION)
        self.writers_found = False
        fitted, held_out = batches
        blocks = self.stack.blocks
        inside = {module for block in blocks for module in block.modules()}
        # The compressed model sends other tokens to an expert than the dense one, so that no pairs of inputs exist.
        of_experts = {layer for part in inside if isinstance(part, Expert) for layer in part.children()}
        self._correctable = {
            module for module in self._names if module in inside - of_experts and not isinstance(module, nn.Embedding)
        }
        dense = [self._calls_of(batch) for batch in (*fitted, *held_out)]
        self._factors: list[Tensor | None] = [None] * len(blocks)
        if loss is not None:
            if isinstance(loss, DefaultLoss):
                loss.restart()
            reached = [(batch, calls) for batch, calls in zip(fitted, dense, strict=False) if calls]
            self._factors = metric_factors(model, blocks, reached, loss)
        outside = [module for module in self._names if module not in inside]
        for module in outside:
            self._put(module, builder(self._names[module]))
        # Unless a layer before the blocks was compressed, the first block reads the same in both models.
        own = [self._calls_of(batch) for batch in (*fitted, *held_out)] if standing else dense
        # Batches without a row that counts have no calls.
        self._count = sum(map(bool, dense[: len(fitted)]))
        if not 0 < self._count < sum(map(bool, dense)):
            raise ArgumentError(
                f"{OPTION} needs batches with rows that no mask leaves out, some to fit to and some held out; give more"
            )
        self._dense_calls, self._calls = ([calls for calls in both if calls] for both in (dense, own))
        self._wanted, self._states = (
            HiddenStates([calls[0].hidden for calls in both], room=self._room)
            for both in (self._dense_calls, self._calls)
        )

    def close(self) -> None:
        """Release the hidden states."""
        self._wanted.close()
        self._states.close()

    def build(self, number: int) -> None:
        """Compress the layers of the next block."""
        block, builder = self.stack.blocks[number], self._builder
        layers = [module for module in block.modules() if module in self._names]
        waiting = {layer for layer in layers if not builder.restore(self._names[layer])}
        writers = self._writers(number, self._correctable & waiting)
        proposals = {writer.layer: builder.proposal(self._names[writer.layer]) for writer in writers}
        # Those that stay dense are not changed.
        corrected = [writer for writer in writers if proposals[writer.layer][0] is not None]
        with ExitStack() as resources:
            wanted = self._advance_dense(number, corrected, resources)
            for layer in layers:
                name = self._names[layer]
                if layer in proposals:
                    replacement: nn.Module | None = proposals[layer][0]
                    if replacement is None:
                        builder.keep(name, *proposals[layer])
                else:
                    replacement = builder(name) if layer in waiting else builder.built.get(layer)
                self._put(layer, replacement)
            for writer in corrected:
                plain, record = proposals[writer.layer]
                assert plain is not None
                self._correct(number, writer, wanted[writer], plain, record)
        for k in range(len(self._states)):
            self._states[k] = self._calls[k][number].run(self.stack.blocks[number], self._states[k])

    def _writers(self, number: int, layers: set[nn.Module]) -> list[Writer]:
        """Layers to correct in a block, which is dense; found with the first batch."""
        name = self.stack.name_of(number)
        call = self._dense_calls[0][number]
        writers = writers_of(self.stack.blocks[number], call, self._wanted[0], layers, name) if layers else []
        self.writers_found |= bool(writers)
        return [writer for writer in writers if self._builder.has_statistics(self._names[writer.layer])]

    def _advance_dense(
        self, number: int, writers: Sequence[Writer], resources: ExitStack
    ) -> dict[Writer, HiddenStates]:
        """Replace the inputs of a dense block by its outputs; the states after each layer that will be corrected."""
        block = self.stack.blocks[number]
        wanted = {}
        for writer in writers:
            if writer.later:
                states = [
                    states_after(block, self._dense_calls[k][number], self._wanted[k], writer)
                    for k in range(len(self._wanted))
                ]
                wanted[writer] = resources.enter_context(closing(HiddenStates(states, room=self._room)))
            else:
                wanted[writer] = self._wanted  # the outputs of the block
        for k in range(len(self._wanted)):
            self._wanted[k] = self._dense_calls[k][number].run(block, self._wanted[k])
        return wanted

    def _correct(
        self, number: int, writer: Writer, wanted: HiddenStates, plain: nn.Module, record: LayerRecord
    ) -> None:
        """Replace a compressed layer by one that was corrected, if that lowers the held-out error of the block."""
        dense, name, builder = writer.layer, self._names[writer.layer], self._builder

        def error(layer: nn.Module | None) -> float:
            self._put(dense, layer)
            return self._held_out_error(number)

        before, error_of_dense = error(plain), error(None)
        fitted, held_out = range(self._count), range(self._count, len(self._states))
        drift = self._drift(number, writer, wanted, fitted)
        chosen = self._chosen(number, writer, drift, error_of_dense)
        after, ridge, mixing = before, None, 0.0
        kept: tuple[Any, LayerRecord] = (plain, record)
        if chosen is not None:
            ridge_tried, mixing_tried, change = chosen
            own = weight_and_bias(dense, name)[0].detach()
            weight = (own.double() + mixing_tried * change).to(own.dtype)
            aside = self._drift(number, writer, wanted, held_out)
            moments = moments_after(weight, builder.moments_of(name), drift.inputs, aside.inputs)
            proposal = builder.corrected_proposal(name, weight, moments)
            # A layer of another form may take more than the budget gives it.
            if proposal is not None and proposal[1].costs_at_most(record):
                tried = error(proposal[0])
                if tried < before:
                    kept, after, ridge, mixing = proposal, tried, ridge_tried, mixing_tried
        layer, record = kept
        self._put(dense, layer)
        record = replace(record, mixing=mixing, ridge=ridge, block_error_uncorrected=before, block_error=after)
        builder.keep(name, layer, record)
        what = f"corrected by {mixing:g} of the change at a ridge of {ridge:g}" if ridge else "not corrected"
        _logger.info("%s %s: held-out error of its block %.4g -> %.4g", name, what, before, after)

    def _drift(self, number: int, writer: Writer, wanted: HiddenStates, batches: range) -> Drift:
        """Moments of what is missing after a layer, which is dense in the compressed block."""
        drift, block = Drift(), self.stack.blocks[number]
        for k in batches:
            call = self._calls[k][number]
            with _inputs_of(writer.layer) as inputs:
                states = states_after(block, call, self._states[k], writer)
            kept = call.masks.rows(self.stack.name_of(number), states.shape)
            dtype = torch.promote_types(states.dtype, torch.float32)
            drift.add(inputs[0], (wanted[k].to(dtype) - states.to(dtype)) / writer.factor, kept)
        return drift

    def _chosen(self, number: int, writer: Writer, drift: Drift, error: float) -> tuple[float, float, Tensor] | None:
        """Ridge, mixing and change of the weight that lower the held-out error most; None if none lowers it."""
        best = None
        for ridge in _RIDGES:
            change = drift.change(ridge)
            if change is None:
                return None
            for mixing in _MIXINGS:
                with _changed(writer.layer, mixing * change):
                    tried = self._held_out_error(number)
                if tried < error:
                    error, best = tried, (ridge, mixing, change)
        return best

    def _held_out_error(self, number: int) -> float:
        """Error of the block's outputs on the held-out batches, with respect to those of the dense model."""
        name = self.stack.name_of(number)

        def example(k: int) -> BlockExample:
            call, target = self._calls[k][number], self._wanted[k]
            kept = call.masks.rows(name, target.shape)
            return BlockExample(lambda block: call.run(block, self._states[k]), target, kept, self._factors[number])

        block = self.stack.blocks[number]
        return held_out_error(block, lambda: (example(k) for k in range(self._count, len(self._wanted))))

    def _put(self, dense: nn.Module, layer: nn.Module | None) -> None:
        """Let a layer stand for a dense one, in place of what does so; None for the dense one itself."""
        present = self._standing.pop(dense, None)
        if present is not None:
            replace_layers(self._model, {present: dense})
        if layer is not None:
            self._standing[dense] = layer
            replace_layers(self._model, {dense: layer})

    def _calls_of(self, batch: Any) -> list[BlockCall]:
        return block_calls(self._model, self.stack.blocks, batch, option=OPTION)


@contextmanager
def _inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Context in which the inputs of a layer are copied to the list."""
    inputs: list[Tensor] = []

    def record(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs.append(input_argument(layer, arguments, named)[1].clone())

    hook = layer.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield inputs
    finally:
        hook.remove()


@contextmanager
def _changed(layer: nn.Module, change: Tensor) -> Iterator[None]:
    """Context in which a layer multiplies by its weight plus a change ``(out, in)``."""

    def add(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        x = input_argument(layer, arguments, named)[1]
        return output + x @ change.to(x.device, x.dtype).T

    hook = layer.register_forward_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
