"""Quantisers and adapters of other packages on compressed layers: torchao, bitsandbytes, compressed-tensors, PEFT."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import mpochain as mpo
from mpochain.errors import ArgumentError
from mpochain.quantization import Scheme

WIDTH = 64


class Net(nn.Module):
    """One layer of every form that is made of ``nn.Linear``, or can be."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.low_rank = mpo.InterpolativeLinear(WIDTH, 2 * WIDTH, 32)
        self.chain = mpo.MPOLinear(2 * WIDTH, WIDTH, out_dims=(32, 2), in_dims=(2, 64), max_bond=32)
        chain = mpo.MPOLinear(WIDTH, WIDTH, out_dims=(2, 32), in_dims=(2, 32), max_bond=4, bias=False)
        self.permuted = mpo.PermutedLinear(chain, rows=torch.randperm(WIDTH))
        self.sum = mpo.SumLinear(
            [mpo.InterpolativeLinear(WIDTH, WIDTH, 32), mpo.MPOLinear(WIDTH, WIDTH, max_bond=4, bias=False)]
        )
        self.head = nn.Linear(WIDTH, 5)

    def hidden(self, x):
        x = torch.relu(self.low_rank(x))
        return torch.relu(self.sum(torch.relu(self.permuted(torch.relu(self.chain(x))))))

    def forward(self, x):
        return self.head(self.hidden(x))


LAYERS = ("low_rank", "chain", "permuted", "sum")
# Matrices in nn.Linear before and after as_linears, without the dense head.
FOUND, ALL = 4, 10


@pytest.fixture
def net():
    return Net().eval().requires_grad_(False)


@pytest.fixture
def x():
    return torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1))


def linears(model, kind=nn.Linear):
    return {name: module for name, module in model.named_modules() if isinstance(module, kind) and name != "head"}


def difference(one, other):
    return ((one - other).norm() / other.norm()).item()


def require_a_usable_model(model, quantised, x):
    """What holds for compressed layers holds with quantised matrices: caches, dense forms, copies, clear errors."""
    again = copy.deepcopy(model)
    mpo.set_execution(again, cache=True)
    for _ in range(2):
        torch.testing.assert_close(again(x), quantised)
    with pytest.raises(ArgumentError, match="low_rank holds other tensors|ordinary tensor"):
        mpo.save(model, "never written")
    dense = mpo.to_dense(again)
    assert all(type(getattr(dense, name)) is nn.Linear for name in LAYERS)
    assert difference(dense(x), quantised) < 0.02


def torchao_config(bits):
    quantization = pytest.importorskip("torchao.quantization")
    if bits == 8:
        return quantization.Int8WeightOnlyConfig(version=2)
    group = quantization.granularity.PerGroup(32)
    return quantization.IntxWeightOnlyConfig(torch.int4, group, intx_choose_qparams_algorithm="hqq_scale_only")


def fits(module, name):
    """Whether a matrix can be quantised in groups of 32 columns."""
    return isinstance(module, nn.Linear) and name != "head" and module.in_features % 32 == 0


