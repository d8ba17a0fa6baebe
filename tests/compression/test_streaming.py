"""Compression with one block of the model at a time, beside the compression of the whole model."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader

import mpochain as mpo
from mpochain.compression.streaming import gathering, hidden_files
from mpochain.compression.streaming.hidden_files import HiddenFiles
from mpochain.errors import ArgumentError, CheckpointError, OutputError

VOCABULARY = 60
SIZES = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


def llama(**changes):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, **LLAMA, **changes}))


FAMILIES = {
    "llama": llama,
    "tied": lambda: llama(tie_word_embeddings=True),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=24, n_layer=2, n_head=3, n_positions=64)
    ),
    # Projections before and after the blocks.
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(
            **{name: value for name, value in SIZES.items() if name != "initializer_range"},
            hidden_size=24,
            ffn_dim=40,
            num_hidden_layers=2,
            num_attention_heads=3,
            word_embed_proj_dim=16,
            max_position_embeddings=64,
        )
    ),
    # Blocks with windows of attention and without, so that their masks differ.
    "gemma": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**SIZES, **LLAMA, head_dim=8, sliding_window=4, layer_types=LAYERS)
    ),
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SIZES, **{**LLAMA, "num_hidden_layers": 2}, num_local_experts=3)
    ),
}
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
WAYS = {
    "interpolative": {"method": "interpolative", "budget": 0.6},
    "auto": {"method": "auto", "budget": "5 bits"},
    "speed": {"method": "auto", "budget": "6 bits", "speed": 0.8},
    "svd_llm": {"method": "svd_llm", "budget": 0.6},
    "gptq": {"method": "gptq", "budget": "5 bits"},
    "svd": {"method": "svd", "budget": 0.6},
}


def data(count=9, length=20):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, VOCABULARY, (2, length), generator=generator) for _ in range(count)]


def network(name="llama"):
    torch.manual_seed(0)
    return FAMILIES[name]().eval()


def pair(model, budget, batches, **arguments):
    """Reports and models of a compression of the whole model and of one in a stream."""
    streamed = copy.deepcopy(model)
    whole = mpo.compress(model, budget, calibration=batches, **arguments)
    return whole, model, mpo.compress(streamed, budget, calibration=batches, stream=True, **arguments), streamed


def require_same(whole, model, report, streamed):
    assert [(one.name, one.form, one.output_error) for one in report.layers] == [
        (one.name, one.form, one.output_error) for one in whole.layers
    ]
    assert report.loss == whole.loss
    assert report.frontier == whole.frontier
    for (name, one), other in zip(streamed.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("name", FAMILIES)
def test_choices_and_layers_are_those_of_the_whole_model(name):
    require_same(*pair(network(name), 0.6, data(), method="interpolative"))


@pytest.mark.parametrize("way", [way for way in WAYS if way != "interpolative"])
def test_every_method_chooses_the_same(way):
    arguments = dict(WAYS[way])
    require_same(*pair(network(), arguments.pop("budget"), data(), **arguments))


def test_a_loss_of_the_user_weights_the_outputs():
    require_same(*pair(network(), 0.6, data(5), loss=lambda output: output.logits.square().sum()))


def test_masks_count_in_every_block():
    batches = []
    for number, ids in enumerate(data(10)):
        mask = torch.ones_like(ids)
        mask[0, number:] = 0
        batches.append({"input_ids": ids, "attention_mask": mask if number != 3 else torch.zeros_like(mask)})
    require_same(*pair(network(), 0.6, batches, method="interpolative"))


def test_blocks_without_layers_and_layers_outside_of_blocks():
    require_same(*pair(network(), 0.7, data(), ignore=[r"re:.*layers\.1\..*"]))
    require_same(*pair(network("opt"), 0.7, data(), targets=[r"re:.*project_(in|out)", r"re:.*layers\.0\..*"]))


def test_a_preview_changes_nothing():
    model = network()
    before = copy.deepcopy(model.state_dict())
    report = mpo.compress(model, 0.6, calibration=data(), stream=True, dry_run=True)
    assert report.bytes_after < report.bytes_before
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "level"), [("states", 0), ("states", 2), ("gradients", 3), ("gradients", 1), ("gradients", 0)]
)
def test_an_interrupted_run_goes_on_at_the_block_that_it_was_at(monkeypatch, tmp_path, kind, level):
    expected = mpo.compress(network(), 0.6, calibration=data())
    write, written = HiddenFiles.write, []

    def cut(self, now, at, number, tensor):
        write(self, now, at, number, tensor)
        if (now, at, number) == (kind, level, 5):
            raise KeyboardInterrupt

    def noted(self, now, at, number, tensor):
        written.append((now, at))
        write(self, now, at, number, tensor)

    model = network()
    with monkeypatch.context() as patch:
        patch.setattr(HiddenFiles, "write", cut)
        with pytest.raises(KeyboardInterrupt):
            mpo.compress(model, 0.6, calibration=data(), stream=True, checkpoint=tmp_path)
    monkeypatch.setattr(HiddenFiles, "write", noted)
    report = mpo.compress(model, 0.6, calibration=data(), stream=True, checkpoint=tmp_path)
    assert [one.form for one in report.layers] == [one.form for one in expected.layers]
    order = [("states", at) for at in range(4)] + [("gradients", at) for at in (3, 2, 1, 0)]
    assert set(written) == set(order[order.index((kind, level)) :])
    left = [place.name for place in (tmp_path / "hidden").iterdir() if place.is_dir()]
    assert not left, "hidden states are removed once they are used"


def test_a_run_interrupted_while_layers_are_built_reads_no_data(monkeypatch, tmp_path):
    from mpochain.compression.state import CompressionState

    keep, kept = CompressionState.keep_layer, []

    def cut(self, name, layer, record):
        keep(self, name, layer, record)
        kept.append(name)
        if len(kept) == 4:
            raise KeyboardInterrupt

    model = network()
    with monkeypatch.context() as patch:
        patch.setattr(CompressionState, "keep_layer", cut)
        with pytest.raises(KeyboardInterrupt):
            mpo.compress(model, 0.6, calibration=data(), stream=True, checkpoint=tmp_path)
    monkeypatch.setattr(gathering, "gather_moments", lambda *_, **__: pytest.fail("the moments were kept"))
    mpo.compress(model, 0.6, calibration=data(), stream=True, checkpoint=tmp_path)
    expected = network()
    mpo.compress(expected, 0.6, calibration=data())
    assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))


@pytest.mark.parametrize("times", [1, 2])
def test_damaged_states_are_computed_again_once(monkeypatch, tmp_path, caplog, times):
    write, left = HiddenFiles.write, [times]

    def damaging(self, kind, level, number, tensor):
        write(self, kind, level, number, tensor)
        if (kind, level, number) == ("states", 2, 9) and left[0]:
            left[0] -= 1
            file = next((tmp_path / "hidden" / "states-2").iterdir())
            file.write_bytes(file.read_bytes()[:-4] + b"more")

    monkeypatch.setattr(HiddenFiles, "write", damaging)
    model = network()
    words = "in front of block 2 in .* are missing or damaged; remove the folder"
    if times == 2:
        with pytest.raises(CheckpointError, match=words):
            mpo.compress(model, 0.6, calibration=data(), stream=True, checkpoint=tmp_path)
        return
    mpo.compress(model, 0.6, calibration=data(), stream=True, checkpoint=tmp_path)
    assert "the blocks run again from the first one" in caplog.text
    expected = network()
    mpo.compress(expected, 0.6, calibration=data())
    assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))


def test_damaged_moments_are_collected_again(monkeypatch, tmp_path):
    from mpochain.compression.state import CompressionState

    def cut(self, choices):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CompressionState, "keep_choices", cut)
        with pytest.raises(KeyboardInterrupt):
            mpo.compress(network(), 0.6, calibration=data(), stream=True, checkpoint=tmp_path)
    file = sorted((tmp_path / "moments").glob("*.safetensors"))[3]
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    model, expected = network(), network()
    mpo.compress(model, 0.6, calibration=data(), stream=True, checkpoint=tmp_path)
    mpo.compress(expected, 0.6, calibration=data())
    assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))


def test_no_descriptor_stays_open(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0
    model = network()
    mpo.compress(model, 0.6, calibration=data(3), stream=True, checkpoint=tmp_path)
    if sys.platform == "linux":
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
    copied = copy.deepcopy(model)
    torch.save(model.state_dict(), tmp_path / "saved")
    assert all(map(torch.equal, copied.state_dict().values(), torch.load(tmp_path / "saved").values()))


def test_a_full_disk_is_known_before_the_work(monkeypatch, tmp_path):
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(hidden_files.shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(gathering._Gathering, "run_forward", lambda _: pytest.fail("blocks ran"))
    model = network()
    with pytest.raises(OutputError, match=r"hidden states in front of 3 blocks.* take .* MB in .* where .* are free"):
        mpo.compress(model, 0.6, calibration=data(), stream=True, checkpoint=tmp_path)


class TwoStacks(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.second = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x):
        for layer in (*self.first, *self.second):
            x = layer(x)
        return x


class Telling(nn.Module):
    """A block that gives further tensors."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        return self.linear(x), x.sum()


