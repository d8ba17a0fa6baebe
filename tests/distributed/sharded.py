"""What two processes compute with sharded models, and one process with the same models in one piece."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from layers import NAMES, first_trained, inputs_of, layer_named
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

import mpochain as mpo
from mpochain.errors import OutputError
from mpochain.surgery import tied_head
from mpochain.train import FinetuneConfig

TOKENS, LENGTH, STEPS = 8, 6, 4
CONFIG = FinetuneConfig(
    steps=STEPS, batch_size=8, learning_rate=1e-2, warmup_steps=1, clip_norm=0.3, core_rates=True, checkpoint_every=1
)
# FSDP2 shards parameters of one type; scales of codes are float16.
FORMS = tuple(name for name in NAMES if len({value.dtype for value in layer_named(name).parameters()}) == 1)
TIED = ("embedding", "entangled index", "trains of rows")


class Network(nn.Module):
    """A language model around one compressed layer: its embedding, with a tied head, or a layer inside."""

    def __init__(self, form, *, tied=False):
        super().__init__()
        layer = layer_named(form)
        torch.manual_seed(1)
        features, hidden = layer.in_features, layer.out_features
        if hasattr(layer, "num_embeddings"):
            features = hidden = layer.embedding_dim
            self.embedding, self.layer = layer, nn.Linear(features, features)
        else:
            self.embedding, self.layer = nn.Embedding(TOKENS, features), layer
        self.head = tied_head(self.embedding) if tied else nn.Linear(hidden, TOKENS)
        self.double()

    def forward(self, tokens):
        return self.head(torch.tanh(self.layer(self.embedding(tokens))))


def tied_llama():
    """A small Llama of compressed layers, its head tied to its embedding."""
    torch.manual_seed(3)
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True)
    model = LlamaForCausalLM(config).eval()
    mpo.compress(model, 0.7, method="svd")
    return model


def windows():
    return torch.randint(TOKENS, (8, LENGTH), generator=torch.Generator().manual_seed(2))


def share(rank):
    """The windows of one of two processes, which take half of the batch each."""
    return windows()[rank::2], CONFIG.model_copy(update={"batch_size": CONFIG.batch_size // 2})


def sharded(model):
    """The model with shards of the layer in the middle and of the rest, as FSDP2 asks for it."""
    fully_shard(model.layer)
    return fully_shard(model)


def gathered(model):
    """The model's tensors in one piece."""
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value.clone()
        for name, value in model.state_dict().items()
    }


def networks():
    """Every form as a layer, and every embedding with a tied head."""
    return {form: Network(form) for form in FORMS} | {f"{form}, tied": Network(form, tied=True) for form in TIED}


def finetuned(rank, folder):
    """Losses and parameters after finetuning with FSDP2 and DDP, of models that were called before."""
    data, config = share(rank)
    results = {}
    for name, model in networks().items():
        for way in ("fsdp", "ddp"):
            trained = copy.deepcopy(model)
            wrapped = sharded(trained) if way == "fsdp" else DistributedDataParallel(trained)
            with torch.no_grad():
                wrapped(data[:1])
            result = mpo.finetune(wrapped, data, config=config, evaluate=lambda model=wrapped: _evaluated(model, data))
            results[name, way] = result.losses, gathered(trained)
    return results


def frozen(rank, folder):
    """Names of the parameters that finetuning of one module changed, in a model that was called before."""
    data, config = share(rank)
    model = sharded(Network("chain"))
    before = gathered(model)
    with torch.no_grad():
        model(data[:1])
    mpo.finetune(model, data, config=config.model_copy(update={"trainable": ("head",)}))
    return [name for name, value in gathered(model).items() if not torch.equal(value, before[name])]


def half(rank, folder):
    """The message for a sharded model in bfloat16."""
    data, config = share(rank)
    try:
        mpo.finetune(sharded(Network("chain").bfloat16()), data, config=config)
    except mpo.MPOError as error:
        return str(error)
    return None


