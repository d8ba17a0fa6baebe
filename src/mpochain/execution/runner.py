"""Runs one chain in torch: the plan of each batch size is looked up, never searched, after its first use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mpochain.execution.autocast import autocast_dtype
from mpochain.execution.bound import Bound, bind
from mpochain.execution.kept import STEPS, ParameterState, keepable, same, same_memory, state_of
from mpochain.execution.measurement import setting_of
from mpochain.execution.program import Program, run_portable
from mpochain.execution.tuning import tuned
from mpochain.planning import ContractionPlan, Memory, Schedule, plan
from mpochain.planning.plan import batch_bucket
from mpochain.spec import ChainSpec

__all__ = ["ChainRunner"]

# Batch that traced graphs are planned for: their batch is symbolic, so one plan has to serve every size.
_TRACED_BATCH = 256

# Input shapes bound at a time; a loop over ever new lengths starts again rather than growing.
_MOST_BOUND = 64

# What programs are kept under: the exponent of the batch's bucket, whether gradients are recorded, and the setting.
_Key = tuple[int, bool, torch.dtype, torch.device, int]


def _runs_for_real(device: torch.device | str) -> bool:
    """Whether a product takes time there: not on ``meta``, nor while tensors are fake."""
    probe = torch.empty(0, device=device)
    return type(probe) is Tensor and not probe.is_meta


class ChainRunner:
    """Plans and runs a chain for whatever batch comes.

    Args:
        spec: the chain.
        memory: ``"compact"`` keeps nothing but the cores; ``"fast"`` keeps merged cores between calls that need no
            gradient, up to the dense matrix.
        autotune: whether plans are measured when a batch size is first met, instead of predicted.
    """

    def __init__(self, spec: ChainSpec, memory: Memory = "compact", autotune: bool = False) -> None:
        self.spec = spec
        self.memory: Memory = memory
        self.autotune = autotune
        self._reset()

    def _reset(self) -> None:
        if self.memory == "fast":
            STEPS.watch()
        self._programs: dict[_Key, tuple[Program, int]] = {}
        # Programs of one schedule and type share their matrices, under the number of that pair.
        self._numbers: dict[tuple[Schedule, torch.dtype], int] = {}
        self._kept: dict[int, tuple[int, list[ParameterState], list[Tensor]]] = {}
        self.bound: dict[torch.Size, Bound] = {}
        # Shapes at which there is more to do than products, so that no call asks twice.
        self._unbindable: set[torch.Size] = set()
        # Made ahead, so that a traced forward meets a finished plan and no search.
        self._traced = Program.of(plan(self.spec, _TRACED_BATCH, mode="inference", memory="compact").chosen)

    def set_execution(self, memory: Memory, autotune: bool) -> None:
        """Choose between compact and fast execution, predicted and measured plans; drops what was kept.

        Raises:
            SpecError: a memory that is neither ``"compact"`` nor ``"fast"``.
        """
        plan(self.spec, 1, memory=memory)
        self.memory, self.autotune = memory, bool(autotune)
        self._reset()

    def plan(
        self, rows: int, *, training: bool, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> ContractionPlan:
        """The plan used for ``rows`` input rows; measured now if that is wanted and has not been done."""
        # With gradients the merges must be part of the graph at every call, so nothing can be kept.
        memory: Memory = "compact" if training else self.memory
        setting = setting_of(dtype, device)
        make = tuned if self.autotune and _runs_for_real(device) else plan
        return make(
            self.spec, batch_bucket(rows), mode="training" if training else "inference", memory=memory, setting=setting
        )

    def __call__(
        self, x: Tensor, cores: Sequence[Tensor], bias: Tensor | None = None, onto: Tensor | None = None
    ) -> Tensor:
        """``x (rows, in_features)`` to ``(rows, out_features)``.

        Args:
            x: the rows.
            cores: of the chain.
            bias: added to the result, unless ``onto`` is given.
            onto: the sum of earlier terms, to which the result is added.
        """
        compiling = torch.compiler.is_compiling()
        if compiling or torch._C._are_functorch_transforms_active():
            if torch.compiler.is_exporting() or not compiling:
                y = run_portable(self._traced.schedule, x, cores)
                y = y if bias is None else y + bias.to(y.dtype)
            else:
                y = self._traced.run(x, self._traced.matrices(cores), bias)
            return y if onto is None else onto + y
        training = torch.is_grad_enabled()
        program, number = self._program(x, training)
        if training:
            y = program(x, cores, bias)
            return y if onto is None else onto + y
        if not keepable(x, cores) or not (program.only_views or self.memory == "fast"):
            return program(x, cores, bias, onto)
        return program.run(x, self._matrices(program, number, cores), bias, onto)

    def _program(self, x: Tensor, training: bool) -> tuple[Program, int]:
        rows, device = x.shape[0], x.device
        dtype = autocast_dtype(x) or x.dtype
        # The same arithmetic as batch_bucket, spared a call.
        key = (rows - 1).bit_length() if rows > 1 else 0, training, dtype, device, torch.get_num_threads()
        found = self._programs.get(key)
        if found is None:
            program = Program.of(self.plan(rows, training=training, dtype=dtype, device=device).chosen)
            number = self._numbers.setdefault((program.schedule, dtype), len(self._numbers))
            found = self._programs[key] = program, number
        return found

    def bind(self, x: Tensor, shape: torch.Size, names: Sequence[str], parameters: Mapping[str, Tensor | None]) -> None:
        """Make the next call without gradients for inputs of this shape a bound one, if it can be.

        Args:
            x: the rows of an input, on which this runner was just called.
            shape: of the input itself.
            names: of the cores.
            parameters: in which they, and ``bias``, are found.
        """
        if shape in self._unbindable:
            return
        cores = [core for name in names if (core := parameters.get(name)) is not None]
        # A parametrised core or bias is made anew at every call; under autocast matrices have another type.
        if len(cores) < len(names) or "bias" not in parameters or autocast_dtype(x) is not None:
            return
        program, number = self._program(x, training=False)
        views, steps = program.only_views, STEPS.count
        if not keepable(x, cores):
            return
        if not (views or self.memory == "fast"):
            self._refuse(shape)
            return
        matrices = self._matrices(program, number, cores)
        if number not in self._kept or self._kept[number][2] is not matrices:
            return  # they could not be kept
        watched = [(name, core, None if views else core._version) for name, core in zip(names, cores, strict=True)]
        bias = parameters["bias"]
        bound = bind(program, matrices, shape, bias, watched, None if views else lambda: STEPS.count == steps)
        if bound is None:
            self._refuse(shape)
            return
        if len(self.bound) >= _MOST_BOUND:
            self.bound.clear()
        self.bound[shape] = bound

    def _refuse(self, shape: torch.Size) -> None:
        if len(self._unbindable) >= _MOST_BOUND:
            self._unbindable.clear()
        self._unbindable.add(shape)

    def _matrices(self, program: Program, number: int, cores: Sequence[Tensor]) -> list[Tensor]:
        """The matrices of the sweep, kept between calls and made again when a core changed.

        Views of the cores hold no memory of their own, and a change in place shows in them. Others are copies (fast
        execution only): a tensor's version counts its changes in place (``load_state_dict``, edits), optimiser steps
        are counted for all. A core that was replaced is another object; its address and type change with ``.to``.
        """
        views = program.only_views
        if views and not all(core.is_contiguous() for core in cores):
            return program.matrices(cores)  # copied, and a copy would not see the next change
        if not views and any(core.is_inference() for core in cores):
            return program.matrices(cores)  # they count no versions, so a change could not be seen
        state = state_of(cores, versions=not views)
        steps = 0 if views else STEPS.count
        kept = self._kept.get(number)
        if kept is not None and kept[0] == steps and same(kept[1], state):
            return kept[2]
        matrices = [matrix.detach() if views else matrix.contiguous() for matrix in program.matrices(cores)]
        if any(not same_memory(old, state) for _, old, _ in self._kept.values()) or kept is not None:
            # What was made of the old cores would hold their memory, in other programs and bound calls too.
            self._kept.clear()
            self.bound.clear()
        self._kept[number] = steps, state, matrices
        return matrices

    # Copies and pickles carry the choice, not the cache: plans are made again where they are used.
    def __getstate__(self) -> dict[str, object]:
        return {"spec": self.spec, "memory": self.memory, "autotune": self.autotune}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._reset()