class Skipping(nn.Module):
    """A small model that reads more than the states between its blocks, in one of several ways."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.embed, self.side, self.head = (nn.Linear(6, 6) for _ in range(3))
        block = With if way == "argument" or way == "conditioned" else nn.Linear
        self.blocks = nn.ModuleList(block(6, 6) for _ in range(3))
        if way == "shared":
            self.blocks[2] = nn.Sequential(self.blocks[0])

    def forward(self, x):
        first = x = self.embed(x)
        total, early, side = 0, x, self.side(first)
        for block in self.blocks:
            others = {"argument": (early,), "conditioned": (side,)}.get(self.way, ())
            x = block(x, *others)
            if self.way == "in place":
                x += 1
            early = x
            total = total + x
        x = {"sum": total, "residual": x + first}.get(self.way, x)
        return self.head(self.embed(x) if self.way == "twice" else x)


class With(nn.Module):
    """A block with a further argument."""

    def __init__(self, *sizes):
        super().__init__()
        self.linear = nn.Linear(*sizes)

    def forward(self, x, other):
        return self.linear(x) + other


class Bare(nn.Module):
    """A layer outside of any stack."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(x)


class Told(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Telling() for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x, _ = block(x)
        return x


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"refine": True}, "stream=True holds one block of the model at a time, and refine needs all of them"),
        ({"sequential": True}, "and sequential needs all"),
        ({"stages": [0.8]}, "and stages needs all"),
        ({"calibration": DataLoader(torch.ones(4, 6))}, "reads batches in one order several times, got DataLoader"),
        ({"model": TwoStacks(), "calibration": [torch.ones(2, 6)]}, "layers are in first and second"),
        ({"model": Told(), "calibration": [torch.ones(2, 6)]}, "but Telling gives more"),
        *(
            ({"model": Skipping(way), "calibration": [torch.randn(9, 6) for _ in range(3)]}, words)
            for way, words in {
                "argument": "those of blocks.1 do",
                "in place": "changes the hidden states in front of block 1 in place",
                "sum": "reads nothing of its blocks but the states after the last one",
                "residual": "blocks or the output read it as well",
                "conditioned": "blocks or the output read it as well",
                "twice": "embed is called in several",
                "shared": "two share one",
            }.items()
        ),
        (
            {"model": llama(output_hidden_states=True)},
            "reads nothing of its blocks but the states after the last one",
        ),
        ({"model": Bare(), "calibration": [torch.ones(2, 6)]}, "needs a model with its blocks in one"),
    ],
)
def test_what_cannot_be_streamed_is_refused(changes, words):
    arguments = {"model": network(), "calibration": data(), **changes}
    model = arguments.pop("model")
    with pytest.raises(ArgumentError, match=words):
        mpo.compress(model, 0.6, stream=True, **arguments)


