"""Kernels in Triton: values and gradients, in Triton's interpreter on a CPU or on an NVIDIA GPU."""

from __future__ import annotations

import copy
import itertools
import pickle

import gpu_check
import pytest
import torch
from kernel_contract import SPECS, case, check_kernel, dense
from torch import nn

from mpochain import ChainSpec, InterpolativeLinear, MPOLinear
from mpochain.errors import ArgumentError, ShapeError
from mpochain.execution import KERNELS, Program, low_rank_choice
from mpochain.execution.kernels import fused, low_rank
from mpochain.execution.kernels.device import INTERPRETED, runs_triton
from mpochain.execution.kernels.low_rank import low_rank_product, takes_low_rank
from mpochain.execution.low_rank_choice import LowRankChoice
from mpochain.planning import Conditions, Machine, Setting, candidates
from mpochain.planning.kernel_models import runs

DEVICE = "cpu" if INTERPRETED else "cuda"

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not runs_triton(DEVICE) or not (INTERPRETED or torch.cuda.is_available()),
        reason="needs triton, and an NVIDIA GPU or TRITON_INTERPRET=1 in the environment",
    ),
]

# Rows, in, rank, out: one row, odd sizes over several blocks, and the rank of a matrix without coefficients.
SHAPES = [(1, 7, 3, 9), (19, 70, 21, 45), (3, 5, 5, 5)]
# Multiprocessors, from which the blocks follow: one kernel for both products, or one launch for each.
PROCESSORS = {"many rows": 1, "few rows": 132}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}


@pytest.fixture(params=PROCESSORS)
def variant(request, monkeypatch):
    monkeypatch.setattr(low_rank, "multiprocessors", lambda _: PROCESSORS[request.param])
    return request.param


def factors(rows, size_in, rank, out, dtype, *, placed=True):
    """Input, both factors, places and bias."""
    generator = torch.Generator().manual_seed(0)

    def filled(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)

    place = torch.randperm(out, generator=generator).to(DEVICE, torch.int32) if placed else None
    tensors = [filled(rows, size_in), filled(rank, size_in), filled(out - rank if placed else out, rank), filled(out)]
    return [tensor.requires_grad_() for tensor in tensors], place


def by_torch(x, rows, coefficients, place, bias):
    """The product in float64."""
    kept = x @ rows.t()
    if place is None:
        return kept @ coefficients.t() + bias
    return torch.cat([kept, kept @ coefficients.t()], dim=-1)[..., place.long()] + bias


def assert_near(tensor, expected, tolerance):
    assert tensor.shape == expected.shape
    largest = expected.abs().max().item() if expected.numel() else 0
    torch.testing.assert_close(tensor.double(), expected, rtol=tolerance, atol=tolerance * max(largest, 1e-6))


