"""Lookup of a language model before anything is read: whether its folder, file or name on the hub exists."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpochain.checkpoint import is_checkpoint
from mpochain.language.pretrained import HUB_NAME
from mpochain.system.paths import exists, file_problem

__all__ = ["missing_package", "sketch", "source_problem"]

_CONFIG = "config.json"
# Seconds to wait for the hub; it is asked once.
_PATIENCE = 10.0


def source_problem(source: str | Path) -> str | None:
    """Why a source cannot be a language model; None if it exists.

    A path is looked up on the disk only. The hub is asked, once, for a name ``organisation/name`` that is no path here
    and whose first part is no folder, so that a mistyped path is an error at once.

    Args:
        source: folder, ``.gguf`` file, or name on the Hugging Face hub.

    Example:
        >>> source_problem("./smolm")
        "there is no folder or .gguf file './smolm'"
        >>> source_problem("gpt2")
        "there is no folder or .gguf file 'gpt2'; a name on the Hugging Face hub has two parts, organisation/name"
    """
    path = Path(source)
    if exists(path):
        return _path_problem(path)
    name = str(source)
    problem = f"there is no folder or .gguf file {name!r}"
    if path.suffix == ".gguf" or not HUB_NAME.fullmatch(name):
        single = HUB_NAME.fullmatch(f"a/{name}") is not None and path.suffix != ".gguf"
        advice = "; a name on the Hugging Face hub has two parts, organisation/name" if single else ""
        return f"{problem}{_nearest(path) or advice}"
    if path.parent.exists():
        reason = f"; {path.parent} is a folder here, so the Hugging Face hub is not asked"
        return f"{problem}{_nearest(path) or reason}"
    answer = _hub_problem(name)
    return None if answer is None else f"{problem}, and {answer}"


def missing_package(source: str | Path) -> str | None:
    """Say which optional package is missing to read a language model; None if all are installed."""
    needed = ["transformers"]
    if str(source).endswith(".gguf"):
        needed.append("gguf")
    elif is_checkpoint(Path(source)):
        needed.append("accelerate")
    missing = [name for name in needed if not _is_installed(name)]
    if not missing:
        return None
    return f"language models need {' and '.join(missing)}; install them with: pip install 'mpochain[hf]'"


def sketch(source: str | Path) -> nn.Module | None:
    """Architecture of a dense model's folder on the meta device, in a second; None if it cannot be told so quickly."""
    folder = Path(source)
    if not (folder / _CONFIG).is_file() or is_checkpoint(folder):
        return None
    try:
        import transformers

        classes: Any = transformers
        config = classes.AutoConfig.from_pretrained(folder.resolve(), local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model: nn.Module = classes.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:  # reading the model says what is wrong with it
        return None
    return model


def _path_problem(path: Path) -> str | None:
    if path.is_dir():
        problem = None if exists(path / _CONFIG) else f"it holds no {_CONFIG}"
    elif path.suffix != ".gguf":
        problem = "it is a file"
    else:
        problem = file_problem(path)
    expected = "expected a folder written by mpochain or transformers, or a .gguf file"
    return None if problem is None else f"{path} is no language model: {problem}; {expected}"


def _nearest(path: Path) -> str:
    """Suggest a folder or GGUF file beside a path that does not exist."""
    try:
        beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir() or entry.suffix == ".gguf"]
    except (OSError, ValueError):
        return ""
    nearest = difflib.get_close_matches(path.name, sorted(beside), n=1)
    return f"; did you mean '{path.parent / nearest[0]}'?" if nearest else ""


def _hub_problem(name: str) -> str | None:
    """Why the hub has no such model; None if it has, if it is in the hub's cache, or if the hub's client is missing."""
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
    except ImportError:
        return None
    if isinstance(hub.try_to_load_from_cache(name, _CONFIG), str):
        return None
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(name, _CONFIG), timeout=_PATIENCE)
    except GatedRepoError:
        return "its use on the Hugging Face hub has to be granted first"
    except RepositoryNotFoundError:
        return "the Hugging Face hub has no public model of this name"
    except OfflineModeIsEnabled:
        return "the Hugging Face hub is switched off (HF_HUB_OFFLINE); unset it to download the model"
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code == 404:
            return f"the model of this name on the Hugging Face hub has no {_CONFIG}"
        return f"the Hugging Face hub refused: {str(error).splitlines()[0]}"
    except Exception as error:  # of the network
        lines = str(error).splitlines() or [type(error).__name__]
        return f"the Hugging Face hub cannot be reached ({lines[0]})"
    return None


def _is_installed(name: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(name) is not None
    except ValueError:  # a placeholder in sys.modules
        return False
