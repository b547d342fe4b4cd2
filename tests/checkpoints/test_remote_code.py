"""Code that comes with a checkpoint is never run, and nobody is asked whether it should be."""

import json
import subprocess

import pytest
import torch
from safetensors.torch import save_file

from checkpoints.loading import check_weights, load_causal
from checkpoints.reading import SINGLE
from common.errors import UserError
from tests.workflow.test_house import ROOT

CLASSES = {
    "AutoConfig": "own.Config",
    "AutoModelForCausalLM": "own.Model",
    "AutoTokenizer": ["own.Tokenizer", None],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkpoint with a module that leaves a file behind when it is imported."""
    trace = tmp_path / "trace"
    made = tmp_path / "model"
    made.mkdir()
    (made / "own.py").write_text(f"open({str(trace)!r}, 'w')\n", encoding="utf-8")
    save_file({"w": torch.ones(2)}, made / SINGLE)
    about = {"auto_map": CLASSES, "model_type": "own_kind"}
    (made / "config.json").write_text(json.dumps(about), encoding="utf-8")
    about = {"auto_map": CLASSES, "tokenizer_class": "Tokenizer"}
    (made / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")

    def asked(*_):
        pytest.fail("somebody was asked")

    monkeypatch.setattr("builtins.input", asked)
    yield made
    assert not trace.exists()


@pytest.mark.parametrize("load", [load_causal, check_weights])
def test_a_models_own_class_is_never_run(folder, load):
    with pytest.raises(UserError, match="transformers cannot load it"):
        load(folder)


def test_a_tokenizers_own_class_is_never_run(folder):
    from evaluation.harness import _load_tokenizer  # loads transformers

    with pytest.raises(UserError, match="no tokenizer that transformers can read"):
        _load_tokenizer(folder)


def test_a_known_architecture_with_a_class_of_its_own_is_loaded_as_transformers_has_it(folder):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = CLASSES
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert type(load_causal(folder)) is LlamaForCausalLM


def test_every_call_of_transformers_says_so():
    """A new call without the setting would ask whoever sits at the terminal."""
    packages = ["bottle", "checkpoints", "evaluation", "merges", "paper", "report", "search"]
    calls = subprocess.run(
        ["git", "grep", "-A9", r"Auto[A-Za-z]*\.from_pretrained(", "--", *packages],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    count = calls.count(".from_pretrained(")
    assert count >= 4
    assert calls.count("trust_remote_code=False") == count
