"""The run over all classes: one process each, with limits of time and memory, into one file that a run continues."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

import mpochain
from architectures.checking import BUDGETS, METHODS, SEED, build, check
from architectures.classes import classes
from architectures.inputs import batch_for
from mpochain.report import provenance
from mpochain.system.files import write_bytes

__all__ = ["RESULTS", "read_results", "run"]

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "architectures.json"

# Limits of one class: seconds of the processor, seconds of the clock, bytes of address space.
_PROCESSOR, _CLOCK, _MEMORY = 60, 300, 12 << 30


def setting() -> dict[str, Any]:
    """What the outcomes depend on."""
    return {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "mpochain": mpochain.__version__,
        "seed": SEED,
        "budgets": list(BUDGETS),
        "methods": list(METHODS),
    }


def read_results() -> dict[str, Any]:
    """Return the committed results: the setting, and the outcome of every class by its name."""
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


def run(only: Iterable[str] = (), *, keep: bool = False) -> None:
    """Check all classes that have no outcome yet, and write each outcome to the file of results.

    Args:
        only: names of classes to check, again if need be; by default all that have none.
        keep: keep the outcomes of other commits.
    """
    chosen = list(only)
    now = setting()
    results = read_results() if RESULTS.exists() else {"setting": now, "classes": {}}
    if results["setting"] != now:
        results = {"setting": now, "classes": {}}
    commit = provenance(threads=1, commit=True).get("commit")
    kinds = classes()
    done = {name for name, outcome in results["classes"].items() if keep or outcome["commit"] == commit}
    names = chosen or [name for name in kinds if name not in done]
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    check(build("LlamaForCausalLM"), "interpolative")  # imports what every child needs
    for number, name in enumerate(names, 1):
        outcome = {"kind": kinds[name], "commit": commit, **_in_a_process(name)}
        results["classes"][name] = outcome
        results["classes"] = {key: results["classes"][key] for key in kinds if key in results["classes"]}
        write_bytes(RESULTS, (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())
        print(f"{number}/{len(names)} {name}: {summary(outcome)}", file=sys.stderr, flush=True)


def summary(outcome: dict[str, Any]) -> str:
    """One line about a class."""
    if "not_built" in outcome:
        return f"not built: {outcome['not_built']}"
    parts = []
    for method, result in outcome["methods"].items():
        message = f" at {result['step']}: {result['message'][:120]}" if "message" in result else ""
        parts.append(f"{method} {result['outcome']}{message}")
    return "; ".join(parts)


def _in_a_process(name: str) -> dict[str, Any]:
    """Check one class in a child, so that neither a crash nor its memory outlives it."""
    read, write = os.pipe()
    began = time.perf_counter()
    child = os.fork()
    if not child:
        os.close(read)
        signal.alarm(_CLOCK)
        resource.setrlimit(resource.RLIMIT_CPU, (_PROCESSOR, _PROCESSOR))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.write(write, json.dumps(_outcomes(name)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        answer = stream.read()
    _, status = os.waitpid(child, 0)
    if status or not answer:
        message = f"the process ended with status {os.waitstatus_to_exitcode(status)}: time, memory or a crash"
        fault = {"outcome": "fault", "step": "process", "message": message}
        return {"methods": dict.fromkeys(METHODS, fault)}
    outcome: dict[str, Any] = json.loads(answer)
    outcome["seconds"] = round(time.perf_counter() - began, 1)
    return outcome


def _outcomes(name: str) -> dict[str, Any]:
    try:
        model = build(name)
        with torch.no_grad():
            model(**batch_for(model))
    except BaseException as error:
        reason = " ".join(str(error).split())
        return {"not_built": f"{type(error).__name__}: {reason[:200]}"}
    return {"methods": {method: check(model, method) for method in METHODS}}
