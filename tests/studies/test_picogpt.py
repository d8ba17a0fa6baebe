from __future__ import annotations

import json
import math

import pytest
import tensorly
import torch
from safetensors.torch import load_file, save_file
from texts import prose
from torch import nn
from torch.nn import functional as F

from mpochain import MPOError, MPOLinear, decompose
from mpochain.train import TrainConfig
from studies import picogpt
from studies.picogpt import decomposition
from studies.picogpt.corpus import GUTENBERG, TINY_SHAKESPEARE
from studies.picogpt.design import Design, site_spec
from studies.picogpt.training import Lessons


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("bond", "parameters"), [(None, 808_448), (4, 42_336), (8, 79_168), (16, 177_408), (32, 472_192)]
)
def test_parameter_counts(bond, parameters):
    assert count(picogpt.build(max_bond=bond)) == parameters


def test_the_sites_are_those_of_the_paper():
    assert site_spec(128, 128, 16).core_shapes == ((1, 8, 8, 16), (16, 16, 16, 1))
    assert site_spec(512, 128, 16).core_shapes == ((1, 8, 4, 16), (16, 8, 4, 16), (16, 8, 8, 1))
    assert site_spec(128, 512, 16).core_shapes == ((1, 4, 8, 16), (16, 4, 8, 16), (16, 8, 8, 1))
    assert site_spec(65, 128, 16).core_shapes == ((1, 5, 8, 16), (16, 13, 16, 1))
    assert site_spec(84, 128, 16).out_dims == (7, 12)


def test_no_linear_stays_dense_and_biases_are_where_they_belong():
    model = picogpt.build(8)
    assert not any(isinstance(layer, nn.Linear) for layer in model.modules())
    biased = {
        name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, MPOLinear) and m.bias is not None
    }
    assert biased == {"w_o", "w_1", "w_2"}


class TestDesigns:
    @pytest.mark.parametrize("bond", [4, 8, 16, 32])
    @pytest.mark.parametrize("vocabulary", [65, 84])
    def test_controls_have_as_many_parameters_or_a_few_fewer(self, bond, vocabulary):
        paper = count(picogpt.build(bond, vocab_size=vocabulary))
        for family in ("low rank", "skewed"):
            control = count(picogpt.build(design=Design(family, bond), vocab_size=vocabulary))
            assert 0.9 * paper <= control <= paper, family
        width = picogpt.narrow_width(paper, vocabulary)
        off = {
            other: abs(count(picogpt.build(design=Design(width=other), vocab_size=vocabulary)) - paper)
            for other in (width - 4, width, width + 4)
        }
        assert min(off, key=off.__getitem__) == width
        assert off[width] < 0.08 * paper

    def test_controls_read_and_write_the_same_characters(self):
        tokens = torch.zeros(1, 5, dtype=torch.long)
        for design in (Design("low rank", 4), Design("skewed", 4), Design(width=64)):
            assert picogpt.build(design=design, seed=0)(tokens).shape == (1, 5, 65)

    def test_skewed_chains_save_multiply_adds(self):
        paper, skewed, low = (Design(family, 16).spec(128, 128) for family in ("paper", "skewed", "low rank"))
        assert low.macs() < skewed.macs() < paper.macs()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("dense", 4), "a dense design has no max_bond"),
            (("paper",), "a paper design needs a max_bond"),
            (("kronecker", 4), "family must be one of dense, paper, low rank, skewed"),
            (("dense", None, 130), "width must be a multiple of 4, got 130"),
            (("dense", None, "128"), "width must be a positive integer"),
        ],
    )
    def test_designs_that_are_none(self, arguments, message):
        with pytest.raises(MPOError, match=message):
            Design(*arguments)

    def test_contradictions(self):
        with pytest.raises(MPOError, match="not both"):
            picogpt.build(4, design=Design())
        with pytest.raises(MPOError, match="initialization must be one of"):
            picogpt.build(4, initialization="mine")
        with pytest.raises(MPOError, match="no PicoGPT has 10 parameters"):
            picogpt.narrow_width(10)
        dense = picogpt.build(design=Design(width=64), seed=0)
        with pytest.raises(MPOError, match="of width 64 cannot be decomposed by a design of width 128"):
            picogpt.decompose_linears(dense, 4)
        with pytest.raises(MPOError, match="needs a design with chains"):
            picogpt.decompose_linears(dense, Design(width=64))
        with pytest.raises(MPOError, match="needs a dense model, got one whose linear layers are χ=4"):
            picogpt.decompose_linears(picogpt.build(4), 8)

    def test_the_papers_initialization_is_wrong_for_three_sites_as_known(self):
        model = picogpt.build(16, initialization="paper", seed=0)
        block = model.blocks[0]
        assert block.attention.w_q.weight.std().item() == pytest.approx(0.088, rel=0.1)
        assert block.w_1.weight.std().item() == pytest.approx(0.026, rel=0.15)
        assert block.w_2.weight.std().item() == pytest.approx(0.0093, rel=0.15)


