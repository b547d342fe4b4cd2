"""Weights that a checkpoint lacks or has too many: refused by name by everything that loads one."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.loading import check_weights
from checkpoints.reading import SINGLE, Checkpoint
from checkpoints.smoke import measure
from checkpoints.vocabulary import align
from common.errors import UserError

TEXT = "w5 w6 w7 w8 w9"
Q, LAST = "model.layers.1.self_attn.q_proj.weight", "model.layers.2.mlp.up_proj.weight"


def evaluated(folder):
    """Score a continuation as the evaluation does, with the class that it chooses."""
    from lm_eval.api.instance import Instance

    from evaluation.backends import open_backend
    from evaluation.harness import _load_tokenizer

    backend = open_backend("hf", folder, _load_tokenizer(folder), batch_size=1)
    asked = Instance("loglikelihood", {}, ("w5 w6", " w7"), 0, ("t", 0, 1))
    return backend.loglikelihood([asked])[0][0]


def loaded(folder):
    from evaluation.backends.hf import load_model

    return load_model(folder)


def searched(folder):
    from search.workbench import Allocated

    return Allocated(Checkpoint(folder))


def trained_on(folder):
    from bottle.tokenizer import load_tokenizer
    from bottle.training import _load_base

    return _load_base(folder, load_tokenizer(folder))


def taught(folder):
    from merges.dam.sources import load_sources

    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"task": "t", "prompt": "w5", "answer": " w6", "eos": True}) + "\n")
    return load_sources(Checkpoint(folder), {"one": Checkpoint(folder)}, {"one": rows})


def read(folder):
    return measure(folder, TEXT)


def united(folder):
    return align(Checkpoint(folder), {"one": Checkpoint(folder)}, "union")


EVERY = (evaluated, loaded, searched, trained_on, taught, read, check_weights)


def change(folder, out, names=(), add=None, **config):
    """Copy a model without some tensors, with others, or under another configuration."""
    shutil.copytree(folder, out)
    held = load_file(out / SINGLE)
    for name in names:
        del held[name]
    save_file(held | (add or {}), out / SINGLE, {"format": "pt"})
    about = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(about | config))
    return out


@pytest.fixture(scope="module")
def folders(make_model, tmp_path_factory):
    """Models by what is wrong with them, and the name that the error must have."""
    top = tmp_path_factory.mktemp("invented")
    llama, deep = make_model(top / "llama"), make_model(top / "deep", num_hidden_layers=3)
    mistral = make_model(top / "mistral", "mistral")
    tied = make_model(top / "tied", tie_word_embeddings=True)
    extra = {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}
    return {
        "a matrix": (change(llama, top / "1", [Q]), Q),
        "a norm": (change(mistral, top / "2", ["model.norm.weight"]), "model.norm.weight"),
        "the head": (change(llama, top / "3", ["lm_head.weight"]), "lm_head.weight"),
        "the embedding": (
            change(tied, top / "4", ["model.embed_tokens.weight"]),
            "model.embed_tokens.weight",
        ),
        "a layer": (change(llama, top / "5", num_hidden_layers=3), "model.layers.2"),
        "a layer too many": (change(deep, top / "6", num_hidden_layers=2), "model.layers.2"),
        "a bias too many": (change(llama, top / "7", add=extra), "q_proj.bias"),
        "an unknown tensor": (
            change(llama, top / "8", add={"score.weight": torch.ones(1, 32)}),
            "score.weight",
        ),
    }


FAULTS = [
    *("a matrix", "a norm", "the head", "the embedding", "a layer"),
    *("a layer too many", "a bias too many", "an unknown tensor"),
]


@pytest.mark.parametrize("load", EVERY)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_with_other_weights_than_its_architecture_is_refused_by_name(folders, fault, load):
    folder, name = folders[fault]
    with pytest.raises(UserError) as refused:
        load(folder)
    message = str(refused.value)
    assert name in message and str(folder) in message and "\n" not in message
    assert ("random values" in message) == ("many" not in fault and "unknown" not in fault)


@pytest.mark.parametrize("load", EVERY)
@pytest.mark.parametrize(
    "wrong",
    [
        *({"hidden_size": 16}, {"vocab_size": 20}, {"intermediate_size": 32}, {"head_dim": 4}),
        *({"num_attention_heads": 0}, {"num_attention_heads": "four"}, {"hidden_act": "no such"}),
        *({"model_type": "no such"}, {"num_key_value_heads": 4}, {"hidden_size": None}),
    ],
    ids=str,
)
def test_a_configuration_of_another_model_is_refused_in_a_line(make_model, tmp_path, wrong, load):
    folder = change(make_model(tmp_path / "m"), tmp_path / "wrong", **wrong)
    with pytest.raises(UserError) as refused:
        load(folder)
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("policy", ["refuse", "base", "union", "crop-to-base"])
@pytest.mark.parametrize("fault", ["the head", "a layer", "a layer too many"])
def test_a_merge_of_any_vocabulary_refuses_what_can_be_seen_without_transformers(
    folders, fault, policy
):
    model = Checkpoint(folders[fault][0])
    with pytest.raises(UserError, match=r"the output head|layers\.2"):
        align(model, {"one": model}, policy)


@pytest.mark.parametrize("load", [*EVERY, united])
def test_what_the_architecture_ties_or_computes_may_be_stored_or_not(make_model, tmp_path, load):
    tied = make_model(tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied / SINGLE)
    head = load_file(tied / SINGLE)["model.embed_tokens.weight"].clone()
    both = change(tied, tmp_path / "both", add={"lm_head.weight": head})
    load(tied)
    load(both)
    # Checkpoints of older versions hold the rotary frequencies, which are computed.
    computed = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    load(change(tied, tmp_path / "computed", add=computed))


@pytest.mark.parametrize("kind", ["gpt2", "mixtral", "qwen2", "gemma2", "gpt_neox"])
def test_other_architectures_load_whole_and_are_refused_in_part(tmp_path, kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    if kind == "gpt2":
        small = {"vocab_size": 48, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = AutoConfig.for_model(kind, **small, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "whole")
    check_weights(tmp_path / "whole")
    for name in sorted(load_file(tmp_path / "whole" / SINGLE))[::5]:
        part = change(tmp_path / "whole", tmp_path / name, [name])
        with pytest.raises(UserError, match=r"no weights for|makes it|cannot load"):
            check_weights(part)


def test_a_layer_that_predicts_further_tokens_is_none_too_many(make_model, tmp_path):
    deep = make_model(tmp_path / "deep", num_hidden_layers=3)
    folder = change(deep, tmp_path / "m", num_hidden_layers=2, num_nextn_predict_layers=1)
    model = Checkpoint(folder)
    assert align(model, {"one": model}).base is model
    with pytest.raises(UserError, match=r"layers\.2"):
        align(Checkpoint(change(deep, tmp_path / "n", num_hidden_layers=2)), {})
