"""The study end to end, with real files and real processes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from texts import prose

from mpochain import MPOError
from mpochain.system.interrupts import interrupts_between_steps
from mpochain.train import TrainConfig
from studies import picogpt
from studies.picogpt import study
from studies.picogpt.design import Design
from studies.picogpt.study import run as study_run
from studies.picogpt.study.beyond import beyond
from studies.picogpt.study.claims import claims
from studies.picogpt.study.page import write_page
from studies.picogpt.study.records import read_record
from studies.picogpt.study.rows import described, rows_of
from studies.picogpt.study.sections.rates import rates
from studies.picogpt.training import Lessons

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "prose.txt"
    file.write_text(prose(6000), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def done(tmp_path_factory, corpus_file):
    """The quick study, run once by the command line."""
    out = tmp_path_factory.mktemp("study")
    command = [sys.executable, "-m", "studies.picogpt", "study", "--preset", "quick", "--out", str(out)]
    run = subprocess.run(
        [*command, "--corpus", str(corpus_file)], capture_output=True, text=True, timeout=600, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    assert "profiler" not in run.stderr
    return out, run


def refused(*arguments):
    command = [sys.executable, "-m", "studies.picogpt", "study", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert run.returncode == 1
    return " ".join(run.stderr.split())


def test_a_row_that_is_not_there_is_named_beside_those_most_like_it(corpus_file, tmp_path):
    error = refused("--out", str(tmp_path), "--only", "dens", "--corpus", str(corpus_file))
    assert re.search(r"quick has no row 'dens' among its \d+; similar: dense, ", error)
    assert not any(tmp_path.iterdir())


def test_a_page_alone_takes_nothing_that_chooses_runs(tmp_path):
    assert "leave out --preset, --only and" in refused("--out", str(tmp_path), "--page-only", "--only", "dense")


def records(out):
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8"))
        for file in (out / "quick").glob("*.json")
        if file.stem not in ("timing", "reconstruction")
    }


@pytest.mark.parametrize("name", study.PRESETS)
def test_presets_are_sound(name):
    runs = study.preset(name, 65)
    names = [run.name for run in runs]
    assert len(set(names)) == len(names)
    for position, run in enumerate(runs):
        assert study.RunSetting.model_validate_json(run.model_dump_json()) == run
        assert (run.start != "random" or run.lessons is not None) is (run.source is not None)
        assert run.source is None or run.source in names[:position], "a source is run before what needs it"


def test_the_paper_preset_is_the_papers():
    runs = study.preset("paper", 65)
    again = ["dense", "χ=8", "χ=16"]
    assert [run.row for run in runs] == ["dense", "χ=4", "χ=8", "χ=16", "χ=32", *again, *again]
    for run in runs:
        config = run.config
        assert (config.steps, config.batch_size, config.learning_rate) == (2000, 32, 3e-4)
        assert (config.betas, config.weight_decay, config.warmup_steps, config.clip_norm) == (
            (0.9, 0.95),
            0.1,
            100,
            1.0,
        )
        assert run.initialization == "paper"


def test_the_best_preset_has_every_row_of_the_issue():
    runs = study.preset("best", 65)
    seeds = {row: sorted(run.seed for run in runs if run.row == row) for row in {run.row for run in runs}}
    for row in ("dense", "χ=8", "χ=16"):
        assert seeds[row] == [42, 43, 44]
    for bond in (4, 8, 16, 32):
        for row in (f"χ={bond}", f"χ={bond}, TT-SVD", f"χ={bond}, TT-SVD and 500 steps", f"χ={bond}, 500 steps"):
            assert 42 in seeds[row]
        for row in (f"low rank as χ={bond}", f"skewed as χ={bond}"):
            assert seeds[row] == seeds[f"{row}, calibrated"] == seeds[f"{row}, calibrated and 500 steps"] == [42]
        assert any(row.startswith("dense, width") and row.endswith(f"as χ={bond}") for row in seeds)


def test_a_search_of_rates_changes_rates_alone():
    runs = study.preset("best", 65)
    searched = [run for run in runs if run.ablation]
    for run in searched:
        varied = {"config", "core_rates", "ablation"} | ({"kind"} if run.kind == "search" else set())
        shorter = {"steps", "warmup_steps", "evaluate_every"} if run.kind == "search" else set()
        fields, config = run.model_dump(exclude=varied), run.config.model_dump(exclude={"learning_rate", *shorter})
        assert any(
            model.model_dump(exclude=varied) == fields
            and model.config.model_dump(exclude={"learning_rate", *shorter}) == config
            for model in runs
            if not model.ablation and model.config is not None
        ), run.row
    for bond in (4, 8, 16, 32):
        rates_of = {
            family: {
                (run.core_rates, run.config.learning_rate)
                for run in searched
                if (run.kind, run.design.family, run.bond, run.lessons) == ("search", family, bond, None)
            }
            for family in ("low rank", "paper", "dense")
        }
        assert rates_of.pop("dense") == {(False, 6e-3), (False, 1.5e-2), (False, 3e-2)}
        for rates_of_family in rates_of.values():
            assert rates_of_family == {(True, 6e-3), (True, 1.5e-2), (False, 1.5e-2)}, "controls have the same search"


def test_rates_stand_beside_runs_of_the_same_start_and_steps():
    def record(accuracy, **fields):
        chains = {"design": Design("paper", 8), "bond": 8, "config": TrainConfig(), "core_rates": True}
        return {
            "setting": study.RunSetting(**(chains | fields)),
            "training": {"decay": "alike"},
            "validation": {"accuracy": accuracy, "loss": 1.0},
        }

    brief = TrainConfig(steps=300, learning_rate=6e-3)
    cut = {"start": "tt_svd", "source": "dense-seed42"}
    taught = {**cut, "lessons": Lessons()}
    _, preface, table = rates(
        [
            record(0.1),
            record(0.2, core_rates=False, ablation=True),
            record(0.3, **cut),
            record(0.4, **cut, kind="cut", config=None),
            record(0.5, **taught),
            record(0.6, **taught, config=brief, kind="search", ablation=True),
            record(0.7, design=Design(), bond=None, core_rates=False),
        ]
    )
    keys = ("design", "start", "steps", "rate", "cores", "accuracy")
    assert [tuple(row[key] for key in keys) for row in table.records] == [
        ("χ=8", "random", 2000, 3e-3, "as all", 0.2),
        ("χ=8", "random", 2000, 3e-3, "by fan-in", 0.1),
        ("χ=8", "TT-SVD, distilled", 300, 6e-3, "by fan-in", 0.6),
    ]
    assert "few steps" in preface.lines[0]
    assert rates([record(0.1)]) == []


RECORDS = ROOT / "studies" / "picogpt" / "results"


def test_records_of_format_1_have_all_fields_and_the_names_that_follow_from_them():
    files = [file for file in RECORDS.glob("*/*.json") if file.stem not in ("timing", "reconstruction")]
    settings = {file: read_record(file)["setting"] for file in files}
    assert all(setting.name == file.stem for file, setting in settings.items())
    for name in ("best", "paper"):
        runs = {run.name: run for run in study.preset(name, 65)}
        assert all(runs[file.stem] == setting for file, setting in settings.items() if file.parent.name == name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": "χ=8"}, "bond must be the 16 of its design, got 8"),
        ({"row": "χ=16, TT-SVD"}, "its fields belong to the row 'χ=16', but its name is 'χ=16, TT-SVD'"),
        ({"config": None}, "its fields belong to the row 'χ=16', but its name is 'χ=16, 500 steps'"),
    ],
)
def test_a_record_whose_name_and_fields_differ_is_refused(tmp_path, change, message):
    record = json.loads((RECORDS / "best" / "chi16-500-steps-seed42.json").read_text(encoding="utf-8"))
    record["setting"] |= change
    (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(MPOError, match=message):
        read_record(tmp_path / "run.json")


class TestQuick:
    def test_every_run_is_a_record_with_all_a_reader_needs(self, done):
        out, _ = done
        kept = records(out)
        assert set(kept) == {run.name for run in study.preset("quick", len(set(prose(6000))))}
        for record in kept.values():
            assert {"commit", "torch", "threads", "processor"} <= set(record["provenance"])
            assert record["setting"]["seed"] == 42
            assert 0 < record["validation"]["accuracy"] < 1
            assert 0 < record["fewest_macs_per_token"] <= record["macs_per_token"]
            assert record["validation"]["tokens"] == 599
            trained = record["training"]
            untrained = record["setting"]["config"] is None
            assert (trained is None) is (record["step_peak_bytes"] is None) is untrained
            if trained:
                assert record["step_peak_bytes"] > 2 * 256 * 128 * 4, "activations of two sequences at least"
                assert trained["tokens_per_second"] > 0
                assert [point[0] for point in trained["curve"]] == [3, 6]
        assert not list((out / "quick").glob("*.state"))

    def test_the_page_and_its_twin(self, done):
        out, run = done
        page, twin = (out / f"study.{suffix}" for suffix in ("md", "html"))
        text, html = page.read_text(encoding="utf-8"), twin.read_text(encoding="utf-8")
        for word in (
            "χ=4, TT-SVD and 6 steps",
            "low rank as χ=4, calibrated and 6 steps",
            "low rank as χ=4",
            "dense, width 28 as χ=4, distilled",
            "skewed as χ=4",
            "by fan-in",
            "MACs per token",
            "over 1 and 2 sequences",
        ):
            assert word in text
            assert word in html
        assert 'src="http' not in html
        assert "href=" not in html
        assert html.count("data:image/png;base64,") == text.count("![") == 4  # a line of losses needs twenty steps
        assert "6 steps of 2 sequences of 256 characters from trained dense weights; AdamW" in text
        assert "6 steps of 2 sequences of 256 characters from trained dense weights and calibration data; AdamW" in text
        assert "weights, 50% of the loss on the dense model's predictions at temperature 2.0; AdamW" in text
        assert "Not testable: the published results are for Tiny Shakespeare, and no run uses it." in text
        for line in run.stdout.splitlines():
            assert (out / line).exists()
        for link in [part.split(")")[0] for part in text.split("](")[1:]]:
            assert (out / link).read_bytes().startswith(b"\x89PNG")

    def test_nothing_that_finished_is_run_again(self, done, corpus_file, monkeypatch):
        out, _ = done
        monkeypatch.setattr(study_run, "_run", lambda *a: pytest.fail("run again"))
        monkeypatch.setattr(study_run, "timing", lambda *a: pytest.fail("timed again"))
        study.run_preset("quick", picogpt.load_corpus(corpus_file), out)
        before = (out / "study.md").read_text(encoding="utf-8")
        write_page(out, out / "study.md")
        assert (out / "study.md").read_text(encoding="utf-8") == before, "the page is made from the records alone"

    def test_another_corpus_is_refused(self, done):
        out, _ = done
        other = picogpt.Corpus.from_text(prose(6001))
        with pytest.raises(MPOError, match="belongs to another corpus"):
            study.run_preset("quick", other, out)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda text: text[:50], "is damaged"),
            (lambda text: text.replace('"seed": 42', '"seed": 41'), "belongs to another setting"),
            (lambda text: text.replace('"format": 2', '"format": 9'), "has format 9"),
            (lambda text: "[]", "is damaged"),
            (lambda text: text.replace('"validation"', '"value"'), r"is damaged \(validation: Field required\)"),
        ],
    )
    def test_a_record_that_is_not_ours(self, done, corpus_file, tmp_path, change, message):
        out, _ = done
        (tmp_path / "quick").mkdir()
        text = (out / "quick" / "dense-seed42.json").read_text(encoding="utf-8")
        (tmp_path / "quick" / "dense-seed42.json").write_text(change(text), encoding="utf-8")
        with pytest.raises(MPOError, match=message):
            study.run_preset("quick", picogpt.load_corpus(corpus_file), tmp_path)

    def test_weights_that_others_were_cut_from_are_not_replaced(self, done, corpus_file, tmp_path):
        out, _ = done
        shutil.copytree(out / "quick", tmp_path / "quick")
        corpus = picogpt.load_corpus(corpus_file)
        model, _ = picogpt.load_weights(tmp_path / "quick" / "dense-seed42.safetensors")
        with torch.no_grad():
            model.head.weight.mul_(2)
        picogpt.save_weights(tmp_path / "quick" / "dense-seed42.safetensors", model, corpus, {})
        with pytest.raises(MPOError, match="belongs to weights other than"):
            study.run_preset("quick", corpus, tmp_path)

    def test_a_fresh_clone_has_records_and_no_weights(self, done, corpus_file, tmp_path, monkeypatch):
        out, _ = done
        shutil.copytree(out / "quick", tmp_path / "quick", ignore=shutil.ignore_patterns("*.safetensors"))
        monkeypatch.setattr(study_run, "_run", lambda *a: pytest.fail("run again"))
        monkeypatch.setattr(study_run, "timing", lambda *a, **k: pytest.fail("timed again"))
        study.run_preset("quick", picogpt.load_corpus(corpus_file), tmp_path)

    def test_times_of_other_designs_are_taken_again(self, done, corpus_file, tmp_path, monkeypatch):
        out, _ = done
        shutil.copytree(out / "quick", tmp_path / "quick")
        file = tmp_path / "quick" / "timing.json"
        record = json.loads(file.read_text(encoding="utf-8"))
        record["timing"]["designs"].pop()
        file.write_text(json.dumps(record), encoding="utf-8")
        monkeypatch.setattr(study_run, "timing", lambda *a, **k: ["again"])
        study.run_preset("quick", picogpt.load_corpus(corpus_file), tmp_path)
        assert json.loads(file.read_text(encoding="utf-8"))["timing"]["designs"] == ["again"]

    def test_lost_weights_are_said(self, done, corpus_file, tmp_path):
        out, _ = done
        (tmp_path / "quick").mkdir()
        (tmp_path / "quick" / "dense-seed42.json").write_bytes((out / "quick" / "dense-seed42.json").read_bytes())
        with pytest.raises(MPOError, match=r"dense-seed42\.safetensors is missing, although its run is finished"):
            study.run_preset("quick", picogpt.load_corpus(corpus_file), tmp_path)


def test_an_interrupted_run_goes_on_to_the_bit(tmp_path, monkeypatch):
    # Weighing makes steps too, which would be counted below.
    costs = {"macs_per_token": 1, "fewest_macs_per_token": 1, "step_peak_bytes": 1}
    monkeypatch.setattr(study_run, "_costs", lambda *_: costs)
    corpus = picogpt.Corpus.from_text(prose(6000))
    study.run_preset("quick", corpus, tmp_path / "uninterrupted", only=["dense"])

    original, steps = torch.optim.AdamW.step, []

    def third_is_interrupted(self, *arguments):
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return original(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", third_is_interrupted)
    with pytest.raises(KeyboardInterrupt), interrupts_between_steps():
        study.run_preset("quick", corpus, tmp_path / "cut", only=["dense"])
    (state,) = (tmp_path / "cut" / "quick").glob("*.state")
    steps.clear()
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a: (steps.append(1), original(self, *a))[1])
    study.run_preset("quick", corpus, tmp_path / "cut", only=["dense"])
    assert len(steps) == 3, "the three steps that were left"
    assert not state.exists()
    uninterrupted, cut = (records(tmp_path / name)["dense-seed42"] for name in ("uninterrupted", "cut"))
    assert cut["validation"] == uninterrupted["validation"]
    assert cut["training"]["losses"] == uninterrupted["training"]["losses"]


def test_a_state_of_another_start_is_refused(tmp_path, monkeypatch):
    corpus = picogpt.Corpus.from_text(prose(6000))
    study.run_preset("quick", corpus, tmp_path, only=["dense"])
    row = "χ=4, TT-SVD and 6 steps"

    def stop(*_):
        raise RuntimeError("stop")

    with monkeypatch.context() as patch:
        patch.setattr(study_run, "evaluate", stop)
        with pytest.raises(RuntimeError, match="stop"):
            study.run_preset("quick", corpus, tmp_path, only=[row])
    model, _ = picogpt.load_weights(tmp_path / "quick" / "dense-seed42.safetensors")
    with torch.no_grad():
        model.head.weight.mul_(2)
    picogpt.save_weights(tmp_path / "quick" / "dense-seed42.safetensors", model, corpus, {})
    with pytest.raises(MPOError, match="belongs to a run with start="):
        study.run_preset("quick", corpus, tmp_path, only=[row])


@pytest.mark.parametrize("asked", ["χ=4, TT-SVD", "errors"])
def test_what_needs_a_dense_run_says_so(asked, tmp_path):
    corpus = picogpt.Corpus.from_text(prose(6000))
    with pytest.raises(MPOError, match=r"dense-seed42\.safetensors is missing, run dense-seed42 first"):
        study.run_preset("quick", corpus, tmp_path, only=[asked])


def test_only_what_is_asked_for_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(study_run, "_run", lambda *a: pytest.fail("no row was asked for"))
    monkeypatch.setattr(study_run, "timing", lambda *a, **k: [])
    study.run_preset("quick", picogpt.Corpus.from_text(prose(6000)), tmp_path, only=["times"])
    assert [file.name for file in (tmp_path / "quick").iterdir()] == ["timing.json"]


COUNTS = {None: 808_448, 4: 42_336, 8: 79_168, 16: 177_408, 32: 472_192}


def model(bond, family="paper", **fields):
    """A setting whose number of steps alone is given; a narrow dense model has a width of 60."""
    design = Design() if bond is None else Design(width=60) if family == "dense" else Design(family, bond)
    steps = fields.pop("steps", 2000)
    config = TrainConfig(steps=steps) if steps else None
    return study.RunSetting(design=design, bond=bond, config=config, **fields)


def judged(accuracies, losses=(1.5,) * 5, kept=0.98):
    return [
        {
            **described(model(bond)),
            "accuracy": accuracy,
            "loss": loss,
            "kept": kept if bond == 16 else None,
            "parameters": count,
            "per_root": accuracy / count**0.5,
        }
        for (bond, count), accuracy, loss in zip(COUNTS.items(), accuracies, losses, strict=True)
    ]


def test_claims_follow_the_numbers(tmp_path):
    text = "\n".join(claims({"best": judged([0.53, 0.37, 0.5, 0.52, 0.52])}, tmp_path))
    assert "keeps 97.7% of the dense accuracy, best settings: holds, 98.00%." in text
    assert "does not hold; χ=4 has the highest, 1.80e-03, and χ=8 has 1.78e-03." in text
    assert "published accuracies and the correct counts, χ=4 has the highest, 1.79e-03, and χ=8 has 1.66e-03." in text
    assert "best settings: all reached; dense 53.0% (published 52.8%)" in text
    assert "have at most the validation loss of dense, best settings: holds; dense 1.500 (published 1.860)" in text
    text = "\n".join(claims({"best": judged([0.53, 0.2, 0.5, 0.5, 0.52], (1.5, 1, 1, 1, 1.6), 0.9766)}, tmp_path))
    assert "best settings: does not hold, 97.66%." in text
    assert "best settings: holds; χ=8 has the highest" in text
    assert "best settings: not reached by χ=4, χ=16; " in text
    assert "best settings: does not hold; dense 1.500" in text
    text = "\n".join(claims({"paper": judged([0.348, 0.3, 0.3, 0.3, 0.3])}, tmp_path))
    assert "the published settings do not give the published accuracies; dense 34.8% (published 52.8%)" in text
    text = "\n".join(claims({"best": []}, tmp_path))
    assert text.count("not testable with these runs") == 6
    assert claims({}, tmp_path) == ["Not testable: the published results are for Tiny Shakespeare, and no run uses it."]


def test_the_claim_on_what_is_kept_names_the_best_that_was_taught(tmp_path):
    rows = judged([0.53, 0.37, 0.5, 0.52, 0.52], kept=0.95)
    for start, kept in (("tt_svd", 0.97), ("calibrated", 0.98)):
        rows.append({**described(model(16, start=start, lessons=Lessons())), "kept": kept})
    text = "\n".join(claims({"best": rows}, tmp_path))
    assert "does not hold, 95.00%; distilled from the dense model (χ=16, calibrated, distilled), 98.00%." in text


def test_a_quick_run_changes_no_claim_but_the_counts(tmp_path):
    best, quick = judged([0.53, 0.37, 0.5, 0.52, 0.52]), judged([0.1] * 5)
    assert claims({"best": best, "quick": quick}, tmp_path) == claims({"best": best}, tmp_path)


def test_the_claim_on_errors_is_that_of_random_matrices(tmp_path):
    (tmp_path / "best").mkdir()
    layers = [{"shape": [128, 128], "sites": 2, "bond": 4, "error": error, "random": 0.9} for error in (0.5, 0.7)] + [
        {"shape": [128, 128], "sites": 3, "bond": 4, "error": 0.1, "random": 0.1}
    ]
    record = {"provenance": {}, "reconstruction": {"weights": "0", "layers": layers}}
    (tmp_path / "best" / "reconstruction.json").write_text(json.dumps(record), encoding="utf-8")
    assert any(
        line.endswith("at χ=4: does not hold, it is 0.900; trained weights, best settings, have 0.600.")
        for line in claims({"best": []}, tmp_path)
    )


def rival(setting, accuracies, macs):
    return {
        **described(setting),
        "accuracy": sum(accuracies) / len(accuracies),
        "by_seed": dict(zip((42, 43, 44), accuracies, strict=False)),
        "fewest_macs_per_token": macs,
        "parameters": 100,
        "kept": 0.9,
    }


def test_what_is_beyond_the_paper_follows_the_numbers():
    finetuned, taught = {"kind": "finetuned", "steps": 500}, {"lessons": Lessons()}
    rows = [
        rival(model(4), [0.4, 0.9], 500),
        rival(model(4, "low rank"), [0.5], 100),
        rival(model(4, "skewed"), [0.3], 10),
        rival(model(4, start="tt_svd", kind="cut", steps=0), [0.9], 500),
        rival(model(4, start="tt_svd", **finetuned), [0.35], 500),
        rival(model(4, **finetuned), [0.3], 500),
        rival(model(4, start="calibrated", kind="cut", steps=0), [0.1], 500),
        rival(model(4, start="calibrated", **finetuned), [0.36], 500),
        rival(model(4, "low rank", start="calibrated", **finetuned), [0.37], 100),
        rival(model(8), [0.5], 500),
        rival(model(8, "skewed"), [0.6], 600),
        rival(model(16), [0.6, 0.59], 500),
        rival(model(16, "skewed"), [0.605], 500),
        rival(model(16, "dense"), [0.7], 50),
        rival(model(16, start="tt_svd", **taught), [0.61], 500),
        rival(model(16, start="calibrated", **taught), [0.6], 500),
        rival(model(16, "skewed", start="tt_svd", **taught), [0.62], 500),
        rival(model(16, "low rank", start="tt_svd", **taught), [0.63, 0.64], 500),  # of other seeds than the first
    ]
    assert beyond(rows) == [
        "At the size of χ=4, higher accuracy than the paper's shapes (100 parameters, at least 500 MACs per token; "
        "their seeds differ by 50.00 points): low rank (by less than the spread of their seeds); fewer multiply-adds: "
        "low rank and skewed. In detail: low rank +10.0 points with 100 parameters at 100 MACs; "
        "skewed -10.0 points with 100 parameters at 10 MACs.",
        "χ=4, TT-SVD and 500 steps, 35.0%, is better than 500 steps from a random start (+5.0 points) and is no "
        "better than 2,000 steps from a random start (-5.0 points).",
        "At the size of χ=4, decomposed with calibration data and finetuned for 500 steps: low rank as χ=4 37.0% "
        "with 100 parameters at 100 MACs; χ=4 36.0% with 100 parameters at 500 MACs (χ=4, TT-SVD and 500 steps: "
        "35.0%). The first is no better than 2,000 steps from a random start (-3.0 points) with the paper's shapes.",
        "At the size of χ=8, higher accuracy than the paper's shapes (100 parameters, at least 500 MACs per token): "
        "skewed (by less than the spread of the seeds of χ=4); fewer multiply-adds: none. In detail: skewed +10.0 "
        "points with 100 parameters at 600 MACs.",
        "At the size of χ=16, higher accuracy than the paper's shapes (100 parameters, at least 500 MACs per token; "
        "their seeds differ by 1.00 points): skewed (by less than the spread of the seeds of χ=4); fewer "
        "multiply-adds: none. In detail: skewed +0.5 points with 100 parameters at 500 MACs.",
        "At the size of χ=16, without chains: dense, width 60 +10.0 points with 100 parameters at 50 MACs.",
        "At the size of χ=16, distilled from the dense model for 2,000 steps: skewed as χ=16, TT-SVD 62.0%, "
        "90.0% of dense, with 100 parameters; χ=16, TT-SVD 61.0%, 90.0% of dense, with 100 parameters; χ=16, "
        "calibrated 60.0%, 90.0% of dense, with 100 parameters.",
    ]


def test_one_seed_is_not_doubted_where_no_row_has_more():
    (line,) = beyond([rival(model(8), [0.5], 500), rival(model(8, "skewed"), [0.6], 400)])
    assert "): skewed; fewer multiply-adds: skewed." in line


def test_what_has_no_seed_in_common_is_not_compared():
    later = {**rival(model(4), [0.4], 500), "by_seed": {43: 0.4}}
    settings = (model(4, "low rank"), model(4, "dense"), model(4, start="tt_svd", kind="finetuned", steps=500))
    assert beyond([later, *(rival(setting, [0.4], 500) for setting in settings)]) == []


def test_seeds_of_a_row_are_joined():
    def record(seed, accuracy, bond):
        return {
            "setting": model(bond, steps=7, seed=seed),
            "corpus": {"name": "mine", "sha256": "0"},
            "parameters": 400 if bond is None else 100,
            "block_parameters": 40,
            "macs_per_token": 5,
            "fewest_macs_per_token": 4,
            "step_peak_bytes": 2**20,
            "validation": {"accuracy": accuracy, "loss": 1.0},
        }

    rows = rows_of([record(42, 0.3, 8), record(43, 0.5, 8), record(42, 0.6, None), record(43, 0.5, None)])
    assert [row["row"] for row in rows] == ["dense", "χ=8"]
    assert rows[1]["accuracy"] == pytest.approx(0.4)
    assert rows[1]["by_seed"] == {42: 0.3, 43: 0.5}
    assert rows[1]["spread"] == "10.00% (2)"
    assert rows[1]["kept"] == pytest.approx((0.3 / 0.6 + 0.5 / 0.5) / 2), "of the same seed"
    assert rows[1]["compression"] == 4
    assert rows[1]["steps"] == 7
    assert rows[1]["published_accuracy"] is None, "the published figure is of another corpus"


def test_bad_input(tmp_path):
    with pytest.raises(MPOError, match="there is no preset 'huge'; there are quick, paper, best"):
        study.preset("huge", 65)
    with pytest.raises(MPOError, match="contains no finished run"):
        write_page(tmp_path, tmp_path / "study.md")
    with pytest.raises(MPOError, match=r"name it page\.md"):
        write_page(tmp_path, tmp_path / "page.html")
    with pytest.raises(MPOError, match="too short"):
        study.run_preset("quick", picogpt.Corpus.from_text(prose(2000)), tmp_path)
