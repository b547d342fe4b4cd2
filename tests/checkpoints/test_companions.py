"""Files beside the weights are copied from their folder and from nowhere else."""

import json

import pytest

from checkpoints.chat import chat_of, differences
from checkpoints.companions import companions_of, copy_companions, copy_tokenizer
from common.errors import UserError


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "secret").write_text("not for others")
    return tmp_path / "secret"


def made(folder):
    folder.mkdir(parents=True)
    return folder


def test_a_link_that_leaves_the_folder_is_refused(tmp_path, secret):
    donor, out = made(tmp_path / "donor"), made(tmp_path / "out")
    (donor / "chat_template.jinja").symlink_to(secret)
    with pytest.raises(UserError, match=r"donor/chat_template\.jinja: a link that ends outside"):
        copy_companions([donor], out)
    assert not list(out.iterdir())


def test_links_within_the_folder_and_to_it_are_followed(tmp_path):
    donor, out = made(tmp_path / "donor"), made(tmp_path / "out")
    (donor / "kept").write_text("t")
    (donor / "chat_template.jinja").symlink_to("kept")
    (tmp_path / "alias").symlink_to(donor)
    copy_companions([tmp_path / "alias"], out)
    assert (out / "chat_template.jinja").read_text() == "t"


def test_the_hubs_cache_is_made_of_links_to_its_blobs(tmp_path):
    top, out = tmp_path / "models--a--b", made(tmp_path / "out")
    made(top / "blobs").joinpath("0f").write_text("t")
    donor = made(top / "snapshots" / "revision")
    (donor / "tokenizer.json").symlink_to("../../blobs/0f")
    copy_companions([donor], out)
    assert (out / "tokenizer.json").read_text() == "t"
    # Another folder of that name is no repository of the hub.
    other = made(tmp_path / "x" / "snapshots" / "revision")
    made(tmp_path / "x" / "blobs").joinpath("0f").write_text("t")
    (other / "tokenizer.json").symlink_to("../../blobs/0f")
    with pytest.raises(UserError, match="ends outside"):
        copy_companions([other], out)
    # Neither another repository's files nor others of this one.
    (top / "other").write_text("x")
    (donor / "vocab.json").symlink_to("../../other")
    with pytest.raises(UserError, match="ends outside"):
        copy_companions([donor], out)


def write(folder, **files):
    """Write files by name; `__` in a keyword stands for a dot, `___` for a slash."""
    for key, content in files.items():
        path = folder / key.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_a_loader_reads_is_taken_and_the_rest_named(tmp_path):
    classes = {"AutoConfig": "own.C", "AutoModel": ["inner.M", None], "AutoX": "org/other--far.X"}
    donor = write(
        tmp_path / "donor",
        config__json={"auto_map": classes},
        own__py="from .deep.part import (\n    x,\n)\nFILES = {'vocab_file': 'words.dat'}\n",
        inner__py="from . import (first,\n  second as s)\n",
        first__py="import torch\n",
        second__py="",
        deep___part__py="from .leaf import x\n",
        deep___leaf__py="x = 1\n",
        far__py="",
        train__py="",
        words__dat="w",
        generation_config__json={},
        preprocessor_config__json={},
        qwen__tiktoken="t",
        spiece__model="s",
        chat_template__json={"chat_template": "t"},
        additional_chat_templates___tool__jinja="t",
        README__md="r",
        trainer_state__json={},
        optimizer__pt="o",
        model__safetensors="w",
        consolidated__00__pth="w",
        adapter_config__json={},
        original___params__json={},
    )
    out = made(tmp_path / "out")
    copy_companions([donor], out)
    assert names(out) == sorted(
        [
            *("additional_chat_templates/tool.jinja", "chat_template.json", "config.json"),
            *("deep/leaf.py", "deep/part.py", "first.py", "second.py", "own.py", "inner.py"),
            *("generation_config.json", "preprocessor_config.json", "qwen.tiktoken"),
            *("spiece.model", "words.dat"),
        ]
    )
    note = companions_of([donor]).note()
    taken, left = note.split("; left out: ")
    assert "custom code is copied and never run" in taken and str(donor) in taken
    for part in ("train.py", "README.md (about the donor)", "trainer_state.json", "original"):
        assert part in left and part not in taken
    assert "optimizer.pt" in left and "consolidated.00.pth (other weights)" in left