def test_a_sequential_model_streams():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 12)) for _ in range(3)))
    batches = [torch.randn(30, 12, generator=torch.Generator().manual_seed(number)) for number in range(4)]
    require_same(*pair(model, 0.6, batches))


# Peak memory of a process that reads and compresses a model of 320 MB of weights in 48 blocks.
_MEASURED = """
import json, sys
from pathlib import Path
import torch, transformers
import mpochain as mpo
from mpochain.compression.statistics import passes
from mpochain.system.file_pages import file_pages_limited

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

torch.set_num_threads(1)
small = transformers.LlamaForCausalLM(transformers.LlamaConfig(
    vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2))
data = [torch.randint(32, (1, 32), generator=torch.Generator().manual_seed(number)) for number in range(3)]
options = dict(calibration=data, method="interpolative", targets=["re:.*[kv]_proj"], stream=True)
mpo.compress(small, 0.5, **options, checkpoint=sys.argv[2] + "-small")  # what has to be imported is
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
with file_pages_limited(64 << 20, lambda: [Path(sys.argv[1]), Path(sys.argv[3]).parent]):
    model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
    mpo.compress(model, 0.5, **options, checkpoint=sys.argv[2])
    mpo.save(model, sys.argv[3], largest_file=32 << 20)
print(json.dumps(status("VmHWM") - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory of Linux")
def test_a_stream_takes_a_fraction_of_the_models_memory(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=384,
        intermediate_size=1152,
        num_hidden_layers=48,
        num_attention_heads=6,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config)
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert size > 300e6
    model.save_pretrained(tmp_path / "dense", max_shard_size="50MB")
    del model
    command = [sys.executable, "-c", _MEASURED, *(str(tmp_path / name) for name in ("dense", "state", "small"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    peak = json.loads(done.stdout.splitlines()[-1])
    assert peak < 0.6 * size, f"{peak / 1e6:.0f} MB for a model of {size / 1e6:.0f} MB"


def test_ways_that_agree_stream():
    torch.manual_seed(0)
    batches = [torch.randn(30, 6, generator=torch.Generator().manual_seed(number)) for number in range(4)]
    require_same(*pair(Skipping("none"), 0.9, batches))
    require_same(*pair(network().double(), 0.6, data()))
    require_same(*pair(network().bfloat16(), 0.6, data()))


def test_rows_that_are_nan_and_do_not_count_are_left_out():
    torch.manual_seed(0)

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.value, self.out = nn.Linear(16, 24), nn.Linear(24, 16)

        def forward(self, x, key_padding_mask):
            scores = (x @ x.mT).masked_fill(key_padding_mask[:, None], -torch.inf).softmax(-1)
            return x + self.out(scores @ self.value(x).relu())

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.head = nn.ModuleList(Attending() for _ in range(3)), nn.Linear(16, 5)

        def forward(self, x, key_padding_mask):
            for block in self.blocks:
                x = block(x, key_padding_mask)
            return self.head(x)

    batches = []
    for number in range(4):
        mask = torch.zeros(2, 10, dtype=torch.bool)
        mask[0, 6:] = True
        mask[1] = number == 2  # attention gives NaN where nothing is left
        x = torch.randn(2, 10, 16, generator=torch.Generator().manual_seed(number))
        batches.append({"x": x, "key_padding_mask": mask})
    require_same(*pair(Model().eval(), 0.8, batches))
