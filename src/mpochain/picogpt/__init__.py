"""PicoGPT: the character transformer of arXiv 2603.28534, dense and as chains, its corpus and its evaluation."""

from mpochain.picogpt.calibration import calibrate_linears
from mpochain.picogpt.corpus import Corpus, load_corpus
from mpochain.picogpt.decomposition import decompose_linears
from mpochain.picogpt.design import Design
from mpochain.picogpt.evaluation import Evaluation, evaluate
from mpochain.picogpt.model import PicoGPT, build, narrow_width
from mpochain.picogpt.training import Lessons, train_picogpt
from mpochain.picogpt.weights import load_weights, save_weights, shipped

__all__ = [
    "Corpus",
    "Design",
    "Evaluation",
    "Lessons",
    "PicoGPT",
    "build",
    "calibrate_linears",
    "decompose_linears",
    "evaluate",
    "load_corpus",
    "load_weights",
    "narrow_width",
    "save_weights",
    "shipped",
    "train_picogpt",
]
