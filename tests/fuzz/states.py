"""Mutants of the plan store and of training states."""

from __future__ import annotations

import json
import math
import os
from unittest.mock import patch

import torch
from fuzz.mutations import mutated_bytes, mutated_json, mutated_safetensors, mutated_tensors, written_tensors
from fuzz.outcomes import WrongContentError
from safetensors.torch import load
from torch import nn

from mpochain import ChainSpec, plan
from mpochain.execution.kernels import KERNELS
from mpochain.execution.plan_records import _recalled
from mpochain.planning import Machine, Setting
from mpochain.planning.store import Store
from mpochain.train.config import TrainConfig
from mpochain.train.loop import train
from mpochain.train.stored import checksum

_HERE = Setting("float32", threads=2)


class PlanStore:
    """The file of measurements; what is invalid there is measured again, so it is read as empty."""

    def __init__(self, folder):
        self.cache = {"XDG_CACHE_HOME": str(folder)}
        with patch.dict(os.environ, self.cache):
            self._write_valid()

    def _write_valid(self):
        store = Store()
        store.add_machine(_HERE, Machine(gemm_rate=1e9, measured=True))
        self.kernels = tuple(KERNELS.values())
        self.predicted = plan(ChainSpec((4, 4), (4, 4), 2), 8, setting=_HERE, kernels=self.kernels)
        timed = [{**entry.variant.as_dict(), "seconds": 1e-6} for entry in self.predicted.considered[:2]]
        store.add_decision("key", {"dense": 1e-5, "timed": timed})
        self.file, self.content = store.path, json.loads(store.path.read_text())
        self.stored = self._stored()

    def mutant(self, random):
        """Write a mutant, or a valid file without a generator; return reader, names of files and of fields."""
        if random is None:
            data = json.dumps(self.content).encode()
        elif random.random() < 0.8:
            content, _ = mutated_json(random, self.content)
            data = json.dumps(content).encode("utf-8", "surrogatepass")
        else:
            data = mutated_bytes(random, json.dumps(self.content).encode())
        self.file.write_bytes(data)
        return self._read_here, (self.file,), [""]

    def _read_here(self):
        with patch.dict(os.environ, self.cache):
            return self._read()

    def _stored(self):
        store = Store()
        return store.machine(_HERE), _recalled(self.predicted, store.decision("key"), self.kernels)

    def _read(self):
        machine, recalled = self._stored()
        for name, value in machine.as_dict().items():
            if isinstance(value, float | int) and not (math.isfinite(value) and value >= 0):
                raise WrongContentError(f"the constant {name} is {value}")
        if recalled is not None:
            known = {entry.variant.candidate for entry in self.predicted.considered}
            times = [entry.measured for entry in recalled.considered if entry.measured is not None]
            if not {entry.variant.candidate for entry in recalled.considered} <= known or not all(
                math.isfinite(time) and time > 0 for time in times
            ):
                raise WrongContentError(f"the plan {recalled} is not possible")
        Store().add_decision("another", {})  # the file can be written again
        return "same" if (machine, _times(recalled)) == (self.stored[0], _times(self.stored[1])) else "ignored"


def _times(recalled):
    return None if recalled is None else [(entry.variant, entry.measured) for entry in recalled.considered]


class _SteppedError(Exception):
    """The run goes on: its record is that of fewer steps."""


class TrainingStates:
    """The state of a finished run; reading it must give the run's result, weights and generator."""

    def __init__(self, folder):
        self.file = folder / "run.state"
        self.config = TrainConfig(steps=2, learning_rate=0.1, warmup_steps=1, seed=3)
        self.model = self._model()
        train(self.model, self._sample, self._loss, self.config, checkpoint=self.file)
        self.data = self.file.read_bytes()
        size = int.from_bytes(self.data[:8], "little")
        self.metadata = json.loads(self.data[8 : 8 + size])["__metadata__"]
        self.tensors = load(self.data)

    def _model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))

    def _sample(self, generator, step):
        return torch.randn(4, 3, generator=generator), torch.zeros(4, 2)

    def _loss(self, model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    def mutant(self, random):
        """Write a mutant, or a valid file without a generator; return reader, names of files and of fields."""
        kind = random.randrange(6) if random is not None else None
        names = ["generator", "record", *self.tensors, *self.metadata]
        tensors, metadata = self.tensors, dict(self.metadata)
        if kind in (0, 1):
            record, more = mutated_json(random, json.loads(metadata["record"]))
            metadata["record"] = json.dumps(record)
            names += more
        elif kind == 2:
            tensors, more = mutated_tensors(random, tensors)
            names += more
        elif kind == 3:
            name = random.choice(sorted(metadata))
            metadata[name] = random.choice(("", "x", "\x1b[31m", metadata[name] * 2, "[]", "null"))
        if kind in (0, 1, 2):
            metadata["sha256"] = checksum(tensors, metadata["record"])
        data = written_tensors(tensors, metadata)
        if kind == 4:
            data = mutated_safetensors(random, self.data)
        elif kind == 5:
            data = mutated_bytes(random, self.data)
        self.file.write_bytes(data)
        return self._read, (self.file,), names

    def _read(self):
        model, drawn = self._model(), []

        def sample(generator, step):
            drawn.append((generator, step))
            raise _SteppedError

        try:
            result = train(model, sample, self._loss, self.config, checkpoint=self.file)
        except _SteppedError:
            (_, step) = drawn[0]
            if not 0 <= step < self.config.steps:
                raise WrongContentError(f"the run goes on with step {step}") from None
        else:
            if result.steps != self.config.steps or len(result.losses) != result.steps:
                raise WrongContentError(f"the result has {result.steps} steps and {len(result.losses)} losses")
        stored = load(self.file.read_bytes())
        for name, value in model.state_dict().items():
            if not torch.equal(value.view(torch.uint8), stored[f"model.{name}"].view(torch.uint8)):
                raise WrongContentError(f"{name} is not what the file holds")
        return "same"
