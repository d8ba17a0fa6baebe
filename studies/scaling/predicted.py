"""What ``mpochain plan-run`` predicts of the runs of these studies, for their records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def predicted(model: str, processes: int, *options: str) -> list[dict[str, Any]]:
    """Phases of a run by processes of one thread each."""
    command = [sys.executable, "-m", "mpochain", "plan-run", model, "--processes", str(processes), "--json", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    phases: list[dict[str, Any]] = json.loads(done.stdout)["phases"]
    return phases