@pytest.mark.parametrize(("bits", "largest"), [(8, 0.03), (4, 0.3)])
@pytest.mark.runs_in("torchao", "int8 and int4 matrices after `mpo.as_linears`", "low rank, chain, permuted, sum")
def test_torchao(net, x, bits, largest):
    config = torchao_config(bits)
    from torchao.quantization import quantize_

    before = net(x)
    mpo.as_linears(net)
    sizes = {name: getattr(net, name).numbers() for name in LAYERS}
    if bits == 4:
        with pytest.raises(AssertionError, match="must be divisible by group_size=32"):
            quantize_(copy.deepcopy(net), config)
    quantize_(net, config, fits if bits == 4 else lambda module, name: name in linears(net))
    found = {name: type(module.weight) for name, module in linears(net).items()}
    left = {name for name, kind in found.items() if kind is nn.Parameter}
    assert left == ({name for name, module in linears(net).items() if not fits(module, name)} if bits == 4 else set())
    assert len(found) - len(left) == (8 if bits == 4 else ALL)
    after = net(x)
    assert 0 < difference(after, before) < largest
    for name in LAYERS:
        layer = getattr(net, name)
        size = sum(4 * value.values.numel() for value in layer.indices().values())
        for matrix in linears(layer).values():
            # A scale of four bytes and a zero point of one for each row or group.
            groups = matrix.out_features * (matrix.in_features // 32 if bits == 4 else 1)
            quantised = type(matrix.weight) is not nn.Parameter
            size += matrix.weight.numel() + 5 * groups if quantised else 4 * matrix.weight.numel()
        assert layer.numbers().bytes == size
        assert layer.numbers().parameters == sizes[name].parameters
    require_a_usable_model(net, after, x)


@pytest.mark.runs_in("torchao", "int8 without `mpo.as_linears`: low rank alone, other layers unchanged", "low rank")
@pytest.mark.refused_in("torchao", "layers in codes already")
def test_torchao_passes_over_what_is_no_linear(net, x):
    config = torchao_config(8)
    from torchao.quantization import quantize_

    net.head = mpo.QuantizedLinear.from_linear(net.head, Scheme(4))
    chain, codes = net.chain.core_0_0.clone(), net.head.codes().codes
    quantize_(net, config)
    assert len(linears(net)) == FOUND, "the factors of low rank"
    assert type(net.low_rank.rows.weight).__name__ == "Int8Tensor"
    assert type(net.chain.core_0_0) is nn.Parameter
    assert torch.equal(net.chain.core_0_0, chain)
    assert torch.equal(net.head.codes().codes, codes)
    with pytest.raises(ArgumentError, match="head: QuantizedLinear .* held in codes already"):
        mpo.as_linears(net)
    assert len(mpo.as_linears(net, ignore=["head"])) == 3
    assert len(linears(net)) == ALL, "a quantised part of a sum stays as it is"
    assert net(x).isfinite().all()


def test_torchao_meets_no_matrix_without_rows(x):
    config = torchao_config(8)
    from torchao.quantization import quantize_

    model = nn.Sequential(mpo.InterpolativeLinear(WIDTH, 32, 32)).eval()
    before = model(x)
    quantize_(model, config)
    assert difference(model(x), before) < 0.03


def bitsandbytes_linear(linear, bits):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    sizes = linear.in_features, linear.out_features
    if bits == 8:
        new = bitsandbytes.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False)
    else:
        new = bitsandbytes.nn.Linear4bit(*sizes, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    new.load_state_dict(linear.state_dict())
    return new.to("cpu")  # which quantises


# Its 8-bit product computes in float16 and says so.
@pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast:UserWarning")
@pytest.mark.parametrize(("bits", "largest"), [(8, 0.03), (4, 0.4)])
@pytest.mark.runs_in("bitsandbytes", "8 bits and nf4 on a CPU after `mpo.as_linears`", "low rank, chain, permuted, sum")
def test_bitsandbytes(net, x, bits, largest):
    before = net(x)
    mpo.as_linears(net)
    # On processors with AVX512-BF16 its 4-bit product takes whole blocks of 32 rows and 64 columns alone.
    rows, columns = (1, 1) if bits == 8 else (32, 64)
    fitting = {
        name: linear
        for name, linear in linears(net).items()
        if linear.out_features % rows == 0 and linear.in_features % columns == 0
    }
    for name, linear in fitting.items():
        net.set_submodule(name, bitsandbytes_linear(linear, bits))
    after = net(x)
    quantised = {name for name, module in linears(net).items() if not module.weight.is_floating_point()}
    assert quantised == fitting.keys()
    assert len(quantised) == (ALL if bits == 8 else 4)
    assert 0 < difference(after, before) < largest
    require_a_usable_model(net, after, x)


@pytest.mark.runs_in("compressed-tensors", "packed 4 bits after `mpo.as_linears`", "low rank, chain, permuted, sum")
def test_compressed_tensors_packed(net, x):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    before = net(x)
    mpo.as_linears(net)
    args = QuantizationArgs(num_bits=4, group_size=8, strategy="group", symmetric=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    apply_quantization_config(net, QuantizationConfig(config_groups={"all": scheme}, ignore=["head"]))
    for linear in linears(net).values():
        groups = linear.weight.unflatten(1, (-1, 8))
        linear.weight_scale.copy_(calculate_qparams(groups.amin(-1), groups.amax(-1), args)[0])
    after = net(x)
    assert 0 < difference(after, before) < 0.4
    require_a_usable_model(net, after, x)
    ModelCompressor.from_pretrained_model(net).compress_model(net)
    stored = net.state_dict()
    packed = {name: value for name, value in stored.items() if name.endswith("weight_packed")}
    assert {name.removesuffix(".weight_packed") for name in packed} == set(linears(net))
    assert len(packed) == ALL
    assert [name for name in stored if name.endswith(".weight")] == ["head.weight"]
    numbers = sum(linear.in_features * linear.out_features for linear in linears(net).values())
    assert sum(value.numel() * value.element_size() for value in packed.values()) == numbers / 2
    with pytest.raises(ArgumentError, match="low_rank holds other tensors"):
        mpo.save(net, "never written")
    assert torch.equal(net(x), after), "it is unpacked at the first call"


@pytest.mark.parametrize("chains", [False, True])
@pytest.mark.runs_in("PEFT", "LoRA: trained, saved, loaded, merged", "low rank, chain, permuted, sum")
@pytest.mark.refused_in("PEFT", "saving or converting a model whose adapters are not merged")
def test_peft_trains_saves_loads_and_merges_adapters(x, tmp_path, chains):
    peft = pytest.importorskip("peft")
    target = r".*\.(rows|coefficients|terms\.\d+\.\d+)" if chains else ["rows", "coefficients"]
    config = peft.LoraConfig(r=4, lora_dropout=0.1, target_modules=target)

    def fresh():
        net = Net()
        if chains:
            mpo.as_linears(net)
        return net

    before = {name: value.clone() for name, value in fresh().state_dict().items()}
    model = peft.get_peft_model(fresh(), config)
    assert sum(name.endswith("lora_A") for name, _ in model.named_modules()) == (ALL if chains else FOUND)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    wanted, losses = torch.randn(6, 5, generator=torch.Generator().manual_seed(2)), []
    torch.manual_seed(3)
    for _ in range(30):
        loss = (model(x) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        expected = model.eval()(x)
        mpo.set_execution(model, cache=True)
        torch.testing.assert_close(model(x), expected)
        # In training mode inputs are dropped at random, but the layer's matrix is one.
        dense = model.train().base_model.model.low_rank.to_dense()
        torch.testing.assert_close(dense(x), model.eval().base_model.model.low_rank(x), rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "adapters")
    loaded = peft.PeftModel.from_pretrained(fresh(), tmp_path / "adapters").eval()
    torch.testing.assert_close(loaded(x), expected)
    for wrong in (loaded, loaded.base_model.model):
        with pytest.raises(ArgumentError, match=r"low_rank holds other tensors.*merge_and_unload\(\)"):
            mpo.save(wrong, tmp_path / "never written")
        with pytest.raises(ArgumentError, match=r"low_rank has adapters inside.*merge_and_unload\(\)"):
            mpo.to_dense(wrong)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(x), expected, rtol=1e-4, atol=1e-5)
    assert merged.low_rank.can_reorder()
    assert merged.state_dict().keys() == before.keys()
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.weight" for name in linears(merged)}
    plain = nn.ModuleDict({name: nn.Linear(*getattr(merged, name).shape[::-1]) for name in LAYERS})
    plain["permuted"] = nn.Linear(WIDTH, WIDTH, bias=False)
    plain["head"] = nn.Linear(WIDTH, 5)
    again = mpo.load(mpo.save(merged, tmp_path / "merged"), plain)
    torch.testing.assert_close(again["low_rank"](x), merged.low_rank(x))
