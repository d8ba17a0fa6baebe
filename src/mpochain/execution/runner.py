"""Chain runner: plans and runs a chain in torch for any batch size, with cached plans and matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mpochain.execution.autocast import autocast_dtype
from mpochain.execution.bound import Bound, bind
from mpochain.execution.foreign import checked
from mpochain.execution.kept import STEPS, ParameterState, keepable, same, same_memory, state_of
from mpochain.execution.kernels import KERNELS, Kernel
from mpochain.execution.measurement import setting_of
from mpochain.execution.program import Program
from mpochain.execution.tracing import is_for_other_programs, is_traced
from mpochain.execution.tuning import tuned
from mpochain.planning import Conditions, ContractionPlan, Graph, Machine, Memory, Mode, Schedule, Setting, plan
from mpochain.planning.batches import batch_bucket
from mpochain.planning.candidates import unmerged
from mpochain.planning.store import STORE
from mpochain.spec import ChainSpec

__all__ = ["ChainRunner"]

# Batch size that traced graphs are planned for: their batch is symbolic, so one plan serves every size.
_TRACED_BATCH = 256

# Largest number of bound input shapes; beyond it all are dropped, so that memory stays bounded over ever new lengths.
_MOST_BOUND = 64

# Key of a program: exponent of the batch bucket, whether gradients are recorded, dtype, device and threads.
_Key = tuple[int, bool, torch.dtype, torch.device, int]


def _runs_for_real(device: torch.device | str) -> bool:
    """True if products on the device are really computed: not on ``meta``, and not with fake tensors."""
    probe = torch.empty(0, device=device)
    return type(probe) is Tensor and not probe.is_meta


def _kernel(name: str) -> Kernel:
    """The kernel of a name, under whatever key it is in the table."""
    return next(kernel for kernel in KERNELS.values() if kernel.name == name)


def _program_of(chosen: ContractionPlan) -> Program:
    return Program.of(chosen.chosen, checked(_kernel(chosen.kernel), chosen.spec), chosen.machine)


class ChainRunner:
    """Plans and runs a chain for any batch size.

    Args:
        spec: spec of the chain.
        memory: ``"compact"`` stores only the cores; ``"fast"`` caches merged cores, up to the dense matrix, between
            calls without gradients.
        autotune: whether plans are measured at the first call with a batch size, instead of predicted.
    """

    def __init__(self, spec: ChainSpec, memory: Memory = "compact", autotune: bool = False) -> None:
        self.spec = spec
        self.memory: Memory = memory
        self.autotune = autotune
        self._reset()

    def _reset(self) -> None:
        if self.memory == "fast":
            STEPS.watch()
        self._plans: dict[_Key, ContractionPlan] = {}
        self._programs: dict[_Key, tuple[Program, int]] = {}
        # Programs with the same schedule and dtype share their matrices; each such pair has a number.
        self._numbers: dict[tuple[Schedule, torch.dtype], int] = {}
        self._kept: dict[int, tuple[int, list[ParameterState], list[Tensor]]] = {}
        self.bound: dict[torch.Size, Bound] = {}
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
        return Program(schedule, checked(_kernel("portable"), self.spec), _TRACED_BATCH)

    def set_execution(self, memory: Memory, autotune: bool) -> None:
        """Choose compact or fast execution, and predicted or measured plans; drops plans and cached matrices.

        Raises:
            ArgumentError: ``memory`` is neither ``"compact"`` nor ``"fast"``.
        """
        Conditions(1, "inference", memory, Setting(), Machine())  # validates memory
        self.memory, self.autotune = memory, bool(autotune)
        self._reset()

    def plan(
        self, rows: int, *, training: bool, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> ContractionPlan:
        """The plan for ``rows`` input rows, which the runner follows until :meth:`set_execution` is called again.

        With autotuning it is measured now, unless it was measured before. Predictions use the constants measured on
        this machine, if there are any.
        """
        exponent = (rows - 1).bit_length() if rows > 1 else 0
        key = exponent, training, dtype, torch.device(device), torch.get_num_threads()
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
        kernels = tuple(KERNELS.values())
        return plan(
            self.spec,
            batch,
            mode=mode,
            memory=memory,
            setting=setting,
            machine=STORE.machine(setting),
            kernels=kernels,
        )

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
        program, number = self._program(x, training)
        if training:
            y = program(x, cores, bias)
            return y if onto is None else onto + y
        if not keeps or not keepable(x, cores) or not self._keeps(program):
            return program(x, cores, bias, onto)
        return program.run(x, self._matrices(program, number, cores), bias, onto)

    def _without_cache(self) -> ChainRunner:
        """A runner of the same chain with plans for cores that are merged at every call."""
        if self._compact is None:
            self._compact = ChainRunner(self.spec, "compact", self.autotune)
        return self._compact

    def _keeps(self, program: Program) -> bool:
        """True if the program's matrices are cached between calls: views of the cores always, others if ``"fast"``."""
        return program.only_views or (self.memory == "fast" and not program.kernel.takes_cores)

    def _program(self, x: Tensor, training: bool) -> tuple[Program, int]:
        rows, device = x.shape[0], x.device
        dtype = autocast_dtype(x) or x.dtype
        # The same arithmetic as in batch_bucket, without a call.
        key = (rows - 1).bit_length() if rows > 1 else 0, training, dtype, device, torch.get_num_threads()
        numbered = self._programs.get(key)
        if numbered is None:
            program = _program_of(self.plan(rows, training=training, dtype=dtype, device=device))
            number = self._numbers.setdefault((program.schedule, dtype), len(self._numbers))
            numbered = self._programs[key] = program, number
        return numbered

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
        program, number = self._program(x, training=False)
        views, steps = program.only_views, STEPS.count
        if not keepable(x, cores):
            return
        if not self._keeps(program):
            self._refuse(shape)
            return
        matrices = self._matrices(program, number, cores)
        if number not in self._kept or self._kept[number][2] is not matrices:
            return  # the matrices could not be cached
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
        """The matrices of the sweep, cached between calls and recomputed when a core has changed.

        Views of the cores have no memory of their own, and reflect in-place changes. Other matrices are copies (fast
        execution only). Changes are detected by the tensor's version, which counts in-place changes
        (``load_state_dict``, edits), and by the number of steps of all optimisers. A replaced core is another object,
        and ``.to`` changes its address and dtype.
        """
        views = program.only_views
        if views and not all(core.is_contiguous() for core in cores):
            return program.matrices(cores)  # copies, which would not reflect the next change
        if not views and any(core.is_inference() for core in cores):
            return program.matrices(cores)  # they have no version counter, so a change would not be noticed
        state = state_of(cores, versions=not views)
        steps = 0 if views else STEPS.count
        kept = self._kept.get(number)
        if kept is not None and kept[0] == steps and same(kept[1], state):
            return kept[2]
        matrices = [matrix.detach() if views else matrix.contiguous() for matrix in program.matrices(cores)]
        if any(not same_memory(old, state) for _, old, _ in self._kept.values()) or kept is not None:
            # Matrices of the old cores would keep their memory alive, also in other programs and bound calls.
            self._kept.clear()
            self.bound.clear()
        self._kept[number] = steps, state, matrices
        return matrices

    # Copies and pickles contain the settings but no caches: each process makes its own plans.
    def __getstate__(self) -> dict[str, object]:
        return {"spec": self.spec, "memory": self.memory, "autotune": self.autotune}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._reset()
