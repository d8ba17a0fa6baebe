"""What each of two processes does to compress one model together; see test_compressing.py."""

from __future__ import annotations

import os
import signal

import torch
import transformers

import mpochain as mpo
from mpochain.compression import state
from mpochain.compression.statistics.collection import collect
from mpochain.compression.statistics.division import UNDIVIDED, Division
from mpochain.compression.streaming import hidden_files
from mpochain.distributed import team_of_group
from mpochain.errors import MPOError

VOCABULARY = 60

# Method, budget and further arguments of each compression.
WAYS = {
    "interpolative": {"method": "interpolative", "budget": 0.7},
    "svd_llm": {"method": "svd_llm", "budget": 0.7},
    "svd": {"method": "svd", "budget": 0.7},
    "auto": {"method": "auto", "budget": "5 bits"},
    "gptq": {"method": "gptq", "budget": "5 bits"},
    "stages": {"method": "interpolative", "budget": 0.6, "stages": [0.8]},
    "refined": {"method": "interpolative", "budget": 0.6, "refine": {"epochs": 1}},
    "error": {"method": "interpolative", "budget": "20% error"},
    "experts": {"method": "interpolative", "budget": 0.7, "ignore": ["re:.*self_attn.*"]},
    "preview": {"method": "interpolative", "budget": 0.7, "dry_run": True},
    "streamed": {"method": "interpolative", "budget": 0.7, "stream": True},
    "streamed bits": {"method": "auto", "budget": "5 bits", "stream": True},
}


SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}


def network(dtype=torch.float32):
    """A random language model of two blocks."""
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval().to(dtype)


def mixture():
    """A random mixture of experts, of which not every batch reaches every one."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SIZES, num_local_experts=6, num_experts_per_tok=1)
    model = transformers.MixtralForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 3:
                parameter.normal_(0, 0.3)
    return model


def data(count=9):
    """Batches of different lengths, an uneven number of them."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (2, 20 + 4 * number), generator=generator) for number in range(count)]


def compressed(way, **changes):
    """A model compressed in one of the ways, with its report and its logits."""
    model = mixture() if way == "experts" else network()
    arguments = {**WAYS[way], **changes}
    if isinstance(arguments.get("refine"), dict):
        arguments["refine"] = mpo.compression.Refinement(**arguments["refine"])
    budget = arguments.pop("budget")
    report = mpo.compress(model, budget, calibration=data(), held_out=data(2), share=True, **arguments)
    with torch.no_grad():
        logits = model(data(1)[0]).logits
    return {
        "logits": logits,
        "layers": [(layer.name, layer.form, layer.bytes_after) for layer in report.layers],
        "errors": [layer.output_error or 0.0 for layer in report.layers],
        "report": (report.method, report.loss, report.held_out, len(report.refined)),
        "tensors": dict(model.state_dict().items()),
    }


def each_way(rank, folder):
    """Stages and one stream with a checkpoint: each stage has a folder of its own, and a stream may have none."""
    kept = ("stages", "streamed")
    return {way: compressed(way, **({"checkpoint": folder / way} if way in kept else {})) for way in WAYS}