def test_a_seed_gives_one_model_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    a, b = picogpt.build(8, seed=1), picogpt.build(8, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("bond", [None, 4])
def test_initial_weights_have_the_deviation_of_their_fan_in(bond):
    model = picogpt.build(bond, seed=0)
    scaled = [
        module.weight.std().item() * (3 * module.in_features) ** 0.5
        for module in model.modules()
        if isinstance(module, (nn.Linear, MPOLinear))
    ]
    assert sum(scaled) / len(scaled) == pytest.approx(1, rel=0.1)
    positions = model.get_buffer("positions")
    assert model.embedding.weight.std().item() == pytest.approx(positions.std().item(), rel=0.25)


def test_initial_dense_weights_of_the_paper():
    model = picogpt.build(initialization="paper", seed=0)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_the_future_is_not_read():
    model = picogpt.build(8, seed=0)
    tokens = torch.randint(0, 65, (2, 40), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 25:] = (changed[:, 25:] + 1) % 65
    with torch.no_grad():
        a, b = model(tokens), model(changed)
    torch.testing.assert_close(a[:, :25], b[:, :25], atol=1e-5, rtol=1e-5)
    assert (a[:, 25:] - b[:, 25:]).abs().max() > 1e-3


def test_positions_are_sinusoids_and_no_parameters():
    positions = picogpt.build().get_buffer("positions")
    assert positions[0].tolist() == [0.0, 1.0] * 64
    assert positions[5, 0].item() == pytest.approx(math.sin(5))
    assert positions[5, 1].item() == pytest.approx(math.cos(5))
    assert "positions" not in picogpt.build().state_dict()


def test_more_than_the_context_is_refused():
    with pytest.raises(MPOError, match="at most 256 positions"):
        picogpt.build(4)(torch.zeros(1, 257, dtype=torch.long))


def test_decomposition_at_full_bond_is_the_same_function():
    dense = picogpt.build(seed=0, vocab_size=30)
    chains = picogpt.decompose_linears(dense, 10_000)
    tokens = torch.randint(0, 30, (2, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(chains(tokens), dense(tokens), atol=1e-4, rtol=1e-4)
    assert all(isinstance(m, nn.Linear) for m in (dense.head, dense.blocks[0].w_1)), "the dense model was changed"
    assert chains.vocab_size == 30
    small = picogpt.decompose_linears(dense, 8)
    assert count(small) == count(picogpt.build(8, vocab_size=30))
    storages = {p.untyped_storage().data_ptr() for p in dense.parameters()}
    assert storages.isdisjoint(p.untyped_storage().data_ptr() for p in small.parameters())


@pytest.mark.parametrize("design", [Design("paper", 8), Design("skewed", 8), Design("low rank", 8)], ids=str)
def test_calibration_keeps_more_of_what_the_layers_make_of_text(design, monkeypatch):
    monkeypatch.setattr(decomposition, "_BATCH", 4)
    corpus = picogpt.Corpus.from_text(prose(6000))
    dense = picogpt.build(seed=0, vocab_size=len(corpus.vocabulary))
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    chains = picogpt.calibrate_linears(dense, design, corpus, batches=1, iterations=10)
    again = picogpt.calibrate_linears(dense, design, corpus, batches=1, iterations=10)
    tokens = corpus.validation[:256].long()[None]
    with torch.no_grad():
        asked = dense(tokens)

        def lost(model):
            return F.mse_loss(model(tokens), asked).item()

        assert lost(chains) < 0.9 * lost(picogpt.decompose_linears(dense, design))
        assert torch.equal(chains(tokens), again(tokens))
    assert count(chains) == count(picogpt.build(design=design, vocab_size=len(corpus.vocabulary)))
    assert chains.design == design
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    assert not any(p.grad is not None for p in dense.parameters())
    storages = {p.untyped_storage().data_ptr() for p in dense.parameters()}
    assert storages.isdisjoint(p.untyped_storage().data_ptr() for p in chains.parameters())
    with pytest.raises(MPOError, match="needs a design with chains"):
        picogpt.calibrate_linears(dense, Design(), corpus, batches=1)


class TestEvaluation:
    def test_every_token_but_the_first_is_predicted_once_in_its_window(self):
        tokens = torch.randint(0, 20, (1000,), generator=torch.Generator().manual_seed(0)).to(torch.int16)
        model = picogpt.build(vocab_size=20, seed=0)
        result = picogpt.evaluate(model, tokens, context=64, batch_size=3)
        losses, hits = [], 0
        with torch.no_grad():
            for start in range(0, 999, 64):
                x = tokens[start : start + 64][: 999 - start].long()
                y = tokens[start + 1 : start + 1 + len(x)].long()
                logits = model(x[None])[0]
                losses += F.cross_entropy(logits, y, reduction="none").tolist()
                hits += int((logits.argmax(-1) == y).sum())
        assert result.tokens == len(losses) == 999
        assert result.loss == pytest.approx(sum(losses) / 999, rel=1e-5)
        assert result.accuracy == pytest.approx(hits / 999)
        assert result.perplexity == pytest.approx(math.exp(result.loss))

    @pytest.mark.parametrize("length", [2, 64, 65, 66, 129])
    def test_odd_lengths(self, length):
        tokens = torch.zeros(length, dtype=torch.int16)
        assert picogpt.evaluate(picogpt.build(4, vocab_size=5), tokens, context=64).tokens == length - 1

    def test_the_batch_size_changes_nothing(self):
        tokens = torch.randint(0, 20, (500,), generator=torch.Generator().manual_seed(0))
        model = picogpt.build(vocab_size=20, seed=0)
        results = [picogpt.evaluate(model, tokens, context=32, batch_size=b) for b in (1, 4, 100)]
        assert all(r.loss == pytest.approx(results[0].loss, rel=1e-5) for r in results)

    def test_nothing_to_predict(self):
        with pytest.raises(MPOError, match="nothing to predict"):
            picogpt.evaluate(picogpt.build(4), torch.zeros(1, dtype=torch.int16))


class TestTraining:
    def test_chains_learn(self):
        corpus = picogpt.Corpus.from_text(prose(6000))
        model = picogpt.build(4, vocab_size=len(corpus.vocabulary), seed=0)
        before = picogpt.evaluate(model, corpus.validation)
        config = TrainConfig(steps=20, batch_size=4, warmup_steps=3, learning_rate=5e-3)
        result = picogpt.train_picogpt(model, corpus, config)
        after = result.curve[-1].metrics
        assert after["loss"] < before.loss - 0.3
        assert after["accuracy"] > before.accuracy

    def test_a_chain_learns_what_its_teacher_says(self, tmp_path):
        corpus = picogpt.Corpus.from_text(prose(6000))
        size = len(corpus.vocabulary)
        # Of random weights, so that only who listens comes nearer to it than the text is.
        teacher, other = (picogpt.build(vocab_size=size, seed=seed) for seed in (1, 2))
        tokens = corpus.validation[:256].long()[None]
        config = TrainConfig(steps=12, batch_size=4, warmup_steps=3, learning_rate=5e-3)

        def away(**taught):
            model = picogpt.build(4, vocab_size=size, seed=0)
            picogpt.train_picogpt(model, corpus, config, **taught)
            with torch.no_grad():
                student, target = model(tokens).log_softmax(-1), teacher(tokens).log_softmax(-1)
            return F.kl_div(student, target, log_target=True, reduction="batchmean").item()

        untaught = away()
        assert away(teacher=teacher, lessons=Lessons(weight=1.0, temperature=1.0)) < untaught / 2
        state = {"checkpoint": tmp_path / "state"}
        assert away(teacher=teacher, **state) < untaught
        with pytest.raises(MPOError, match="belongs to a run with teacher="):
            away(teacher=other, **state)
        with pytest.raises(MPOError, match="belongs to a run with weight=0.5, not 0.25"):
            away(teacher=teacher, lessons=Lessons(weight=0.25), **state)
        with pytest.raises(MPOError, match="needs teacher="):
            away(lessons=Lessons())
        with pytest.raises(MPOError, match="but the model expects 65"):
            away(teacher=picogpt.build(4))

    def test_a_corpus_too_short(self):
        corpus = picogpt.Corpus.from_text(prose(2000))
        with pytest.raises(MPOError, match="too short: its validation split has 200 characters"):
            picogpt.train_picogpt(picogpt.build(4), corpus, TrainConfig(steps=1))

    def test_a_corpus_of_another_alphabet(self):
        corpus = picogpt.Corpus.from_text(prose(6000))
        with pytest.raises(MPOError, match="but the model expects 65"):
            picogpt.train_picogpt(picogpt.build(4), corpus, TrainConfig(steps=1))


class TestWeights:
    CORPUS = picogpt.Corpus.from_text(prose(3000), name="prose")

    @pytest.mark.parametrize("design", [Design(), Design("paper", 8), Design("skewed", 4), Design(width=32)], ids=str)
    def test_round_trip_is_the_identity(self, tmp_path, design):
        model = picogpt.build(design=design, vocab_size=30, seed=3)
        picogpt.save_weights(tmp_path / "m.safetensors", model, self.CORPUS, {"steps": 0})
        again, record = picogpt.load_weights(tmp_path / "m.safetensors")
        assert again.design == model.design
        assert record["corpus"]["name"] == "prose"
        assert record["training"] == {"steps": 0}
        for a, b in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
            assert a[0] == b[0]
            assert torch.equal(a[1], b[1])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"vocab_size": 10**9}, "vocab_size must be"),
            ({"vocab_size": "65"}, "vocab_size must be"),
            ({"max_bond": -1}, "max_bond must be"),
            ({"max_bond": 10**8}, "max_bond must be"),
            ({"max_bond": 4}, "has shape"),
            ({"max_bond": None}, "missing or unexpected tensors"),
        ],
    )
    def test_a_record_that_does_not_fit(self, tmp_path, change, message):
        path = tmp_path / "m.safetensors"
        picogpt.save_weights(path, picogpt.build(8, vocab_size=30), self.CORPUS, {})
        tensors = load_file(path)
        # As the first files were written, which are read still.
        record = {"vocab_size": 30, "max_bond": 8, "corpus": {}, "training": {}, **change}
        metadata = {"format": "mpochain-picogpt", "version": "1", "record": json.dumps(record)}
        save_file(tensors, path, metadata)
        with pytest.raises(MPOError, match=message):
            picogpt.load_weights(path)

    @pytest.mark.parametrize("keep", [0, 7, 60, -10])
    def test_a_damaged_file(self, tmp_path, keep):
        path = tmp_path / "m.safetensors"
        picogpt.save_weights(path, picogpt.build(4, vocab_size=30), self.CORPUS, {})
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(MPOError, match="cannot be read as a PicoGPT"):
            picogpt.load_weights(path)

    def test_a_missing_or_foreign_file(self, tmp_path):
        with pytest.raises(MPOError, match="cannot be read"):
            picogpt.load_weights(tmp_path / "none.safetensors")
        save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
        with pytest.raises(MPOError, match="is not a PicoGPT file"):
            picogpt.load_weights(tmp_path / "a.safetensors")

    def test_the_shipped_models_are_what_they_say(self):
        for edition, size, bond, accuracy in (
            (TINY_SHAKESPEARE, 65, None, 0.56),
            (TINY_SHAKESPEARE, 65, 16, 0.52),
            (GUTENBERG, 84, None, 0.52),
        ):
            corpus = picogpt.Corpus(edition.name, "test", edition.sha256, "")
            model, record = picogpt.load_weights(picogpt.shipped(corpus, bond))
            assert model.vocab_size == size
            assert model.design == (Design() if bond is None else Design("paper", bond))
            assert record["corpus"]["sha256"] == edition.sha256
            assert record["training"]["validation"]["accuracy"] >= accuracy
        assert picogpt.shipped(self.CORPUS) is None


