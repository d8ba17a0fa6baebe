"""Writes one checkpoint of each kind with the code of version 1; run once, by the commit that introduced these files."""
import json, sys
from pathlib import Path
import torch
from torch import nn
from safetensors.torch import save_file
import mpochain as mpo
from mpochain import *
from mpochain.nn import RowLinear, tied_head
from mpochain.decomposition import split_off
from mpochain.train import FinetuneConfig, finetune

root = Path(sys.argv[1]); root.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)

def orders(n): return torch.randperm(n)

units = torch.tensor([[0, 1], [0, 2], [3, 1], [2, 2], [1, 3], [3, 3], [0, 0], [1, 1], [2, 0]])
layers = {
    "chains": MPOLinear(12, 8, max_bond=3),
    "chains-terms-padded": MPOLinear(7, 11, terms=[ChainSpec((3, 4), (2, 4), 2, out_features=11, in_features=7), shapes.low_rank(11, 7, 2)], bias=False),
    "interpolative": InterpolativeLinear(12, 8, 3),
    "sum": SumLinear([InterpolativeLinear(12, 8, 2, bias=False), MPOLinear(12, 8, max_bond=2)]),
    "permuted": PermutedLinear(MPOLinear(12, 8, max_bond=2, bias=False), rows=orders(8), columns=orders(12), bias=torch.randn(8)),
    "permuted-rows": PermutedLinear(MPOLinear(12, 8, max_bond=2, bias=False), rows=orders(8)),
    "embedding": MPOEmbedding(9, 8, max_bond=2, padding_idx=1),
    "embedding-permuted": MPOEmbedding.of(PermutedLinear(MPOLinear(8, 9, max_bond=2, bias=False), rows=orders(9), columns=orders(8))),
    "entangled-digits": EntangledEmbedding(9, 8, order=2, ranks=2),
    "entangled-own": EntangledEmbedding(9, 8, order=3, units="own", ranks=2, padding_idx=0),
    "entangled-index": EntangledEmbedding(9, 8, units=units, ranks=2, coefficients=True, norm=True),
    "token_train": TokenTrainEmbedding(9, 8, max_bond=2),
    "rows": RowLinear(EntangledEmbedding(9, 8, order=2, ranks=2)),
}
dense = {}
for kind, layer in layers.items():
    folder = root / kind
    model = nn.Sequential(layer)
    for p in model.parameters():
        with torch.no_grad(): p.copy_(torch.randn_like(p) * .5)
    embedding = hasattr(layer, "num_embeddings")
    x = torch.tensor([[0, 3, 3], [8, 1, 5]]) if embedding else torch.randn(4, layer.in_features)
    with torch.no_grad(): y = model(x)
    mpo.save(model, folder)
    save_file({"x": x, "y": y.contiguous(), "weight": layer.weight.detach().contiguous()}, folder / "expected.safetensors")
    dense[kind] = {"embedding": embedding, "out": layer.out_features, "in": layer.in_features, "bias": layer.bias is not None}

class Tied(nn.Module):
    def __init__(self, embedding, head):
        super().__init__(); self.embedding, self.head = embedding, head
    def forward(self, ids): return self.head(self.embedding(ids))
for kind, e in {"tied-chains": MPOEmbedding(9, 8, max_bond=2), "tied-rows": EntangledEmbedding(9, 8, units=units, ranks=2)}.items():
    model = Tied(e, tied_head(e))
    x = torch.tensor([[0, 3, 3], [8, 1, 5]])
    with torch.no_grad(): y = model(x)
    mpo.save(model, root / kind)
    save_file({"x": x, "y": y, "weight": e.weight.detach().contiguous()}, root / kind / "expected.safetensors")

import transformers
config = transformers.LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=True)
llama = transformers.LlamaForCausalLM(config).eval()
batches = [torch.randint(32, (2, 16)) for _ in range(2)]
mpo.compress(llama, 0.7, calibration=batches)
x = batches[0]
with torch.no_grad(): y = llama(x).logits
mpo.save(llama, root / "llama")
save_file({"x": x, "y": y.contiguous()}, root / "llama" / "expected.safetensors")

# A training state, half way: the parameters afterwards are those of the run that was not interrupted.
def student():
    torch.manual_seed(1)
    return nn.Sequential(nn.Embedding(11, 8), MPOLinear(8, 11, max_bond=2))
windows = torch.arange(44).view(4, 11) % 11
config = FinetuneConfig(steps=4, batch_size=2, learning_rate=0.1, warmup_steps=1, checkpoint_every=2)
whole = student(); finetune(whole, windows, config=config)
class Stop(Exception): pass
part = student()
calls = 0
def evaluate():
    global calls
    calls += 1
    if calls == 2: raise Stop
    return {}
state = root / "training" ; state.mkdir()
import mpochain.train.loop as loop
kept = loop.save_state
count = 0
def save_once(*a, **k):
    global count
    count += 1
    kept(*a, **k)
    if count == 1: raise Stop
loop.save_state = save_once
try: finetune(part, windows, config=config, checkpoint=state / "finetune.state")
except Stop: pass
save_file({f"after.{k}": v for k, v in whole.state_dict().items()}, state / "expected.safetensors")
(root / "layers.json").write_text(json.dumps(dense, indent=1) + "\n")