@torch.no_grad()
def scaled(rank, folder):
    """Outputs of layers with cached matrices before and after their parameters grow, as an optimiser changes them."""
    results = {}
    for form in FORMS:
        for resharded in (True, False):
            layer = layer_named(form)
            mpo.set_execution(layer, cache=True)
            x = inputs_of(layer, (3,))
            layer(x)  # cached before it is sharded
            fully_shard(layer, reshard_after_forward=resharded)
            _refuse_to_cache(layer)
            results[form, resharded] = [layer(x), layer(x)]
            layer.reshard()
            first_trained(layer).mul_(4)
            results[form, resharded] += [layer(x), layer(x)]
    return results


@torch.no_grad()
def grown(rank, folder):
    """Ratios of the norms of outputs after and before parameters grow fourfold, again and again.

    The layers are so large that what FSDP gathers lies at the same address in most calls.
    """
    ratios = []
    for layer in (mpo.MPOEmbedding(1024, 256, max_bond=40), mpo.MPOLinear(256, 256, max_bond=64, bias=False)):
        layer.double().set_execution(cache=True)
        fully_shard(layer)
        x = inputs_of(layer, (3,))
        for _ in range(6):
            before = layer(x).norm()
            layer.reshard()
            first_trained(layer).mul_(4)
            ratios.append((layer(x).norm() / before).item())
    return ratios


def _refuse_to_cache(layer):
    def refuse(*_):
        raise AssertionError("something is computed to be cached")

    for module in layer.modules():
        module._to_keep = refuse
        for runner in getattr(module, "_runners", ()):
            runner._matrices.of = refuse


def saved(rank, folder):
    """Folders of sharded models; the error that all get; what is in the model afterwards."""
    for name, model in networks().items():
        model = sharded(model)
        with torch.no_grad():
            model(windows()[:1])
        mpo.save(model, folder / name)
        model(windows()).sum().backward()  # it can still be trained
    llama = tied_llama()
    for block in llama.model.layers:
        fully_shard(block)
    llama = fully_shard(llama)
    with torch.no_grad():
        llama(windows())
    mpo.save(llama, folder / "llama")
    llama.save_pretrained(folder / "pretrained")
    other = folder / "other"
    if not rank:
        other.mkdir()
        (other / "config.json").write_text("{}")
    dist.barrier()
    try:
        mpo.save(model, other)
    except OutputError as error:
        return str(error)
    return None


class StoppedError(Exception):
    """Ends a run between two steps."""


def resumed(rank, folder):
    """Results of an uninterrupted run and of one in two sessions, and the names of states that they wrote."""
    data, config = share(rank)
    config = config.model_copy(update={"evaluate_every": 1})

    def run(name, model, stop=None, batches=data):
        count = iter(range(1, 100))

        def evaluate():
            if next(count) == stop:
                raise StoppedError
            return _evaluated(model, data)

        try:
            return mpo.finetune(model, batches, config=config, checkpoint=folder / name, evaluate=evaluate)
        except StoppedError:
            return None

    results = {}
    for way, wrap in (("fsdp", sharded), ("ddp", DistributedDataParallel)):
        complete, partial, rest = (wrap(Network("chain", tied=False)) for _ in range(3))
        result = run(f"{way}-complete", complete)
        run(f"{way}-parts", partial, stop=3)
        again = run(f"{way}-parts", rest)
        results[way] = (result.losses, gathered(complete)), (again.losses, gathered(rest))
        try:  # one process alone with other data: all of them refuse
            run(f"{way}-complete", wrap(Network("chain")), batches=data if rank else data.flip(0))
        except mpo.MPOError as error:
            results[way] += (str(error),)
    return results


def everything(rank, folder):
    """The results of all functions above, by name."""
    return {work.__name__: work(rank, folder) for work in (finetuned, frozen, half, scaled, grown, saved, resumed)}


def _evaluated(model, data):
    """An evaluation, which leaves parameters gathered."""
    with torch.no_grad():
        return {"logits": model(data).sum().item()}
