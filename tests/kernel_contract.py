"""The contract of kernels: every program that a kernel offers computes the dense product, gradients included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor, nn

from mpochain import ChainSpec, MPOChain, shapes
from mpochain.execution import Kernel, Program
from mpochain.execution.bound import bind
from mpochain.planning import Conditions, Machine, Setting, Variant, candidates
from mpochain.planning.kernel_models import runs

SPECS = {
    "two sites": ChainSpec((3, 4), (2, 5), 3),
    "three sites": ChainSpec((2, 3, 2), (3, 1, 4), 4),
    "four sites": ChainSpec((2, 1, 3, 2), (2, 3, 2, 1), 3),
    "one site": ChainSpec((5,), (4,)),
    "unit dims": ChainSpec((1, 6, 1), (5, 1, 2), 5),
    "low rank": shapes.low_rank(7, 5, 2),
    "skewed": shapes.skewed(16, 18, 2, 3),
    "prime, padded": ChainSpec((3, 4), (2, 4), 3, out_features=11, in_features=7),
    "bond 1": ChainSpec((3, 4), (2, 5), 1),
}
BATCHES = {"row": (1,), "rows": (6,), "none": (0,), "vector": (), "many axes": (2, 1, 3)}

# Rows that programs are planned for; they are run on fewer, more and no rows.
_PLANNED_ROWS = 6
_MACHINES = (
    Machine(),
    # Tiles of single rows, panels of single out entries, and their neighbours.
    Machine(cache_bytes=1, smallest_tile=1),
    Machine(cache_bytes=2048, smallest_tile=4),
    # Every narrow step batched into one product.
    Machine(narrow_entry_seconds=1.0, batching_seconds=1e-12),
)


def case(
    spec: ChainSpec, lead: tuple[int, ...], dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """An input and the cores, random, with gradients."""
    generator = torch.Generator().manual_seed(0)

    def filled(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    cores = tuple(filled(*shape) for shape in spec.core_shapes)
    x = filled(*lead, spec.in_features)
    return x.requires_grad_(), tuple(core.requires_grad_() for core in cores)


def dense(x: Tensor, cores: tuple[Tensor, ...], spec: ChainSpec) -> Tensor:
    """The product with the dense matrix."""
    return nn.functional.linear(x, MPOChain(cores, spec).to_matrix())


def programs(
    kernel: Kernel, spec: ChainSpec, device: str = "cpu", machines: Sequence[Machine] = _MACHINES
) -> Iterator[tuple[Program, bool]]:
    """All that a kernel offers for a spec, on several machines, each with whether it must be differentiable."""
    offers: dict[tuple[Variant, Machine], bool] = {}
    for machine, mode, graph in product(machines, ("training", "inference"), kernel.graphs):
        conditions = Conditions(_PLANNED_ROWS, mode, "compact", Setting(device=device), machine, graph)
        for candidate in candidates(spec, _PLANNED_ROWS):
            if runs(kernel, candidate.schedule, conditions):
                for variant in kernel.variants(candidate, conditions):
                    assert variant.kernel == kernel.name
                    assert kernel.seconds(variant, conditions) > 0
                    for offer in (variant, *kernel.neighbours(variant, conditions)):
                        offers.setdefault((offer, machine), mode == "training")
    for (offer, machine), differentiable in offers.items():
        yield Program.of(offer, kernel, machine), differentiable


def check_kernel(kernel: Kernel, spec: ChainSpec, device: str = "cpu", machines: Sequence[Machine] = _MACHINES) -> None:
    """Values and gradients in float64, empty and strange inputs, bias and sum, bound calls, short types, autocast."""
    for program, differentiable in programs(kernel, spec, device, machines):
        _check_values(program, spec, device)
        _check_types(program, spec, device)
        if differentiable:
            _check_gradients(program, spec, device)


def _close(y: Tensor, expected: Tensor) -> None:
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def _check_values(program: Program, spec: ChainSpec, device: str) -> None:
    bias = torch.randn(spec.out_features, dtype=torch.float64, device=device)
    for rows in (0, 1, 2, 6, 7):
        x, cores = case(spec, (rows,), torch.float64, device)
        expected = dense(x, cores, spec)
        _close(program(x, cores), expected)
        _close(program(x, cores, bias), expected + bias)
        earlier = torch.randn_like(expected)
        _close(program(x, cores, None, earlier.clone()), expected + earlier)
        assert program.only_views <= (not program.kernel.takes_cores)
        if not program.kernel.takes_cores:
            matrices = program.matrices(cores)
            _close(program.run(x, matrices, bias), expected + bias)
            _check_bound(program, matrices, x, expected, bias)
    x, cores = case(spec, (4, 6), torch.float64, device)
    for view in (x[0], x.transpose(0, 1)[:, 1], x[1].flip(0), x[:1, 0].expand(3, -1), x[:, ::2].transpose(0, 1)[0]):
        _close(program(view, cores), dense(view, cores, spec))


def _check_bound(program: Program, matrices: list[Tensor], x: Tensor, expected: Tensor, bias: Tensor) -> None:
    kept = [matrix.contiguous() for matrix in matrices]
    for addend in (None, bias):
        parameters = {} if addend is None else {"bias": addend}
        bound = bind(program, kept, x.shape, addend, [], None)
        if bound is not None:
            y = bound(x, parameters)
            assert y is not None
            _close(y, expected if addend is None else expected + addend)


def _check_gradients(program: Program, spec: ChainSpec, device: str) -> None:
    for rows in (0, 1, 7):
        x, cores = case(spec, (rows,), torch.float64, device)
        bias = torch.randn(spec.out_features, dtype=torch.float64, device=device, requires_grad=True)
        y, expected = program(x, cores, bias), dense(x, cores, spec) + bias
        weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        weights = weights.to(device)
        leaves = (x, *cores, bias)
        gradients = torch.autograd.grad((y * weights).sum(), leaves)
        for gradient, reference in zip(gradients, torch.autograd.grad((expected * weights).sum(), leaves), strict=True):
            _close(gradient, reference)


@torch.no_grad()
def _check_types(program: Program, spec: ChainSpec, device: str) -> None:
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        x, cores = case(spec, (6,), dtype, device)
        expected = dense(x.double(), tuple(core.double() for core in cores), spec)
        atol = tolerance * expected.abs().max().item()
        y = program(x, cores)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=atol)
    x, cores = case(spec, (6,), torch.float32, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = program(x, cores, torch.zeros(spec.out_features, device=device))
    expected = dense(x, cores, spec)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())
