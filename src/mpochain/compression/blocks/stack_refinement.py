"""Refinement of the blocks of one stack, with their inputs in the dense and in the compressed model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from mpochain.compression.blocks.calls import BlockCall, block_calls
from mpochain.compression.blocks.hidden_states import HiddenStates
from mpochain.compression.blocks.output_metrics import metric_factors
from mpochain.compression.blocks.refined_blocks import RefinedBlock
from mpochain.compression.blocks.refinement_settings import Refinement
from mpochain.compression.blocks.stacks import Stack
from mpochain.compression.blocks.training import BlockExample, train_block
from mpochain.compression.state import CompressionState
from mpochain.compression.statistics.default_loss import DefaultLoss
from mpochain.errors import ArgumentError
from mpochain.nn.dense import dense_parameters
from mpochain.nn.quantized import latent_codes, stored_codes
from mpochain.surgery.half_precision import as_float32
from mpochain.surgery.replacement import replace_layers
from mpochain.surgery.tying import address_of

__all__ = ["OPTION", "StackRefinement", "trainable_parameters"]

# Option of compress, for messages.
OPTION = "refine=True"
# Peak learning rate of codes. AdamW moves a number by about its rate, so that in 100 steps a code may change by one.
_CODE_RATE = 0.01


def trainable_parameters(model: nn.Module, block: nn.Module, allowed: set[int]) -> dict[str, nn.Parameter]:
    """Parameters of a block, by name, that may be trained in this block alone.

    Parameters whose memory a module outside of the block holds too are left out.

    Args:
        model: the model.
        block: one of its modules.
        allowed: ids of the parameters that require gradients.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> model[1].bias = model[0].bias
        >>> list(trainable_parameters(model, model[0], set(map(id, model.parameters()))))
        ['weight']
    """
    outside = {
        _memory(tensor)
        for module in _modules_besides(model, block)
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None and tensor.numel()
    }
    return {
        name: parameter
        for name, parameter in block.named_parameters()
        if id(parameter) in allowed
        and parameter.is_floating_point()
        and parameter.numel()
        and _memory(parameter) not in outside
    }


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """Identifies the memory that a tensor is a part of, or the object if it has none."""
    if address_of(tensor) is None:
        return (id(tensor),)
    return tensor.device, tensor.untyped_storage().data_ptr()


def _modules_besides(model: nn.Module, block: nn.Module) -> set[nn.Module]:
    """Modules of a model that it also holds elsewhere than in a block."""
    modules, waiting = set(), [model]
    while waiting:
        module = waiting.pop()
        if module is not block and module not in modules:
            modules.add(module)
            waiting += [child for child in module._modules.values() if child is not None]
    return modules


class StackRefinement:
    """The blocks of a stack, refined one after the other in the order of their calls.

    Memory holds the inputs of the next block in both models for all batches, and one block's training state.

    Args:
        model: the compressed model, in evaluation mode, without gradients.
        stack: stack of the model.
        built: compressed layer of each dense one.
        training: batches to train on.
        held_out: batches that decide which state is kept.
        room: bytes of hidden states that may be held in memory.
        loss: loss whose gradients weight the errors of outputs, see :func:`mpochain.compress`; None for no weights.

    Raises:
        ArgumentError: the blocks are not called once each, in order, each on the output of the one before.
    """

    def __init__(
        self,
        model: nn.Module,
        stack: Stack,
        built: Mapping[nn.Module, nn.Module],
        training: Sequence[Any],
        held_out: Sequence[Any],
        room: int,
        loss: Callable[[Any], Tensor] | DefaultLoss | None,
    ) -> None:
        self._model, self._stack = model, stack
        self._dense = {layer: dense for dense, layer in built.items()}
        with self._with_dense_layers(model):
            dense = [self._calls(batch) for batch in (*training, *held_out)]
            self._factors: list[Tensor | None] = [None] * len(stack.blocks)
            if loss is not None:
                reached = [(batch, calls) for batch, calls in zip(training, dense, strict=False) if calls]
                self._factors = metric_factors(model, stack.blocks, reached, loss)
        inside = {module for block in stack.blocks for module in block.modules()}
        # Unless a layer before the blocks was compressed, the first block reads the same in both models.
        own = dense if inside.issuperset(self._dense) else [self._calls(batch) for batch in (*training, *held_out)]
        # Batches without a row that counts have no calls.
        self._count = sum(map(bool, dense[: len(training)]))
        if not 0 < self._count < sum(map(bool, dense)):
            raise ArgumentError(
                f"{OPTION} needs batches with rows that no mask leaves out, some to train on and some held out; give "
                "more"
            )
        self._dense_calls, self._calls_ = ([calls for calls in both if calls] for both in (dense, own))
        self._targets, self._states = (
            HiddenStates([calls[0].hidden for calls in both], room=room // 2)
            for both in (self._dense_calls, self._calls_)
        )

    def refine_block(
        self,
        number: int,
        trainable: set[int],
        settings: Refinement,
        seed: int,
        state: CompressionState | None,
        originals: dict[nn.Parameter, Tensor],
    ) -> RefinedBlock | None:
        """Train the next block, or read it from the state of an interrupted run; None if it has nothing to train.

        Args:
            number: number of the block; must be called for all blocks in order.
            trainable: ids of the parameters that require gradients.
            settings: passes over the data and learning rate.
            seed: seed of the order of the batches.
            state: keeps the block, or has it; None to keep none.
            originals: receives the values of changed parameters outside of compressed layers.
        """
        name = self._stack.name_of(number)
        with self._with_dense_layers(self._stack.blocks[number]):
            self._advance(self._dense_calls, self._targets, number)
        block = self._stack.blocks[number]
        parameters = trainable_parameters(self._model, block, trainable)
        record = None
        if parameters and self._targets[0].is_floating_point():
            compressed = {id(value) for layer in self._dense for value in layer.parameters()}
            values = {
                parameter: parameter.detach().clone()
                for parameter in parameters.values()
                if id(parameter) not in compressed
            }
            originals |= values
            trained = {**parameters, **self._codes(block, parameters, settings)}
            record = None if state is None else state.refined(name, trained)
            if record is None:
                weights = self._dense_weights(block)
                latents: AbstractContextManager[dict[str, str]] = (
                    latent_codes(block, weights) if settings.codes else nullcontext({})
                )
                with latents as latent:
                    own = dict(block.named_parameters())
                    codes = {key: own[key] for scales, key in latent.items() if scales in parameters}
                    record = self._trained(number, name, block, parameters, codes, settings, seed)
                if state is not None:
                    state.keep_refined(record, trained if record.epochs else {})
            if not record.epochs:
                for parameter in values:
                    del originals[parameter]
        self._advance(self._calls_, self._states, number)
        return record

    def close(self) -> None:
        """Release the hidden states."""
        self._targets.close()
        self._states.close()

    def _calls(self, batch: Any) -> list[BlockCall]:
        return block_calls(self._model, self._stack.blocks, batch, option=OPTION)

    @contextmanager
    def _with_dense_layers(self, module: nn.Module) -> Iterator[None]:
        """Context in which the compressed layers in a module are dense."""
        dense = {layer: self._dense[layer] for layer in module.modules() if layer in self._dense}
        replace_layers(self._model, dense)
        try:
            yield
        finally:
            replace_layers(self._model, {original: layer for layer, original in dense.items()})

    def _advance(self, calls: Sequence[Sequence[BlockCall]], states: HiddenStates, number: int) -> None:
        """Replace the inputs of a block by its outputs."""
        block = self._stack.blocks[number]
        for k, of_batch in enumerate(calls):
            states[k] = of_batch[number].run(block, states[k])

    def _dense_weights(self, block: nn.Module) -> dict[nn.Module, Tensor]:
        """The dense weight of each compressed linear layer of a block."""
        replaced = {layer: self._dense[layer] for layer in block.modules() if layer in self._dense}
        return {
            layer: dense_parameters(dense)[0]
            for layer, dense in replaced.items()
            if not isinstance(dense, nn.Embedding)
        }

    @staticmethod
    def _codes(block: nn.Module, parameters: Mapping[str, Tensor], settings: Refinement) -> dict[str, Tensor]:
        """The codes that are trained with their scales, by names of their own."""
        if not settings.codes:
            return {}
        return {f"codes of {name}": codes for name, codes in stored_codes(block).items() if name in parameters}

    def _trained(
        self,
        number: int,
        name: str,
        block: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        codes: Mapping[str, nn.Parameter],
        settings: Refinement,
        seed: int,
    ) -> RefinedBlock:
        def example(k: int, *, master: bool) -> BlockExample:
            call, target, factor = self._calls_[k][number], self._targets[k], self._factors[number]
            kept = call.masks.rows(name, target.shape)
            if master:
                return BlockExample(
                    lambda trained: call.in_float32().run(trained, as_float32(self._states[k])), target, kept, factor
                )
            return BlockExample(lambda trained: call.run(trained, self._states[k]), target, kept, factor)

        began = time.monotonic()
        outcome = train_block(
            block,
            {**parameters, **codes},
            lambda k: example(k, master=True),
            self._count,
            lambda: (example(k, master=False) for k in range(self._count, len(self._targets))),
            settings,
            seed=seed,
            rates=dict.fromkeys(codes, _CODE_RATE),
            label=name,
        )
        size = sum(parameter.numel() for parameter in (*parameters.values(), *codes.values()))
        seconds = time.monotonic() - began
        return RefinedBlock(name, size, outcome.before, outcome.after, outcome.epochs, seconds)