def check(run, reference, tensors, tolerance):
    """Values and gradients of a function against a reference that is computed in float64."""
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    y, expected = run(*tensors), reference(*wide)
    assert y.dtype == tensors[0].dtype
    assert_near(y, expected, tolerance)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, y.dtype)
    gradients = torch.autograd.grad((y * weights).sum(), tensors)
    references = torch.autograd.grad((expected * weights.double()).sum(), wide)
    for gradient, one, tensor in zip(gradients, references, tensors, strict=True):
        assert gradient.dtype == tensor.dtype
        assert_near(gradient, one, tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("variant")
def test_low_rank_products(shape, dtype):
    tensors, place = factors(*shape, dtype)

    def run(x, rows, coefficients, bias):
        return low_rank_product(x, rows, coefficients, place, bias)

    def reference(x, rows, coefficients, bias):
        return by_torch(x, rows, coefficients, place, bias)

    check(run, reference, tensors, TOLERANCES[dtype])


@pytest.mark.usefixtures("variant")
def test_low_rank_products_without_places():
    tensors, _ = factors(5, 20, 6, 33, torch.float64, placed=False)
    check(
        lambda x, rows, left, bias: low_rank_product(x, rows, left, None, bias),
        lambda x, rows, left, bias: by_torch(x, rows, left, None, bias),
        tensors,
        1e-12,
    )


@pytest.mark.usefixtures("variant")
def test_strange_inputs_of_low_rank_products():
    (x, rows, coefficients, bias), place = factors(6, 8, 3, 10, torch.float64)
    strided = torch.randn(2, 16, 3, dtype=torch.float64, device=DEVICE)[:, ::2].transpose(1, 2)
    for value in (x[:0], x[0], x[:, None], x.flip(0), x[:1].expand(4, -1), strided):
        y = low_rank_product(value, rows, coefficients, place, bias)
        assert_near(y, by_torch(value, rows, coefficients, place, bias), 1e-12)
    turned = rows.detach().t().contiguous().t()
    assert_near(low_rank_product(x, turned, coefficients, place), by_torch(x, rows, coefficients, place, 0), 1e-12)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        y = low_rank_product(x.float(), rows.float(), coefficients.float(), place, bias.float())
    assert y.dtype == torch.bfloat16
    assert_near(y, by_torch(x, rows, coefficients, place, bias), 5e-2)


def test_low_rank_products_pass_gradcheck(variant):
    tensors, place = factors(3, 5, 2, 6, torch.float64)
    assert torch.autograd.gradcheck(lambda x, r, c, b: low_rank_product(x, r, c, place, b), tensors)


def test_operators_are_registered_for_compilers():
    (x, rows, coefficients, bias), place = factors(3, 5, 2, 6, torch.float64)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.mpochain.low_rank, (x, rows, coefficients, place, bias), test_utils=tests)
    spec = SPECS["two sites"]
    program = next(programs(spec, torch.float64))
    x, cores = case(spec, (3,), torch.float64, DEVICE)
    arguments = fused.Sizes.of(program.schedule).as_list(), fused.packed(program.steps), program.tile
    matrices = [matrix.detach().clone().requires_grad_() for matrix in program.matrices(cores)]
    torch.library.opcheck(torch.ops.mpochain.fused_sweep, (x, matrices, *arguments), test_utils=tests)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_graph_contains_the_operator():
    (x, rows, coefficients, bias), place = factors(3, 5, 2, 6, torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(low_rank_product, fullgraph=True, backend="aot_eager")
    check(
        lambda x, r, c, b: compiled(x, r, c, place, b),
        lambda x, r, c, b: by_torch(x, r, c, place, b),
        [x, rows, coefficients, bias],
        1e-12,
    )


def test_errors_of_low_rank_products():
    (x, rows, coefficients, _), place = factors(3, 5, 2, 6, torch.float64)
    with pytest.raises(ArgumentError, match=r"float tensors of one type .* got torch.float32, torch.float64"):
        low_rank_product(x.float(), rows, coefficients, place)
    assert not takes_low_rank(x.float(), rows, coefficients)
    with pytest.raises(ShapeError, match=r"x \(3, 4\).*expected x \(..., 5\)"):
        low_rank_product(x[:, 1:], rows, coefficients, place)
    with pytest.raises(ShapeError, match=r"coefficients \(3, 2\)"):
        low_rank_product(x, rows, coefficients[1:], place)


def test_a_layer_takes_the_fused_product_when_it_is_tuned(monkeypatch):
    layer = InterpolativeLinear(20, 30, 7, dtype=torch.float64, device=DEVICE)
    layer.place.copy_(torch.randperm(30))
    calls = []
    monkeypatch.setattr(LowRankChoice, "takes_fused", lambda *_: calls.append(1) or True)
    x = torch.randn(2, 5, 20, dtype=torch.float64, device=DEVICE)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    assert not calls, "only where plans are measured"
    layer.set_execution(autotune=True)
    for one in (layer, pickle.loads(pickle.dumps(copy.deepcopy(layer)))):
        torch.testing.assert_close(one(x), expected, rtol=1e-12, atol=1e-12)
    assert len(calls) == 2
    layer.set_execution()(x)
    assert len(calls) == 2


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU, what is measured decides")
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_layer_contains_the_operator():
    layer = InterpolativeLinear(20, 30, 7, dtype=torch.float64).set_execution(autotune=True)
    x = torch.randn(5, 20, dtype=torch.float64)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(layer)(x)
    assert "mpochain.low_rank" in explained.graphs[0].code
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, nn.functional.linear(x, layer.weight, layer.bias), rtol=1e-12, atol=1e-12)
    exported = torch.export.export(layer, (x,)).module()
    assert "low_rank" not in exported.code
    torch.testing.assert_close(exported(x), y, rtol=1e-12, atol=1e-12)


