"""What else a model's folder holds: it is kept; and a folder never runs code, asks the hub or blocks."""

from __future__ import annotations

import contextlib
import json
import os
import socket

import pytest
import torch
import transformers
from tiny import write_model

import mpochain as mpo
from mpochain import MPOError
from mpochain.language import load_language_model, save_language_model
from mpochain.language.pretrained import is_hub_name
from mpochain.language.source import save_dense


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "dense", layers=1)


def _edit(file, **fields):
    data = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(data | fields))


def test_everything_but_the_weights_is_kept_by_save_load_and_convert(folder, tmp_path):
    _edit(folder / "generation_config.json", eos_token_id=[5, 7], num_beams=2, suppress_tokens=[3])
    _edit(folder / "preprocessor_config.json", image_processor_type="CLIPImageProcessor", size={"height": 8})
    (folder / "LICENSE").write_text("as it is")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}!{% endfor %}")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    language = load_language_model(folder)
    mpo.compress(language.model, 0.9, method="svd")
    again = load_language_model(save_language_model(language, tmp_path / "small"))
    back = save_dense(again, tmp_path / "back")
    for model in (again.model, load_language_model(back).model):
        assert model.generation_config.to_diff_dict() == language.model.generation_config.to_diff_dict()
    for name in ("preprocessor_config.json", "LICENSE"):
        assert (back / name).read_bytes() == (folder / name).read_bytes()
    talk = [{"role": "user", "content": "hello"}]
    assert again.tokenizer.apply_chat_template(talk, tokenize=False) == "hello!"
    assert transformers.AutoTokenizer.from_pretrained(back).apply_chat_template(talk, tokenize=False) == "hello!"
    assert not list(tmp_path.glob("small/**/*.py")) + list(back.glob("**/*.py")), "code is not kept"


def test_another_model_in_the_same_folder_leaves_no_file_of_the_first(folder, tmp_path):
    (folder / "LICENSE").write_text("as it is")
    language = load_language_model(folder)
    save_language_model(language, tmp_path / "small")
    (folder / "LICENSE").unlink()
    save_language_model(load_language_model(folder), tmp_path / "small")
    assert not (tmp_path / "small" / "files").exists()


@pytest.mark.parametrize("where", ["dense", "small"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_folder_never_runs_and_is_never_asked_for(folder, tmp_path, monkeypatch, where, file):
    if where == "small":
        save_language_model(load_language_model(folder), tmp_path / "small")
        folder = tmp_path / "small"
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(ran)!r}).write_text('x')\n"
        "from transformers import LlamaForCausalLM as Model, LlamaConfig as Config, PreTrainedTokenizerFast as Tok\n"
    )
    code = {"AutoTokenizer": ["evil.Tok", None], "AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    _edit(folder / file, auto_map=code, tokenizer_class="Tok", model_type="own")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks whether to run code"))
    with contextlib.suppress(MPOError):  # most are refused; a model's configuration beside a tokenizer is not read
        load_language_model(tmp_path / where)
    assert not ran.exists()


def test_the_hub_is_asked_only_for_names_that_are_no_paths(folder, tmp_path, monkeypatch):
    asked = []

    def refuse(*address, **_):
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    mpo.save(load_language_model(folder).model, "small/model")  # without a tokenizer
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    for source in ("small/model", "small/modle", "empty/folder", "nothing", "./org/name", "a.gguf", "org/a.gguf"):
        with pytest.raises(MPOError, match=source.rpartition("/")[2]):
            load_language_model(source)
    assert not asked
    assert is_hub_name("org/name")


@pytest.mark.parametrize("kind", ["pipe", "device", "link out of the folder"])
@pytest.mark.parametrize("name", ["tokenizer.json", "other.json"])
def test_only_files_of_the_folder_are_read(folder, tmp_path, kind, name):
    small = save_language_model(load_language_model(folder), tmp_path / "small")
    file = small / name
    file.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero" if kind == "device" else folder / "tokenizer.json")
    with pytest.raises(MPOError, match=f"{name} "):
        load_language_model(small)


@pytest.mark.parametrize("value", ["org/kernel", {"": "org/kernel"}, {"text": {"": "flash_attention_2"}}])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_dense_folder_cannot_name_kernels_to_download(folder, key, value):
    _edit(folder / "config.json", **{key: value})
    with pytest.raises(MPOError, match=rf"config.json.{key}.* expected the name of an implementation"):
        load_language_model(folder)


def test_the_generation_configuration_of_a_model_that_was_built_is_kept(folder, tmp_path):
    torch.manual_seed(0)
    model = load_language_model(folder).model
    model.generation_config = transformers.GenerationConfig(eos_token_id=[1, 2], max_new_tokens=3)
    loaded = mpo.load(mpo.save(model, tmp_path / "small"))
    assert loaded.generation_config.to_diff_dict() == model.generation_config.to_diff_dict()
