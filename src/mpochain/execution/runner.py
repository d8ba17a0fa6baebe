"""Chain runner: plans and runs a chain in torch for any batch size, with cached plans and matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mpochain.execution.autocast import autocast_dtype
from mpochain.execution.bound import Bound, bind, bind_unkept
from mpochain.execution.foreign import kernel_named
from mpochain.execution.kept import STEPS, keepable
from mpochain.execution.kept_matrices import KeptMatrices
from mpochain.execution.kernels import KERNELS
from mpochain.execution.measurement import setting_of
from mpochain.execution.program import Program
from mpochain.execution.tracing import is_for_other_programs, is_traced
from mpochain.execution.trials import Trial, may_try, only_predicted, trial_of, unbind_with_plans
from mpochain.execution.tuning import tuned
from mpochain.planning import Conditions, ContractionPlan, Graph, Machine, Memory, Mode, Setting, plan
from mpochain.planning.batches import batch_bucket
from mpochain.planning.candidates import unmerged
from mpochain.planning.store import STORE
from mpochain.spec import ChainSpec

__all__ = ["ChainRunner"]

# Batch size that traced graphs are planned for: their batch is symbolic, so one plan serves every size.
_TRACED_BATCH = 256

# Largest number of bound input shapes; beyond it all are dropped, so that memory stays bounded over ever new lengths.
_MOST_BOUND = 64

# Key of a program: exponent of the batch bucket, whether gradients are recorded, dtype, device, threads, and whether it
# is the predicted one in any case.
_Key = tuple[int, bool, torch.dtype, torch.device, int, bool]


def _runs_for_real(device: torch.device | str) -> bool:
    """True if products on the device are really computed: not on ``meta``, and not with fake tensors."""
    probe = torch.empty(0, device=device)
    return type(probe) is Tensor and not probe.is_meta


def _program_of(chosen: ContractionPlan) -> Program:
    return Program.of(chosen.chosen, kernel_named(chosen.kernel, chosen.spec), chosen.machine)


class ChainRunner:
    """Plans and runs a chain for any batch size.

    Args:
        spec: spec of the chain.
        memory: ``"compact"`` stores only the cores; ``"fast"`` caches merged cores, up to the dense matrix, between
            calls without gradients.
        autotune: True to measure plans at the first call with a batch size, False to predict them; None lets the first
            calls without gradients alternate among the best predictions, and settles on the fastest.
    """

    def __init__(self, spec: ChainSpec, memory: Memory = "compact", autotune: bool | None = None) -> None:
        self.spec = spec
        self.memory: Memory = memory
        self.autotune = autotune
        self._reset()

    def _reset(self) -> None:
        unbind_with_plans(self)
        if self.memory == "fast":
            STEPS.watch()
        self._plans: dict[_Key, ContractionPlan] = {}
        self._programs: dict[_Key, tuple[Program, int, Trial | None]] = {}
        self.bound: dict[torch.Size, Bound] = {}
        self._matrices = KeptMatrices(self.bound.clear)
        self._compact: ChainRunner | None = None
        # Shapes that the kernel does not bind, so that binding is tried only once.
        self._unbindable: set[torch.Size] = set()
        # Planned here, so that a traced forward contains no search.
        self._compiled, self._portable = self._traced_program("compiled"), self._traced_program("portable")

    def _traced_program(self, graph: Graph) -> Program:
        traced = plan(self.spec, _TRACED_BATCH, kernels=tuple(KERNELS.values()), graph=graph)
        return _program_of(traced)

    def _swept(self) -> Program:
        """The program of the fewest multiply-adds that merges no cores."""
        schedule = unmerged(self.spec, _TRACED_BATCH).schedule
        return Program(schedule, kernel_named("portable", self.spec), _TRACED_BATCH)

    def set_execution(self, memory: Memory, autotune: bool | None) -> None:
        """Choose compact or fast execution, and how plans are found; drops plans and cached matrices.

        Raises:
            ArgumentError: ``memory`` is neither ``"compact"`` nor ``"fast"``.
        """
        Conditions(1, "inference", memory, Setting(), Machine())  # validates memory
        self.memory, self.autotune = memory, None if autotune is None else bool(autotune)
        self._reset()

    def forget(self) -> None:
        """Drop cached matrices and bound calls; plans stay."""
        self._matrices.drop_others(())
        self.bound.clear()

    def unbind(self) -> None:
        """Drop bound calls, and matrices of plans that do not count now; plans stay."""
        self.bound.clear()
        valid = only_predicted()
        programs = list(self._programs.items())  # another thread may add one
        self._matrices.drop_others({number for key, (_, number, _) in programs if key[-1] is valid})

    def plan(
        self, rows: int, *, training: bool, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> ContractionPlan:
        """The plan for ``rows`` input rows, which the runner follows until :meth:`set_execution` is called again.

        With autotuning it is measured now, unless it was measured before; with ``autotune=None`` the runner leaves it
        if its calls show a faster one. Predictions use the constants measured on this machine, if there are any.
        """
        exponent = (rows - 1).bit_length() if rows > 1 else 0
        key = exponent, training, dtype, torch.device(device), torch.get_num_threads(), only_predicted()
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._new_plan(rows, training, dtype, device)
        return plan

    def _new_plan(self, rows: int, training: bool, dtype: torch.dtype, device: torch.device | str) -> ContractionPlan:
        # With gradients the merges are part of the graph at every call, so nothing can be cached.
        mode: Mode = "training" if training else "inference"
        memory: Memory = "compact" if training else self.memory
        setting, batch = setting_of(dtype, device), batch_bucket(rows)
        if self.autotune and _runs_for_real(device):
            return tuned(self.spec, batch, mode=mode, memory=memory, setting=setting)
        trial = self._trial(rows, training, dtype, device)
        if trial is not None and trial.settled is not None:
            return replace(trial.settled, spec=self.spec)
        kernels = tuple(KERNELS.values())
        machine = STORE.machine(setting)
        return plan(self.spec, batch, mode=mode, memory=memory, setting=setting, machine=machine, kernels=kernels)

    def _trial(self, rows: int, training: bool, dtype: torch.dtype, device: torch.device | str) -> Trial | None:
        allowed = self.autotune is None and not training and may_try(torch.device(device).type)
        if not allowed or not _runs_for_real(device):
            return None
        return trial_of(self.spec, batch_bucket(rows), memory=self.memory, setting=setting_of(dtype, device))

    def __call__(
        self,
        x: Tensor,
        cores: Sequence[Tensor],
        bias: Tensor | None = None,
        onto: Tensor | None = None,
        *,
        keeps: bool = True,
    ) -> Tensor:
        """``x (rows, in_features)`` to ``(rows, out_features)``.

        Args:
            x: the rows.
            cores: cores of the chain.
            bias: added to the result, unless ``onto`` is given.
            onto: the sum of earlier terms, to which the result is added.
            keeps: whether anything may be cached; False for cores whose changes cannot be noticed.
        """
        if is_traced():
            portable = torch.compiler.is_exporting() or not torch.compiler.is_compiling()
            program = self._portable if portable else self._compiled
            if is_for_other_programs() and program.schedule.merges:
                program = self._swept()
            y = program(x, cores, bias)
            return y if onto is None else onto + y
        if not keeps and self.memory == "fast":
            return self._without_cache()(x, cores, bias, onto, keeps=False)
        training = torch.is_grad_enabled()
        program, number, trial = self._program(x, training)
        if training:
            y = program(x, cores, bias)
            return y if onto is None else onto + y
        keeps = keeps and keepable(x, cores)
        if trial is not None:
            return self._tried(trial, x, cores, bias, onto, keeps)
        if not keeps or not self._keeps(program):
            return program(x, cores, bias, onto)
        return program.run(x, self._matrices.of(program, number, cores), bias, onto)

    def _tried(
        self, trial: Trial, x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, onto: Tensor | None, keeps: bool
    ) -> Tensor:
        """A call that a trial may take for one of its plans; the runner leaves the trial once it is settled."""
        settled = trial.settled
        if settled is not None or not may_try(x.device.type):
            self._leave(trial, x)
            return self(x, cores, bias, onto, keeps=keeps)
        # Tensors without values, and graphs that are captured, have no times.
        timed = _runs_for_real(x.device) and not (x.is_cuda and torch.cuda.is_current_stream_capturing())
        variant = trial.turn(x.shape[0]) if timed else None
        followed = trial.predicted.chosen if variant is None else variant
        kernel = kernel_named(followed.kernel, self.spec)
        program = Program.of(followed, kernel, trial.predicted.machine)
        # Not timed: what is kept between calls is computed once.
        operands = None
        if keeps and self._keeps(program):
            operands = self._matrices.of(program, self._matrices.number(program, autocast_dtype(x) or x.dtype), cores)

        def call() -> Tensor:
            return program(x, cores, bias, onto) if operands is None else program.run(x, operands, bias, onto)

        return call() if variant is None else trial.timed(variant, x.device, call)

    def _leave(self, trial: Trial, x: Tensor) -> None:
        """Stay with the settled plan of a trial, or with the predicted one, and drop the matrices of the others."""
        key = self._key(x, training=False)
        if trial.settled is not None:
            self._plans[key] = replace(trial.settled, spec=self.spec)
        program = _program_of(self._plans[key])
        self._programs[key] = program, self._matrices.number(program, key[2]), None
        self._matrices.drop_others({number for _, number, _ in self._programs.values()})

    def _without_cache(self) -> ChainRunner:
        """A runner of the same chain with plans for cores that are merged at every call."""
        if self._compact is None:
            self._compact = ChainRunner(self.spec, "compact", self.autotune)
        return self._compact

    def _keeps(self, program: Program) -> bool:
        """True if the program's matrices are cached between calls: views of the cores always, others if ``"fast"``."""
        return program.only_views or (self.memory == "fast" and not program.kernel.takes_cores)

    def _key(self, x: Tensor, training: bool) -> _Key:
        rows = x.shape[0]
        # The same arithmetic as in batch_bucket, without a call.
        exponent = (rows - 1).bit_length() if rows > 1 else 0
        dtype = autocast_dtype(x) or x.dtype
        return exponent, training, dtype, x.device, torch.get_num_threads(), only_predicted()

    def _program(self, x: Tensor, training: bool) -> tuple[Program, int, Trial | None]:
        """The program of a call, the number of its matrices, and the trial that may choose another one."""
        key = self._key(x, training)
        entry = self._programs.get(key)
        if entry is None:
            rows, (_, _, dtype, device, _, _) = x.shape[0], key
            program = _program_of(self.plan(rows, training=training, dtype=dtype, device=device))
            trial = self._trial(rows, training, dtype, device)
            if trial is not None and trial.settled is not None:
                trial = None  # its plan is the one above, unless that was made before
            entry = self._programs[key] = program, self._matrices.number(program, dtype), trial
        return entry

    def bind(self, x: Tensor, shape: torch.Size, names: Sequence[str], parameters: Mapping[str, Tensor | None]) -> None:
        """Bind calls without gradients for inputs of this shape, if the kernel and the cores allow it.

        Args:
            x: the rows of an input with which this runner was just called.
            shape: shape of the input itself.
            names: names of the cores.
            parameters: the cores by name, and ``bias``.
        """
        if shape in self._unbindable:
            return
        cores = [core for name in names if (core := parameters.get(name)) is not None]
        # A parametrised core or bias is recomputed at every call; under autocast matrices have another dtype.
        if len(cores) < len(names) or "bias" not in parameters or autocast_dtype(x) is not None:
            return
        program, number, trial = self._program(x, training=False)
        views, steps = program.only_views, STEPS.count
        if trial is not None or not keepable(x, cores):
            return
        bound = None
        if self._keeps(program):
            matrices = self._matrices.of(program, number, cores)
            if not self._matrices.holds(number, matrices):
                return
            watched = [(name, core, None if views else core._version) for name, core in zip(names, cores, strict=True)]
            bias = parameters["bias"]
            bound = bind(program, matrices, shape, bias, watched, None if views else lambda: STEPS.count == steps)
        if bound is None and (views or not self._keeps(program)):
            bound = bind_unkept(program, shape, names)
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

    # Copies and pickles contain the settings but no caches: each process makes its own plans.
    def __getstate__(self) -> dict[str, object]:
        return {"spec": self.spec, "memory": self.memory, "autotune": self.autotune}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._reset()
