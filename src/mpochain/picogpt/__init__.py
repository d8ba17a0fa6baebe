"""PicoGPT: the character transformer of arXiv 2603.28534, dense and as chains, its corpus and its evaluation."""

from mpochain.picogpt.corpus import Corpus, load_corpus
from mpochain.picogpt.evaluation import Evaluation, evaluate
from mpochain.picogpt.model import PicoGPT, build, decompose_linears
from mpochain.picogpt.training import train_picogpt
from mpochain.picogpt.weights import load_weights, save_weights, shipped

__all__ = [
    "Corpus",
    "Evaluation",
    "PicoGPT",
    "build",
    "decompose_linears",
    "evaluate",
    "load_corpus",
    "load_weights",
    "save_weights",
    "shipped",
    "train_picogpt",
]
