"""Recipe-driven fits of a language model for every size, written beside the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpochain.compression import score
from mpochain.compression.methods.any_size import AnySize
from mpochain.errors import CheckpointError, RecipeError
from mpochain.language.source import require_no_model, save_dense
from mpochain.system.progress import Counters, uncounted
from mpochain.workflows.counted_windows import CountedWindows
from mpochain.workflows.inputs import read_inputs
from mpochain.workflows.recipe import Recipe

__all__ = ["METHOD", "Fitted", "fit_by", "fits_in"]

METHOD = f"{AnySize.__module__}:{AnySize.__name__}"
"""Method of a recipe that reads the fits."""

_FITS = "fits"

# What decides a single compression and not the fits of all sizes, with its value if it is not asked for.
_UNUSED = {
    "budget": None,
    "speed": None,
    "sequential": False,
    "refine": False,
    "stream": False,
    "stage_budgets": (),
    "evaluation": None,
    "prompts": (),
}


@dataclass(frozen=True)
class Fitted:
    """Fits of a model for every size.

    Attributes:
        folder: folder of the dense model, which holds the fits.
        layers: number of layers that were fitted.
        bytes: bytes of the fits.
    """

    folder: Path
    layers: int
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return {**asdict(self), "folder": str(self.folder)}


def fits_in(folder: Path) -> Path:
    """Folder of the fits beside a model.

    Raises:
        CheckpointError: there are none.
    """
    fits = folder / _FITS
    if not fits.is_dir():
        raise CheckpointError(
            f"{folder} holds no fits of every size; make them with mpochain compress MODEL --any-size --out {folder}"
        )
    return fits


def fit_by(recipe: Recipe, out: Path, *, overwrite: bool = False, counters: Counters = uncounted) -> Fitted:
    """Fit the layers of a recipe's model for every size, and write the fits and the dense model to a folder.

    Args:
        recipe: recipe with calibration data and without a budget.
        out: folder for the dense model, in the transformers format, and its fits.
        overwrite: whether a dense model in ``out`` is replaced.
        counters: returns the progress counter for a label.

    Raises:
        RecipeError: calibration data are missing, or the recipe asks for something that decides a single size.
        CheckpointError: the model cannot be read.
        OutputError: ``out`` holds a model or cannot be written.
        MPOError: a step fails.
    """
    asked = [name for name, unused in _UNUSED.items() if getattr(recipe, name) != unused]
    if recipe.method != "interpolative":
        asked.append("method")
    if asked:
        raise RecipeError(
            f"--any-size fits low rank for every size, which {asked[0]} does not decide; leave it out, and give it to "
            "mpochain cut where it takes it"
        )
    if recipe.calibration is None:
        raise RecipeError("the fits need calibration data; name a text typical of the model's use (--calibration)")
    if Path(recipe.model).exists() and out.exists() and out.resolve() == Path(recipe.model).resolve():
        raise RecipeError(f"{out} is the folder of the dense model; name another folder")
    require_no_model(out, overwrite=overwrite)
    inputs = read_inputs(recipe, "calibration")
    assert inputs.calibration is not None
    folder = score(
        inputs.language.model,
        out / _FITS,
        calibration=CountedWindows(inputs.calibration, counters),
        targets=recipe.targets,
        ignore=recipe.ignore,
        seed=recipe.seed,
    )
    save_dense(inputs.language, out, overwrite=overwrite)
    files = list(folder.glob("*.safetensors"))
    return Fitted(out, len(files), sum(file.stat().st_size for file in files))
