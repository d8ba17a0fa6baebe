"""The training loop on a small model: learning, resuming to the bit, Ctrl-C, bad state files."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mpochain import MPOError, MPOLinear
from mpochain.system.interrupts import interrupts_between_steps
from mpochain.train import TrainConfig, train
from mpochain.train.config import learning_rate
from mpochain.train.stored import checksum, read_record

CONFIG = TrainConfig(steps=12, batch_size=4, warmup_steps=3, evaluate_every=5, checkpoint_every=2)


def model(bond=2):
    torch.manual_seed(0)
    return nn.Sequential(MPOLinear(8, 8, max_bond=bond), nn.ReLU(), nn.Linear(8, 3))


def sample(generator, step):
    x = torch.randn(4, 8, generator=generator)
    return x, x[:, :3].argmax(-1)


def loss(network, batch):
    return F.cross_entropy(network(batch[0]), batch[1])


def test_it_learns_and_keeps_its_history(capsys):
    network = model()
    config = CONFIG.model_copy(update={"steps": 300, "learning_rate": 0.02})
    result = train(network, sample, loss, config, evaluate=lambda: {"answer": 42.0})
    assert sum(result.losses[-50:]) < 0.5 * sum(result.losses[:50])
    assert [point.step for point in result.curve] == list(range(5, 301, 5))
    assert result.curve[-1].metrics == {"answer": 42.0}
    assert result.curve[1].train_loss == pytest.approx(sum(result.losses[5:10]) / 5)
    assert result.tokens == 300 * 4
    assert result.tokens_per_second > 0
    assert network.training
    assert capsys.readouterr().out == "", "progress belongs on stderr"


def test_weights_shrink_alike_whatever_their_rate():
    network = model()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    scales = {name: 1.0 + 3 * position for position, name in enumerate(before)}
    config = TrainConfig(steps=4, warmup_steps=0, learning_rate=0.01, weight_decay=0.5)
    train(network, sample, lambda network, batch: 0 * loss(network, batch), config, scales=scales)
    kept = 1.0
    for step in range(config.steps):
        kept *= 1 - 0.5 * learning_rate(config, step)
    assert kept < 0.999
    for name, value in network.named_parameters():
        torch.testing.assert_close(value.detach(), kept * before[name])


def test_resuming_goes_on_to_the_bit(tmp_path):
    uninterrupted = model()
    expected = train(uninterrupted, sample, loss, CONFIG)

    class StopError(Exception):
        pass

    seen = 0

    def failing(network, batch):
        nonlocal seen
        seen += 1
        if seen == 8:
            raise StopError
        return loss(network, batch)

    path = tmp_path / "deep" / "state.safetensors"
    first = model()
    with pytest.raises(StopError):
        train(first, sample, failing, CONFIG, checkpoint=path)
    assert read_record(path)["result"]["steps"] == 6
    second = model()
    result = train(second, sample, loss, CONFIG, checkpoint=path)
    assert result.losses == expected.losses
    assert result.curve == expected.curve
    for a, b in zip(uninterrupted.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    # A finished run is not repeated.
    third = model()
    assert train(third, sample, loss, CONFIG, checkpoint=path).losses == expected.losses
    for a, b in zip(uninterrupted.state_dict().values(), third.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def interrupting(step, times=1):
    """A loss that presses Ctrl-C while it computes a step, counted from 1."""
    steps = itertools.count(1)

    def interrupting_loss(network, batch):
        if next(steps) == step:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        return loss(network, batch)

    return interrupting_loss


class TestCtrlCOnTheCommandLine:
    def test_it_ends_between_steps_with_the_state_written(self, tmp_path):
        path = tmp_path / "state.safetensors"
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), interrupts_between_steps():
            train(model(), sample, interrupting(5), CONFIG, checkpoint=path)
        assert signal.getsignal(signal.SIGINT) is before
        assert read_record(path)["result"]["steps"] == 5
        resumed, uninterrupted = model(), model()
        train(resumed, sample, loss, CONFIG, checkpoint=path)
        train(uninterrupted, sample, loss, CONFIG)
        assert all(torch.equal(a, b) for a, b in zip(uninterrupted.parameters(), resumed.parameters(), strict=True))

    def test_in_the_last_step_it_is_not_lost(self, tmp_path):
        path = tmp_path / "state.safetensors"
        with pytest.raises(KeyboardInterrupt), interrupts_between_steps():
            train(model(), sample, interrupting(CONFIG.steps), CONFIG, checkpoint=path)
        assert train(model(), sample, loss, CONFIG, checkpoint=path).steps == CONFIG.steps

    def test_a_second_one_stops_at_once(self, tmp_path):
        path = tmp_path / "state.safetensors"
        with pytest.raises(KeyboardInterrupt), interrupts_between_steps():
            train(model(), sample, interrupting(6, times=2), CONFIG, checkpoint=path)
        assert read_record(path)["result"]["steps"] == 4


def test_another_start_is_refused_and_the_interrupted_model_goes_on(tmp_path):
    path, expected = tmp_path / "state.safetensors", model()
    train(expected, sample, loss, CONFIG)
    interrupted = model()
    with pytest.raises(KeyboardInterrupt):
        train(interrupted, sample, interrupting(6), CONFIG, checkpoint=path)
    other = model()
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    before = [parameter.clone() for parameter in other.parameters()]
    with pytest.raises(MPOError, match="started from other weights: their hash was .*, and that of the model given"):
        train(other, sample, loss, CONFIG, checkpoint=path)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))
    # The model itself is partly trained by now; then it is trained completely.
    for _ in range(2):
        train(interrupted, sample, loss, CONFIG, checkpoint=path)
        assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), interrupted.parameters(), strict=True))
    # Its weights changed since, so it is another model.
    with torch.no_grad():
        next(interrupted.parameters()).mul_(1.5)
    with pytest.raises(MPOError, match="started from other weights"):
        train(interrupted, sample, loss, CONFIG, checkpoint=path)


def test_one_run_at_a_time_has_a_checkpoint(tmp_path):
    path, refused = tmp_path / "state.safetensors", []

    def second_run(network, batch):
        if not refused:
            thread = threading.Thread(target=other_run)
            thread.start()
            thread.join()
        return loss(network, batch)

    def other_run():
        with pytest.raises(MPOError, match=r"another process is writing to .*state\.safetensors; wait"):
            train(model(), sample, loss, CONFIG, checkpoint=path)
        refused.append(True)

    train(model(), sample, second_run, CONFIG, checkpoint=path)
    assert refused == [True]
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_run_that_goes_on_with_another_version_says_so(tmp_path, monkeypatch, caplog):
    path = tmp_path / "state.safetensors"
    train(model(), sample, loss, CONFIG, checkpoint=path)
    assert not caplog.records
    monkeypatch.setattr("mpochain.train.record.version", lambda name: "9.9")
    train(model(), sample, loss, CONFIG, checkpoint=path)
    assert "begun with other versions" in caplog.text
    assert "9.9" in caplog.text


class TestCtrlCInALibraryCall:
    @pytest.mark.parametrize("where", ["gradients", "update"])
    def test_it_stops_at_once_and_leaves_the_checkpoint_intact(self, tmp_path, monkeypatch, where):
        path, network = tmp_path / "state.safetensors", model()
        if where == "gradients":
            stopping = interrupting(6)
        else:
            original, steps = torch.optim.AdamW.step, itertools.count(1)

            def half_a_step(self, *arguments):
                """Update some of the parameters, and be interrupted."""
                if next(steps) == 6:
                    parameters = self.param_groups[0]["params"]
                    self.param_groups[0]["params"] = parameters[:1]
                    original(self, *arguments)
                    self.param_groups[0]["params"] = parameters
                    os.kill(os.getpid(), signal.SIGINT)
                return original(self, *arguments)

            monkeypatch.setattr(torch.optim.AdamW, "step", half_a_step)
            stopping = loss
        with pytest.raises(KeyboardInterrupt):
            train(network, sample, stopping, CONFIG, checkpoint=path)
        monkeypatch.undo()
        assert read_record(path)["result"]["steps"] == 4
        assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]
        assert all(parameter.grad is None for parameter in network.parameters())
        uninterrupted = model()
        expected = train(uninterrupted, sample, loss, CONFIG)
        # The same model, half a step included: the checkpoint replaces it.
        assert train(network, sample, loss, CONFIG, checkpoint=path).losses == expected.losses
        assert all(torch.equal(a, b) for a, b in zip(uninterrupted.parameters(), network.parameters(), strict=True))

    def test_no_handler_of_signals_is_touched(self, monkeypatch):
        def refuse(*_):
            raise AssertionError("a library call changed a signal handler")

        monkeypatch.setattr(signal, "signal", refuse)
        assert train(model(), sample, loss, CONFIG).steps == CONFIG.steps

    def test_it_trains_in_a_thread(self):
        results = []
        with interrupts_between_steps():
            thread = threading.Thread(target=lambda: results.append(train(model(), sample, loss, CONFIG)))
            thread.start()
            thread.join()
        assert results[0].steps == CONFIG.steps


@pytest.mark.parametrize("kind", ["frozen", "tied"])
def test_frozen_and_tied_parameters_resume_too(tmp_path, kind):
    def build():
        network = model()
        if kind == "frozen":
            network[2].weight.requires_grad_(False)
        else:
            network.append(nn.Linear(3, 8))
            network[3].weight = nn.Parameter(network[2].weight.detach().T.clone())
            network.append(nn.Linear(8, 3))
            network[4].weight = network[2].weight
        return network

    class StopError(Exception):
        pass

    count = iter(range(100))

    def failing(network, batch):
        if next(count) == 7:
            raise StopError
        return loss(network, batch)

    uninterrupted = build()
    expected = train(uninterrupted, sample, loss, CONFIG)
    path = tmp_path / "state.safetensors"
    with pytest.raises(StopError):
        train(build(), sample, failing, CONFIG, checkpoint=path)
    resumed = build()
    assert train(resumed, sample, loss, CONFIG, checkpoint=path).losses == expected.losses
    assert all(torch.equal(a, b) for a, b in zip(uninterrupted.parameters(), resumed.parameters(), strict=True))


def test_the_state_holds_no_pickle_and_leaves_no_litter(tmp_path):
    path = tmp_path / "state.safetensors"
    train(model(), sample, loss, CONFIG, checkpoint=path)
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    header = path.read_bytes()
    size = int.from_bytes(header[:8], "little")
    assert json.loads(header[8 : 8 + size])["__metadata__"]["format"] == "mpochain-training"


class TestBadState:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "state.safetensors"
        train(model(), sample, loss, CONFIG, checkpoint=path)
        return path

    def test_another_configuration(self, path):
        with pytest.raises(MPOError, match="a run with learning_rate=0.003, not 0.1"):
            train(model(), sample, loss, CONFIG.model_copy(update={"learning_rate": 0.1}), checkpoint=path)

    def test_another_model(self, path):
        with pytest.raises(MPOError, match=r"0\.core_0_0 is \(1, 2, 2, 2\) torch.float32, expected \(1, 2, 2, 4\)"):
            train(model(bond=4), sample, loss, CONFIG, checkpoint=path)
        with pytest.raises(MPOError, match="belongs to another model: missing"):
            train(nn.Linear(8, 3), sample, loss, CONFIG, checkpoint=path)

    @pytest.mark.parametrize("keep", [0, 5, 100, -3])
    def test_a_truncated_file(self, path, keep):
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(MPOError, match="cannot be read as a training state"):
            train(model(), sample, loss, CONFIG, checkpoint=path)

    @pytest.mark.parametrize("place", [0.3, 0.5, 0.7, 0.999])
    def test_one_changed_bit(self, path, place):
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 1
        path.write_bytes(content)
        with pytest.raises(MPOError, match=r"(is damaged|cannot be read).*remove it to start again"):
            train(model(), sample, loss, CONFIG, checkpoint=path)

    def test_another_kind_of_file(self, path):
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, path)
        with pytest.raises(MPOError, match="is not a training state"):
            train(model(), sample, loss, CONFIG, checkpoint=path)

    def test_another_identity(self, tmp_path):
        path = tmp_path / "named"
        train(model(), sample, loss, CONFIG, checkpoint=path, identity={"corpus": "one"})
        with pytest.raises(MPOError, match="a run with corpus='one', not 'two'"):
            train(model(), sample, loss, CONFIG, checkpoint=path, identity={"corpus": "two"})
        with pytest.raises(MPOError, match="a run with corpus='one', not None"):
            train(model(), sample, loss, CONFIG, checkpoint=path)

    def test_another_element_type(self, path):
        with pytest.raises(MPOError, match=r"torch.float32, expected .* torch.float64"):
            train(model().double(), sample, loss, CONFIG, checkpoint=path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"setting": []}, "damaged"),
            ({"result": {"steps": "six"}}, "damaged"),
            ({"result": None}, "damaged"),
            ({"generator": torch.zeros(3, dtype=torch.uint8)}, "generator is"),
            ({"optimizer.exp_avg.2.bias": torch.zeros(7)}, r"optimizer.exp_avg.2.bias is \(7,\)"),
            ({"optimizer.step.2.bias": None}, "missing"),
            ({"more": torch.zeros(1)}, "unexpected"),
        ],
    )
    def test_a_spoiled_part_leaves_the_model_alone(self, path, change, message):
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        record, tensors = json.loads(metadata["record"]), load_file(path)
        for key, value in change.items():
            if key in record:
                record[key] = value
            elif value is None:
                del tensors[key]
            else:
                tensors[key] = value
        text = json.dumps(record)
        save_file(tensors, path, {**metadata, "record": text, "sha256": checksum(tensors, text)})
        network = model()
        before = [p.clone() for p in network.parameters()]
        with pytest.raises(MPOError, match=message):
            train(network, sample, loss, CONFIG, checkpoint=path)
        assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))

    def test_nowhere_to_write(self, tmp_path):
        (tmp_path / "file").write_text("")

        def never(network, batch):
            raise AssertionError("a step was taken before the folder was tried")

        with pytest.raises(MPOError, match="is a file; name a folder"):
            train(model(), sample, never, CONFIG, checkpoint=tmp_path / "file" / "state.safetensors")


def test_the_schedule_warms_up_and_decays():
    rates = [learning_rate(CONFIG, step) for step in range(CONFIG.steps)]
    assert rates[:4] == pytest.approx([CONFIG.learning_rate * f for f in (1 / 3, 2 / 3, 1, 1)])
    assert all(a > b for a, b in itertools.pairwise(rates[3:]))
    assert 0 < rates[-1] < 0.1 * CONFIG.learning_rate


@pytest.mark.parametrize("bad", [{"steps": 0}, {"learning_rate": 0.0}, {"betas": (1.0, 0.9)}, {"stepz": 3}])
def test_bad_configurations(bad):
    with pytest.raises(MPOError, match=next(iter(bad))):
        TrainConfig(**bad)