def test_the_faster_product_is_chosen_once_for_each_batch_size(monkeypatch):
    timed = []

    def interleaved(calls, device, budget):
        for call in calls:
            call()
        timed.append(len(calls))
        return [2.0, 1.0] if len(timed) == 1 else [1.0, 2.0]

    monkeypatch.setattr(low_rank_choice, "INTERPRETED", False)
    monkeypatch.setattr(low_rank_choice, "interleaved", interleaved)
    taken = []
    product = low_rank_choice.low_rank_product
    monkeypatch.setattr(low_rank_choice, "low_rank_product", lambda *tensors: taken.append(1) or product(*tensors))
    layer = InterpolativeLinear(20, 30, 7, device=DEVICE).set_execution(autotune=True)
    x = torch.randn(9, 20, device=DEVICE)
    with torch.no_grad():
        for rows in (3, 4, 9, 9, 0):
            layer(x[:rows])
    assert timed == [2, 2]
    assert len(taken) == 2 + 2, "each measurement calls it, and so do both calls of up to four rows"
    assert torch.autograd.grad(layer(x).sum(), list(layer.parameters()))
    assert timed == [2, 2, 2], "training is measured by itself"


def programs(spec, dtype, mode="training"):
    """The programs that the fused kernel offers for a chain."""
    setting = Setting(str(dtype).removeprefix("torch."), DEVICE)
    conditions = Conditions(6, mode, "compact", setting, Machine(element_bytes=setting.element_bytes))
    for candidate in candidates(spec, 6):
        if runs(KERNELS["fused"], candidate.schedule, conditions):
            for one in KERNELS["fused"].variants(candidate, conditions):
                yield Program.of(one, KERNELS["fused"], conditions.machine)


SWEPT = {
    **{name: SPECS[name] for name in ("two sites", "three sites", "prime, padded", "low rank")},
    "several blocks": ChainSpec((5, 40), (36, 3), 3),
}


@pytest.mark.parametrize("spec", SWEPT.values(), ids=SWEPT)
def test_fused_sweeps(spec):
    offers = list(programs(spec, torch.float64))
    assert {program.schedule.sweeps[0].site > 0 for program in offers} == {False, True}, "from both ends"
    for program in offers:
        x, cores = case(spec, (7,), torch.float64, DEVICE)
        check(lambda x, *cores: program(x, cores), lambda x, *cores: dense(x, cores, spec), [x, *cores], 1e-12)  # noqa: B023


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["two sites", "three sites"])
def test_fused_sweeps_in_shorter_types(name, dtype):
    spec = SPECS[name]
    for program in itertools.islice(programs(spec, dtype), 2):
        x, cores = case(spec, (6,), dtype, DEVICE)
        tolerance = 2 * TOLERANCES[dtype]
        check(lambda x, *cores: program(x, cores), lambda x, *cores: dense(x, cores, spec), [x, *cores], tolerance)  # noqa: B023


@pytest.mark.skipif(INTERPRETED, reason="takes minutes in the interpreter")
@pytest.mark.parametrize("name", ["two sites", "three sites", "prime, padded", "low rank"])
def test_the_contract_of_kernels(name):
    check_kernel(KERNELS["fused"], SPECS[name], DEVICE, [Machine()])


def test_fused_sweeps_of_strange_inputs():
    spec = SPECS["two sites"]
    program = next(programs(spec, torch.float64))
    x, cores = case(spec, (6,), torch.float64, DEVICE)
    for view in (x[:0], x[:1], x.flip(0), x[:1].expand(3, -1), x[:, :1].expand(-1, spec.in_features)):
        assert_near(program(view, cores), dense(view, cores, spec), 1e-12)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        y = program(x.float(), tuple(core.float() for core in cores))
    assert y.dtype == torch.bfloat16
    assert_near(y, dense(x, cores, spec), 5e-2)


def test_sweeps_that_the_kernel_cannot_run_are_refused():
    many = ChainSpec((2, 2, 2, 2), (2, 2, 2, 2), 2)
    assert all(len(program.schedule.sweeps) in (2, 3) for program in programs(many, torch.float32))
    large = ChainSpec((1, 4096), (4096, 1), 64)
    assert not list(programs(large, torch.float32))


def test_predicted_plans_do_not_choose_the_kernel():
    layer = MPOLinear(64, 64, max_bond=4, device=DEVICE)
    assert "fused" not in str(layer.plan(32)[0])


def test_the_benchmark_of_the_kernels(monkeypatch):
    monkeypatch.setattr(gpu_check, "_ROUNDS", 0.0)
    cells = [
        *gpu_check.low_rank_cells(DEVICE, 20, (5,), (3,)),
        *gpu_check.chain_cells(DEVICE, {"two sites": SPECS["two sites"]}, (3,)),
    ]
    assert len(cells) == 8
    for cell in cells:
        assert set(cell["seconds"]) == {"fused", "torch", "dense"}
        assert min(cell["seconds"].values()) > 0
        assert cell["error"] < TOLERANCES[getattr(torch, cell["dtype"])]
