"""Compression of a PyTorch model in one call."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpochain.compression.blocks.refinement import require_data_to_refine
from mpochain.compression.blocks.refinement_settings import Refinement, settings_of
from mpochain.compression.blocks.sequential import build_in_sequence, require_sequence
from mpochain.compression.budget import bytes_in_memory
from mpochain.compression.building import Builder, build_at_once
from mpochain.compression.checks import checked, untouched_modules
from mpochain.compression.finishing import finished
from mpochain.compression.former_log import logged_to
from mpochain.compression.history import leave_marks
from mpochain.compression.layer_choices import Setup
from mpochain.compression.methods import Method, method_of
from mpochain.compression.records import CompressionReport
from mpochain.compression.selection import as_patterns
from mpochain.compression.stages import compressed_in_stages
from mpochain.compression.state import CompressionState, open_state
from mpochain.compression.statistics.default_loss import DefaultLoss
from mpochain.compression.statistics.division import divided
from mpochain.compression.statistics.passes import (
    batches_for,
    memory_for_statistics,
    parts,
    require_batches,
)
from mpochain.compression.streaming.opening import little_memory, require_streamable, streamed
from mpochain.compression.sufficiency import too_few_rows
from mpochain.compression.together import alone_with, in_turn, require_alike
from mpochain.distributed import ALONE, team_of_group
from mpochain.execution import predicted_plans
from mpochain.report import provenance
from mpochain.surgery.experts import separated_experts
from mpochain.surgery.finding import require_module
from mpochain.surgery.wrappers import without_wrappers
from mpochain.wording import counted

__all__ = ["compress"]

_logger = logging.getLogger(__name__)


@predicted_plans()
def compress(
    model: nn.Module,
    budget: float | str | None,
    *,
    calibration: Iterable[Any] | None = None,
    held_out: Iterable[Any] | None = None,
    targets: Iterable[str] | None = None,
    ignore: Iterable[str] = (),
    method: str | Method | None = None,
    sequential: bool = False,
    refine: bool | Refinement = False,
    speed: float | str | None = None,
    stages: Sequence[float | str] = (),
    loss: Callable[[Any], Tensor] | None = None,
    dry_run: bool = False,
    seed: int = 0,
    checkpoint: Path | str | CompressionState | None = None,
    share: bool = False,
    stream: bool = False,
    log: Callable[[str], None] | None = None,
) -> CompressionReport:
    """Compress the linear layers of a model in place to fit a budget.

    By default, layers become low rank in interpolative form, and the budget goes to the layers where parameters matter
    most: errors are measured on the inputs of each layer and weighted by the gradient of the loss with respect to its
    outputs. A layer that cannot become smaller stays dense, and so does one that no batch and no gradient reaches; the
    report gives the reason. Progress is logged to ``logging.getLogger("mpochain")``.

    Args:
        model: changed in place. Norms and biases stay unchanged unless ``refine`` is given, and embeddings unless
            ``targets`` names them.
        budget: share of the layers' storage to keep, such as ``0.6`` or ``"60%"``; size of the whole saved model, such
            as ``"200MB"``, or of these layers, such as ``"100MB of layers"``; bits per weight of these layers, such as
            ``"3 bits"``; or a limit of each layer's relative error, such as ``"5% error"``. Methods without data and
            Kronecker products measure the error of the weight; other methods measure the error of the outputs, weighted
            by their gradients if the method needs gradients.
            None for a method whose settings leave no choice.
        calibration: batches to call the model with: tensors, tuples of arguments or mappings of keyword arguments. They
            are read several times, so give a list or a data loader, not a generator. Positions that an
            ``attention_mask`` or ``key_padding_mask`` among the arguments masks do not count; without a mask, nor do
            those with the label -100. Of a list of eight batches or more, ``auto`` and ``interpolative`` set one of
            four aside to judge what the others fitted. A data loader may shuffle, so nothing of it is set aside.
        held_out: batches that were set aside, of the same kind. The report compares the compressed model with the dense
            one on them and on as many calibration batches; a much larger difference means too little calibration.
        targets: layers to compress, see :func:`mpochain.compression.select`; by default all linear layers, or all
            embeddings for methods that compress only embeddings. Layers that share a parameter with another module
            stay dense, but a head tied to an embedding is replaced with it and stays tied.
        ignore: layers to leave out; overrides ``targets``.
        method: a name of :data:`mpochain.compression.METHODS`, ``"package.module:ClassName"`` of a method defined
            elsewhere, or an instance of :class:`mpochain.compression.Method`, which holds its settings. By default
            ``"auto"`` for a budget in bytes or bits, which chooses form, rank and bits of each layer, and
            ``"interpolative"`` for others.
        sequential: build layers block by block, and let those that write the hidden states of a block (such as the
            output projection of attention and the last layer of an MLP) make up for how far these have drifted from the
            dense model's. How strongly each is corrected is chosen on held-out batches (``held_out`` or, without it,
            one of eight calibration batches), and a correction that does not lower their error is left out. Other
            layers are compressed as usual, and so are all layers of a model in which no such layer is found. Requires
            blocks that run in a row.
        refine: after the compression, train all parameters of each block (what replaced its layers, codes of quantised
            weights included, norms, biases) on the dense block's outputs, with errors weighted by the gradients of
            ``loss``. Held-out batches decide which state of a block is kept, so that a block which gains nothing stays
            as it was. These are ``held_out`` or, without it, one of eight calibration batches. Parameters that do not
            require gradients or that several blocks share stay unchanged. True, or
            :class:`mpochain.compression.Refinement` with settings.
        speed: second budget, the share of the layers' multiply-adds to keep, such as ``0.7`` or ``"70%"``. Both hold,
            and where they conflict, each has its price: rank reduction saves multiply-adds, few bits save bytes alone.
            With ``budget=None`` it is the only one.
        stages: budgets of earlier stages, each larger than the next, such as ``[0.9]`` or ``["6 bits", "4 bits"]``.
            The model is compressed to each of them, the statistics of the inputs and gradients are collected again in
            the compressed model, and the next stage starts from the dense weights with these. Each stage takes as long
            as a compression of its own. The default ``loss`` samples labels from the predictions of the compressed
            model then.
        loss: function from the model's output to a scalar summed over tokens, whose gradients weight the outputs. The
            default is chosen by the outputs and named in the report: cross-entropy to labels sampled from the model's
            own predictions for classes and tokens, squared error for numbers (one output, embeddings, hidden states).
        dry_run: report the result without changing the model.
        seed: seed of the sampled labels.
        checkpoint: folder for the state of an unfinished run: moments, choices and built layers, together about as
            large as the model. After an interruption, the same call goes on from it, with the same result to the bit.
            Remove the folder when the compressed model is saved. Not used by a dry run. Or the state that
            :func:`mpochain.compression.open_state` returns for the same arguments.
        share: whether the processes of the default group of ``torch.distributed`` share the work: all of them call this
            with the same model, data and arguments, and all get the compressed model. No effect without a group, and
            not possible with ``sequential``. See the guide "Scaling out".
        stream: run one block of the model at a time over all batches, for a model larger than memory whose weights are
            mapped files, as ``from_pretrained`` reads them. Hidden states between blocks and built layers are files in
            ``checkpoint``, which then is needed to go on after an interruption alone. The choices are those without
            ``stream``. Not possible with ``sequential``, ``refine`` and ``stages``. See the guide "Scaling out".
        log: deprecated, removed in the next release; called with each message. Configure the logger ``"mpochain"``.

    Returns:
        A record of each layer and the totals; ``print(report)`` shows them by kind of layer,
        ``print(report.table())`` one by one.

    Raises:
        ArgumentError: the budget cannot be met, a pattern matches nothing, the method is unknown, data are missing, a
            layer named in ``targets`` is not reached by data or shares a parameter, no gradient reaches any layer, or a
            layer has hooks, which would be lost.
        NonFiniteError: activations or weights are NaN or infinite; the message names the layer.
        FactorizationError: a matrix could not be factorised; the message names the layer.
        CheckpointError: the checkpoint is damaged, or belongs to a run with other weights, data or arguments.
        OutputError: the checkpoint cannot be written, or another process uses it.

    Example:
        >>> model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> report = compress(model, 0.5, calibration=[torch.randn(100, 32)])
        >>> report.parameters_after <= 0.5 * report.parameters_before, type(model[0]).__name__
        (True, 'InterpolativeLinear')
    """
    began = time.perf_counter()
    require_module(model)
    team = team_of_group() if share else ALONE
    require_alike(
        team,
        model,
        calibration,
        held_out,
        budget=budget,
        targets=None if targets is None else as_patterns(targets, "targets"),
        ignore=as_patterns(ignore, "ignore"),
        method=method,
        sequential=sequential,
        refine=refine,
        speed=speed,
        stages=stages,
        dry_run=dry_run,
        seed=seed,
        stream=stream,
        loss=loss is None,
        checkpoint=checkpoint is None,
    )
    # Layers built in inference mode could never be trained.
    with (
        logged_to(log),
        torch.inference_mode(False),
        alone_with(None if dry_run else checkpoint, team),
        without_wrappers(model, editing=True) as model,
        separated_experts(model) as fused,
        ExitStack() as held,
        little_memory(model, stream=stream) as places,
    ):
        way = method_of(method, budget)
        targets = None if targets is None else as_patterns(targets, "targets")
        ignore = as_patterns(ignore, "ignore")
        selected, limits = checked(
            model, budget, way, targets, ignore, sequential=sequential, refine=refine, speed=speed, stages=stages
        )
        opened, limit = selected.targets, limits[-1]
        if stream:
            require_streamable(sequential=sequential, refine=bool(refine), stages=bool(stages))
        division = divided(opened, team)
        limit.warn_if_loose()
        batches = batches_for(calibration, way)
        refinement = None if dry_run else settings_of(refine)
        aside = None
        if held_out is not None and (way.needs != "nothing" or refinement is not None):
            aside = require_batches(held_out, "held_out")
        if refinement is not None:
            require_data_to_refine(model, opened, calibration, aside)
        sequence = require_sequence(model, opened, calibration or (), aside) if sequential else None

        def opened_state() -> CompressionState | None:
            if isinstance(checkpoint, CompressionState) or checkpoint is None or dry_run:
                return checkpoint if isinstance(checkpoint, CompressionState) else None
            return open_state(
                checkpoint,
                model,
                budget,
                calibration=calibration,
                targets=targets,
                ignore=ignore,
                method=way,
                sequential=sequential,
                refine=refine,
                speed=speed,
                stages=stages,
                loss=loss,
                seed=seed,
            )

        state = in_turn(team, opened_state)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        size = bytes_in_memory(model)
        untouched = untouched_modules(model, opened, parameters)
        weighting = DefaultLoss(model, seed) if loss is None else loss
        groups = list(parts(model, opened, way))
        streaming, state = held.enter_context(streamed(model, opened, batches, way, state, team, places, stream=stream))
        setup = Setup(model, way, selected, targets, batches, weighting, groups, division, streaming)
        standing: Mapping[nn.Module, nn.Module] = {}
        if len(limits) > 1 and not team.from_first(state is not None and state.has_layers(opened)):
            standing = compressed_in_stages(setup, limits[:-1], state)
        with setup.store(state) as moments:
            preparation, choice = setup.choose(limit, moments, state, standing)
            standing = {}  # frees the layers of the last stage
            builder = Builder(way, opened, choice["chosen"], moments, preparation, state, division)
            _logger.info("building %s, from %s on", counted(len(opened), "layer"), next(iter(opened)))
            if sequence is not None:
                build_in_sequence(
                    model,
                    opened,
                    sequence,
                    builder,
                    limit,
                    loss=weighting if way.needs == "gradients" else None,
                    room=memory_for_statistics(model),
                    dry_run=dry_run,
                )
            else:
                build_at_once(model, opened, selected.heads, builder, limit, dry_run=dry_run)
        refined_blocks, difference = finished(
            model,
            builder.built,
            calibration or (),
            None if dry_run else aside,
            refinement,
            loss=weighting,
            seed=seed,
            state=state,
            team=team,
        )
        shortage = too_few_rows(builder.records.values())
        if shortage is not None:
            _logger.warning("%s", shortage)
        report = CompressionReport(
            layers=tuple(builder.records[name] for name in opened),
            method=way.name,
            budget=budget,
            allowed_bytes=limit.allowed,
            speed=speed,
            sequential=sequential,
            stages=tuple(stages),
            model_parameters=parameters,
            untouched=untouched,
            frontier=tuple((share, increase) for share, increase in choice["frontier"]),
            seconds=time.perf_counter() - began if state is None else state.seconds,
            provenance=provenance(threads=torch.get_num_threads()),
            largest_error=choice["largest_error"],
            model_bytes=size,
            loss=choice["loss"] or None,
            shared=tuple((selected.left_out | (fused if targets is None and way.linear else {})).items()),
            held_out=difference,
            refined=refined_blocks,
        )
        if not dry_run:
            leave_marks(model, report)
        return report