@pytest.fixture(scope="module")
def weights():
    model, _ = picogpt.load_weights(picogpt.shipped(picogpt.Corpus("", "", TINY_SHAKESPEARE.sha256, "")))
    return {n: m.weight.detach().double() for n, m in model.named_modules() if isinstance(m, nn.Linear)}


class TestTrainedWeights:
    """On real weights: full bond is exact, and TensorLy agrees, in float64."""

    def test_there_are_25(self, weights):
        assert len(weights) == 25

    @pytest.mark.parametrize("bond", [4, 16])
    def test_tensorly_gives_the_same_matrix(self, weights, bond):
        for name, weight in weights.items():
            spec = site_spec(*weight.shape, bond)
            chain = decompose(weight, spec, name=name)
            tensor = weight.numpy().reshape(*spec.out_dims, *spec.in_dims)
            with tensorly.backend_context("numpy"):
                theirs = tensorly.decomposition.tensor_train_matrix(tensor, [1, *spec.bonds, 1])
                dense = torch.from_numpy(tensorly.tt_matrix.tt_matrix_to_tensor(theirs).reshape(spec.shape))
            assert (chain.to_matrix() - dense).norm() / dense.norm() < 1e-5, name
            assert chain.relative_error == pytest.approx(float((weight - dense).norm() / weight.norm()), rel=1e-6)

    def test_full_bond_is_exact(self, weights):
        for name, weight in weights.items():
            chain = decompose(weight, site_spec(*weight.shape, None), name=name)
            assert chain.relative_error_to(weight) < 1e-6, name
            single = decompose(weight.float(), site_spec(*weight.shape, None), name=name)
            assert single.relative_error_to(weight.float()) < 1e-5, name
