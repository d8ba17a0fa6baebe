"""Ways to make a layer smaller, one file each: what it can become, and the layer that was chosen."""

from mpochain.compression.methods.balanced import Balanced
from mpochain.compression.methods.entangled import Entangled
from mpochain.compression.methods.interpolative import Interpolative
from mpochain.compression.methods.kronecker import Kronecker
from mpochain.compression.methods.low_rank import LowRank
from mpochain.compression.methods.method import Built, Method
from mpochain.compression.methods.search import Search
from mpochain.compression.methods.token_train import TokenTrain

__all__ = [
    "METHODS",
    "Balanced",
    "Built",
    "Entangled",
    "Interpolative",
    "Kronecker",
    "LowRank",
    "Method",
    "Search",
    "TokenTrain",
]

METHODS: dict[str, Method] = {
    "interpolative": Interpolative(),
    "search": Search(),
    "svd_llm": LowRank(weighted=True),
    "svd": LowRank(weighted=False),
    "tt_svd": Balanced(),
    "kronecker": Kronecker(permuted=False),
    "permuted_kronecker": Kronecker(permuted=True),
    "calibrated_kronecker": Kronecker(permuted=False, calibrated=True),
    "calibrated_permuted_kronecker": Kronecker(permuted=True, calibrated=True),
    "word2ket": Entangled(order=2, units="own"),
    "word2ketxs": Entangled(order=2),
    "token_train": TokenTrain(),
}