def test_large_files_and_strange_links_stay(tmp_path, secret, monkeypatch):
    donor = write(tmp_path / "donor", config__json={}, big__json={}, note__json={"a": "b" * 99})
    (donor / "odd.json").symlink_to(secret)
    monkeypatch.setattr("checkpoints.companions.LARGEST", 50)
    found = companions_of([donor])
    assert set(found.files) == {"config.json", "big.json"}
    assert "over 0 MiB" in found.left[donor / "note.json"]
    assert "a link" in found.left[donor / "odd.json"]


TOKENIZER = {"tokenizer__json": {}, "special_tokens_map__json": {"eos_token": "</s>"}}


def test_an_adapters_tokenizer_is_taken_whole(tmp_path):
    base = write(
        tmp_path / "base",
        config__json={},
        **TOKENIZER,
        chat_template__jinja="base's",
        additional_chat_templates___tool__jinja="base's",
        spiece__model="base's",
        generation_config__json={"eos_token_id": 1},
    )
    about = {"chat_template": "own", "eos_token": {"content": "<|end|>"}}
    adapter = write(
        tmp_path / "adapter", tokenizer__json={"a": 1}, tokenizer_config__json=about, r__json={}
    )
    out = made(tmp_path / "out")
    copy_companions([base, adapter], out)
    assert names(out) == [
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    ]
    assert json.loads((out / "tokenizer.json").read_text()) == {"a": 1}
    found = companions_of([base, adapter])
    chat = chat_of(found)
    assert chat.templates == {"default": "own"} and chat.end == "<|end|>"
    assert found.tokenizer == adapter
    assert "chat_template.jinja, special_tokens_map.json" in found.note()
    lost = differences(chat_of(companions_of([base])), chat)
    assert lost == ["has another chat template", "ends with '</s>' and the donor with '<|end|>'"]
    # Without words of its own it has no tokenizer; a template alone replaces templates alone.
    (adapter / "tokenizer.json").unlink()
    assert companions_of([base, adapter]).files["special_tokens_map.json"].parent == base
    (adapter / "tokenizer_config.json").unlink()
    write(adapter, chat_template__jinja="own")
    found = companions_of([base, adapter])
    assert chat_of(found).templates == {"default": "own"} and found.tokenizer == base
    copy_tokenizer(base, made(tmp_path / "words"))
    assert "config.json" not in names(tmp_path / "words")


def test_a_chat_is_read_as_transformers_reads_it(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "<|end|>": 2}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|end|>")
    tokenizer.chat_template = {"default": "d", "tool_use": "t"}
    tokenizer.save_pretrained(tmp_path / "new")
    write(tmp_path / "new", special_tokens_map__json={"eos_token": "</s>"})
    old = write(tmp_path / "old", tokenizer__json=(tmp_path / "new" / "tokenizer.json").read_text())
    about = {"chat_template": [{"name": "default", "template": "d"}], "eos_token": "</s>"}
    write(old, tokenizer_config__json=about | {"tokenizer_class": "PreTrainedTokenizerFast"})
    for folder in (tmp_path / "new", old):
        read = PreTrainedTokenizerFast.from_pretrained(folder)
        chat = chat_of(companions_of([folder]))
        own = read.chat_template
        assert chat.templates == (own if isinstance(own, dict) else {"default": own})
        assert chat.end == read.eos_token
    assert len(chat_of(companions_of([tmp_path / "new"])).templates) == 2


def test_a_template_as_a_file_counts_before_the_one_in_the_configuration(tmp_path, make_model):
    from transformers import AutoTokenizer

    folder = make_model(tmp_path / "model")
    about = json.loads((folder / "tokenizer_config.json").read_text())
    write(folder, tokenizer_config__json=about | {"chat_template": "in"})
    assert chat_of(companions_of([folder])).templates == {"default": "in"}
    (folder / "chat_template.jinja").write_text("file")
    assert chat_of(companions_of([folder])).templates == {"default": "file"}
    assert AutoTokenizer.from_pretrained(folder).chat_template == "file"
