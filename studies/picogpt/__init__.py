"""PicoGPT, the character transformer of arXiv 2603.28534, dense or with chains: model, corpus, demo and study."""

from studies.picogpt.corpus import Corpus, load_corpus
from studies.picogpt.decomposition import calibrate_linears, compress_linears, decompose_linears
from studies.picogpt.design import Design
from studies.picogpt.evaluation import Evaluation, evaluate
from studies.picogpt.model import PicoGPT, build, narrow_width
from studies.picogpt.training import Lessons, train_picogpt
from studies.picogpt.weights import load_weights, save_weights, shipped

__all__ = [
    "Corpus",
    "Design",
    "Evaluation",
    "Lessons",
    "PicoGPT",
    "build",
    "calibrate_linears",
    "compress_linears",
    "decompose_linears",
    "evaluate",
    "load_corpus",
    "load_weights",
    "narrow_width",
    "save_weights",
    "shipped",
    "train_picogpt",
]
