"""The page of the results, as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from architectures.classes import KINDS
from architectures.run import read_results

__all__ = ["write_page"]

PAGE = Path(__file__).parents[2] / "docs" / "results" / "architectures.md"

_PREFACE = """# Architectures of transformers

Generated from `docs/results/architectures.json` by `make architectures`; not edited by hand.

Every class of transformers in the tables below is built offline with random weights and few, narrow layers; then it is
compressed by {methods} to {budget:.0%} of its linear parameters ({large:.0%} where the inputs reach so few layers that
less cannot be), saved, loaded, turned into dense layers, written by `save_pretrained` and read again by
`from_pretrained`. The outputs must be equal after each step: to {loaded:g} after
loading, to {dense:g} in dense form, where products round in another order (both relative to the largest output). There
is an outcome for each method: *equal*; *refused*, with an error of this library that says why; or *fault*.

mpochain {version} (commit {commits}), torch {torch}, transformers {transformers}, seed {seed}.
"""


def write_page() -> None:
    """Write the page from the committed results."""
    from architectures.checking import DENSE, LOADED

    results = read_results()
    setting, outcomes = results["setting"], results["classes"]
    built = {name: outcome for name, outcome in outcomes.items() if "methods" in outcome}
    lines = [
        _PREFACE.format(
            methods=_listed(f"`{method}`" for method in setting["methods"]),
            budget=setting["budgets"][0],
            large=setting["budgets"][1],
            loaded=LOADED,
            dense=DENSE,
            version=setting["mpochain"],
            commits=_commits(outcomes),
            torch=setting["versions"]["torch"],
            transformers=setting["versions"]["transformers"],
            seed=setting["seed"],
        ),
        "## Outcomes",
        "",
        "| kind | classes | built | method | equal | refused | fault |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for kind in KINDS:
        names = [name for name in outcomes if outcomes[name]["kind"] == kind]
        if names:
            lines += _rows(kind, names, built, setting["methods"])
    lines += _rows("all", list(outcomes), built, setting["methods"])
    for outcome, title, text in (
        ("fault", "Faults", "Outcomes that are neither equal nor refused."),
        ("refused", "Refusals", "What the library refuses, with its reason."),
    ):
        lines += ["", f"## {title}", ""]
        table = _messages(built, outcome)
        lines += [text, "", "| classes | methods | at | reason |", "|---|---|---|---|", *table] if table else ["None."]
    lines += [
        "",
        "## Not built",
        "",
        "transformers cannot build or run these offline in the sizes of the suite; most need a package that is not",
        "installed, or sizes that depend on one another.",
        "",
        "| class | error |",
        "|---|---|",
    ]
    lines += [
        f"| `{name}` | {_cell(outcome['not_built'])} |" for name, outcome in outcomes.items() if "not_built" in outcome
    ]
    lines += ["", "## Equal under every method", ""]
    for kind in KINDS:
        equal = [
            name
            for name, outcome in built.items()
            if outcome["kind"] == kind and all(r["outcome"] == "equal" for r in outcome["methods"].values())
        ]
        if equal:
            lines += [f"**{kind}** ({len(equal)}): " + ", ".join(f"`{name}`" for name in equal) + ".", ""]
    PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _commits(outcomes: dict[str, Any]) -> str:
    """The commit of all outcomes, or the number of classes of each commit."""
    counts = Counter(str(outcome["commit"])[:12] for outcome in outcomes.values())
    if len(counts) == 1:
        return f"`{next(iter(counts))}`"
    return _listed(f"`{commit}` for {count} classes" for commit, count in counts.items())


def _rows(kind: str, names: list[str], built: dict[str, Any], methods: list[str]) -> list[str]:
    present = [name for name in names if name in built]
    rows = []
    for k, method in enumerate(methods):
        count = Counter(built[name]["methods"][method]["outcome"] for name in present)
        head = f"{kind} | {len(names)} | {len(present)}" if not k else " | | "
        rows.append(f"| {head} | `{method}` | {count['equal']} | {count['refused']} | {count['fault']} |")
    return rows


def _messages(built: dict[str, Any], outcome: str) -> list[str]:
    """Rows of equal messages, with the classes and methods that they came from."""
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for name, classes in built.items():
        for method, result in classes["methods"].items():
            if result["outcome"] == outcome:
                groups.setdefault((result["step"], result["message"]), {}).setdefault(name, []).append(method)
    rows = []
    for (step, message), names in groups.items():
        methods = sorted({method for listed in names.values() for method in listed})
        refused = _listed(f"`{name}`" for name in names)
        rows.append(f"| {refused} | {', '.join(methods)} | {step} | {_cell(message)} |")
    return rows


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")