class Beside(torch.nn.Module):
    """Two layers that read the same inputs, of which the loss uses the second alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.aside, self.used = (torch.nn.Linear(6, size) for size in (6, 12, 12))

    def forward(self, x):
        hidden = self.first(x).relu()
        return self.used(hidden) + self.aside(hidden).detach()


def beside(rank, folder):
    """Moments of the inputs of a layer whose inputs another one reads first, which no gradient reaches."""
    model = Beside()
    layers = dict(model.named_children())
    data = [torch.randn(5, 6, generator=torch.Generator().manual_seed(number)) for number in range(4)]
    found = []
    for division in (Division(team_of_group(), dict.fromkeys(layers, 0)), UNDIVIDED):
        collected = collect(model, layers, data, loss=lambda y: y.square().sum(), inputs=set(layers), division=division)
        assert list(collected.unreached) == ["aside"]
        found.append(collected.moments["used"].inputs if "used" in collected.moments else None)
    return found


def moments(rank, folder):
    """Moments of all layers, of two processes and of this one alone, in the process that owns them."""
    model = network(torch.float64)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    loss = mpo.compression.statistics.default_loss.DefaultLoss(model, 0)
    team = team_of_group()
    division = Division(team, {name: number % 2 for number, name in enumerate(layers)})
    together = collect(model, layers, data(), loss=loss, inputs=set(layers), outputs=set(layers), division=division)
    loss.restart()
    alone = collect(model, layers, data(), loss=loss, inputs=set(layers), outputs=set(layers), division=UNDIVIDED)
    assert list(together.moments) == [name for name in layers if division.owns(name)]
    return {
        name: [[moments.rows, moments.input_power, *moments.tensors()] for moments in (own, alone.moments[name])]
        for name, own in together.moments.items()
    }


def refusals(rank, folder):
    """The errors of calls that differ, or cannot be shared."""
    found = {}

    def refused(name, **changes):
        arguments = {"calibration": data(), "method": "interpolative", "seed": 0, "budget": 0.7} | changes
        model, budget = arguments.pop("model", None) or network(), arguments.pop("budget")
        before = {key: value.clone() for key, value in model.state_dict().items()}
        try:
            mpo.compress(model, budget, share=True, **arguments)
        except MPOError as error:
            found[name] = f"{type(error).__name__}: {error}"
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), name

    other = network()
    if rank:
        other.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    refused("weights", model=other)
    refused("data", calibration=data(9 - rank))
    refused("budget", budget=0.8 if rank else 0.7)
    refused("method", method="svd_llm" if rank else "interpolative")
    refused("sequential", sequential=True)
    refused("layers", targets=["model.layers.0.mlp.up_proj"])
    refused("no data", calibration=None)
    # What goes wrong in one process alone.
    broken = data()
    broken[1] = torch.full((2, 4), VOCABULARY + 5)
    refused("one batch", calibration=broken)
    return found


def everything(rank, folder):
    """The results of all functions above, by name."""
    return {work.__name__: work(rank, folder) for work in (moments, beside, each_way, refusals)}


def interrupted(rank, folder):
    """A compression in which the second process is killed once it has built two layers."""
    kept = state.CompressionState.keep_layer
    built = []

    def keep_layer(self, name, layer, record):
        kept(self, name, layer, record)
        built.append(name)
        if rank == 1 and len(built) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    state.CompressionState.keep_layer = keep_layer
    return compressed("interpolative", checkpoint=folder / "state")


def stream_interrupted(rank, folder):
    """A streamed compression in which the second process is killed at a batch of the first block's gradients."""
    write = hidden_files.HiddenFiles.write

    def killed(self, kind, level, number, tensor):
        write(self, kind, level, number, tensor)
        if rank == 1 and (kind, level) == ("gradients", 0):
            os.kill(os.getpid(), signal.SIGKILL)

    hidden_files.HiddenFiles.write = killed
    return compressed("streamed", checkpoint=folder / "state")


def stream_resumed(rank, folder):
    """The same compression, gone on with at the block that it was at."""
    write = hidden_files.HiddenFiles.write

    def checked(self, kind, level, number, tensor):
        assert (kind, level) == ("gradients", 0), "a finished block runs again"
        write(self, kind, level, number, tensor)

    hidden_files.HiddenFiles.write = checked
    return compressed("streamed", checkpoint=folder.parent / "killed" / "state")


def resumed(rank, folder):
    """The same compression, gone on with; what was collected is not collected again."""
    from mpochain.compression.statistics import collection

    def refuse(*arguments, **named):
        raise AssertionError("the data are read again")

    collection._pass = refuse
    return compressed("interpolative", checkpoint=folder.parent / "killed" / "state")
