"""``python -m fuzz``: many mutants, with the outcomes as JSON; an interrupted run goes on where it stopped."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections import Counter
from pathlib import Path

BLOCK = 500


def main():
    """Run the suite, and exit with status 1 if any outcome is not allowed."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="number of mutants")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant, for shards")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file with the outcomes; a run that it began goes on")
    options = parser.parse_args()
    folder, kept = _prepared()
    try:
        return _run(options, folder)
    finally:
        kept()


def _prepared():
    # Before anything reads them.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="critical", TQDM_DISABLE="1", OMP_NUM_THREADS="1")
    from fuzz.run import remove, temporary_folder

    folder = temporary_folder()
    logging.disable(logging.CRITICAL)
    return folder, lambda: remove(folder)


def _run(options, folder):
    from fuzz.outcomes import GROWTH
    from fuzz.run import ALLOWED, TARGETS, Suite, counted

    from mpochain.report import provenance
    from mpochain.system.memory import peak_resident

    result = {"seed": options.seed, "first": options.first, "count": 0, "seconds": 0.0, "outcomes": {}, "faults": []}
    if options.out is not None and options.out.exists():
        stored = json.loads(options.out.read_text(encoding="utf-8"))
        if (stored["seed"], stored["first"]) == (options.seed, options.first):
            result = stored
    suite = Suite(folder)
    resident = peak_resident() or 0
    counts = {name: Counter(result["outcomes"].get(name, {})) for name in TARGETS}

    def report(number, name, outcome, details):
        print(f"mutant {number}, {name}: {outcome}\n{details}", file=sys.stderr, flush=True)
        result["faults"].append([number, name, outcome])

    while result["count"] < options.count:
        began = time.process_time()
        start = options.first + result["count"]
        numbers = range(start, min(start + BLOCK, options.first + options.count))
        for name, outcomes in counted(suite, options.seed, numbers, report).items():
            counts[name] += outcomes
        result["count"] += len(numbers)
        result["seconds"] = round(result["seconds"] + time.process_time() - began, 1)
        result["outcomes"] = {name: dict(sorted(outcomes.items())) for name, outcomes in counts.items()}
        result["provenance"] = provenance(threads=1, commit=True)
        print(
            f"{result['count']:,} of {options.count:,} mutants, {result['seconds']:,.0f} s", file=sys.stderr, flush=True
        )
        if options.out is not None:
            partial = options.out.with_suffix(".partial")
            partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            partial.replace(options.out)
    for name, outcomes in counts.items():
        print(f"{name}: {', '.join(f'{count:,} {outcome}' for outcome, count in sorted(outcomes.items()))}")
    grown = ((peak_resident() or 0) - resident) >> 20
    if grown > GROWTH:
        print(f"memory grew by {grown:,} MiB, more than {GROWTH:,}", file=sys.stderr)
    return grown > GROWTH or any(outcome not in ALLOWED for outcomes in counts.values() for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
